"""The segmentation bundle's transforms, run as MONAI Deploy's ``MonaiBundleInferenceOperator`` runs them.

The operator brings volumes in memory: it leaves out transforms with ``LoadImage`` or ``SaveImage`` in the name of their
class, and passes a dictionary only where the first transform that remains is a ``MapTransform``.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from conftest import config_files, run_config, small_settings, write_weights
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform
from scripts.core.weights import load_weights

TASK = "phantom_mr2ct"


def filtered(compose: Compose) -> Compose:
    """What the operator keeps of a composition."""
    named = [(type(transform).__name__, transform) for transform in compose.transforms]
    kept = [one for name, one in named if "LoadImage" not in name and "SaveImage" not in name]
    assert len(kept) < len(named)
    assert isinstance(kept[0], MapTransform)
    return Compose(kept)


def test_a_volume_in_memory_is_segmented_as_its_file_is(data: Path, tmp_path: Path) -> None:
    write_weights(TASK, tmp_path / "models", seed=4)  # random weights that give two classes
    run_config("inference", "segmentation", "inference", bundle_root=tmp_path, dataset_dir=data / "ct.json")
    parser = ConfigParser()
    parser.read_config(config_files("segmentation", "inference"))
    parser.update(small_settings("segmentation", "inference", bundle_root=tmp_path))
    network = parser.get_parsed_content("network").eval()
    load_weights(parser.get_parsed_content("checkpoint"), network, parser.get_parsed_content("weights_metadata"))
    image = nib.load(data / "ct_2_image.nii.gz")
    # As the SDK's DICOM reader describes a volume.
    meta = {"affine": image.affine, "original_affine": image.affine, "original_channel_dim": "no_channel"}
    value = MetaTensor.ensure_torch_and_prune_meta(image.get_fdata(dtype=np.float32), meta)
    inputs = filtered(parser.get_parsed_content("preprocessing"))({"image": value})
    with torch.no_grad():
        (output,) = parser.get_parsed_content("inferer")(inputs=inputs["image"][None], network=network)
    result = filtered(parser.get_parsed_content("postprocessing"))({"pred": output, **inputs})["pred"]
    (file,) = (tmp_path / "predictions").glob("ct_2*.nii.gz")
    written = np.asarray(nib.load(file).dataobj)
    assert len(np.unique(written)) > 1
    np.testing.assert_array_equal(np.asarray(result[0]), written)
