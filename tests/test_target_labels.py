"""No label of the target reaches a training: both stages give the same weights whatever the target's labels say.

The choice among snapshots is held to the same in ``test_selection.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import CONFIGS, assert_same_weights, run_config

METHODS = ("glua", "glua_self_training")
"""All of the method, and the one that makes labels of its own for the target."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(without_labels: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with ``synthesis`` and a run of each method on its translations, on labels in some state."""

    @cache
    def run(labels: str) -> Path:
        root, data = tmp_path_factory.mktemp("trained"), without_labels(labels)
        places = {"bundle_root": root / "synthesis", "dataset_dir": data}
        run_config("training", "synthesis", "train", **places)
        run_config("inference", "synthesis", "inference", **places)
        translated = root / "synthesis" / "translated" / "datalist.json"
        for method in METHODS:
            overlay = CONFIGS / "methods" / f"{method}.yaml"
            places = {"bundle_root": root / method, "dataset_dir": data, "labelled_datalist": translated}
            run_config("training", "segmentation", "train", overlay, **places, max_epochs=2)
        return root

    return run


@pytest.mark.parametrize("labels", ["deleted", "scrambled"])
def test_both_stages_train_the_same(labels: str, trained: Callable[[str], Path]) -> None:
    honest, other = trained("as they are"), trained(labels)
    for stage in ("synthesis", *METHODS):
        assert_same_weights(honest / stage / "models" / "model.pt", other / stage / "models" / "model.pt")
        logs = [root / stage / "logs" / "losses.csv" for root in (honest, other)]
        assert logs[0].read_text() == logs[1].read_text()
    volumes = sorted((honest / "synthesis" / "translated").glob("*image*.nii.gz"))
    assert volumes
    for volume in volumes:
        same = other / "synthesis" / "translated" / volume.name
        np.testing.assert_array_equal(nib.load(volume).get_fdata(), nib.load(same).get_fdata())


def test_a_translator_depends_on_no_label_at_all(trained: Callable[[str], Path]) -> None:
    # So that one translator may serve both directions: the target of the one is the labelled domain of the other.
    honest, other = (
        trained(labels) / "synthesis" / "models" / "model.pt" for labels in ("as they are", "all scrambled")
    )
    assert_same_weights(honest, other)


def test_labels_of_the_labelled_domain_do_matter(trained: Callable[[str], Path]) -> None:
    # Else the comparisons above would compare nothing.
    honest, other = (trained(labels) / "glua" / "models" / "model.pt" for labels in ("as they are", "all scrambled"))
    with pytest.raises(AssertionError):
        assert_same_weights(honest, other)
