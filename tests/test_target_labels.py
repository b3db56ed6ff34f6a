"""Training does not read target labels: both stages give the same weights for any labels.

Selection among snapshots has the same test in ``test_selection.py``.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import CONFIGS, assert_same_weights, run_config
from monai.bundle import ConfigParser

METHODS = ("glua", "glua_self_training", "dast", "clan", "fda", "dacs", "fpl")
"""All of the method, those that make labels of their own for the target, or weigh its pixels, or take its style."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(without_labels: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of ``synthesis``, or of a run of a method, on labels in some state."""
    roots = cache(lambda labels: tmp_path_factory.mktemp("trained"))

    @cache
    def run(labels: str, stage: str) -> Path:
        root, data = roots(labels) / stage, without_labels(labels)
        places = {"bundle_root": root, "dataset_dir": data}
        if stage == "synthesis":
            run_config("training", "synthesis", "train", **places)
            run_config("inference", "synthesis", "inference", **places)
        else:
            overlay = CONFIGS / "methods" / f"{stage}.yaml"
            if ConfigParser.load_config_file(str(overlay))["translator"] != "none":
                places["labelled_datalist"] = run(labels, "synthesis") / "translated" / "datalist.json"
            run_config("training", "segmentation", "train", overlay, **places, max_epochs=2)
        return root

    return run


@pytest.mark.parametrize("stage", ["synthesis", *METHODS])
@pytest.mark.parametrize("labels", ["deleted", "scrambled"])
def test_both_stages_train_the_same(labels: str, stage: str, trained: Callable[..., Path]) -> None:
    honest, other = trained("as they are", stage), trained(labels, stage)
    assert_same_weights(honest / "models" / "model.pt", other / "models" / "model.pt")
    logs = [root / "logs" / "losses.csv" for root in (honest, other)]
    assert logs[0].read_text() == logs[1].read_text()
    volumes = sorted((honest / "translated").glob("*image*.nii.gz"))
    assert bool(volumes) == (stage == "synthesis")
    for volume in volumes:
        same = other / "translated" / volume.name
        np.testing.assert_array_equal(nib.load(volume).get_fdata(), nib.load(same).get_fdata())


@pytest.mark.parametrize(
    ("method", "part"),
    [("glua", "d2"), ("glua_self_training", "self_training"), ("dast", "self_training"), ("fpl", "filtered_labels")],
)
def test_the_target_influences_the_weights(method: str, part: str, trained: Callable[..., Path]) -> None:
    # Otherwise its labels could not have influenced the weights.
    rows = list(csv.DictReader((trained("as they are", method) / "logs" / "losses.csv").open()))
    assert float(rows[-1][part]) > 0


def test_a_translator_depends_on_no_label_at_all(trained: Callable[..., Path]) -> None:
    # So that one translator may serve both directions: the target of the one is the labelled domain of the other.
    honest, other = (
        trained(labels, "synthesis") / "models" / "model.pt" for labels in ("as they are", "all scrambled")
    )
    assert_same_weights(honest, other)


@pytest.mark.parametrize("method", ["glua", "dast"])
def test_labels_of_the_labelled_domain_do_matter(method: str, trained: Callable[..., Path]) -> None:
    # Otherwise the comparisons above would prove nothing.
    honest, other = (trained(labels, method) / "models" / "model.pt" for labels in ("as they are", "all scrambled"))
    with pytest.raises(AssertionError):
        assert_same_weights(honest, other)
