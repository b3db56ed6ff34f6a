"""A packed bundle as a Python function: from an array and its affine to an array on the same grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from numpy.typing import ArrayLike
from scripts.core.errors import InputError
from scripts.core.files import AtomicSaveImaged
from scripts.core.settings import Settings
from scripts.core.weights import load_weights
from scripts.data.geometry import check_affine, check_shape
from scripts.data.nifti import compact
from scripts.data.volumes import CheckedLoadImaged, check_values

__all__ = ["Predictor"]


class Predictor:
    """Inference on arrays, with the settings, checks, transforms and weights of ``run inference``.

    Only the bundle's own files are read, and none are written. What is missing or does not fit is an InputError.

    Args:
        bundle: folder of a packed bundle with weights.
        settings: top-level keys of its ``configs/inference.json`` with other values, as on the command line, such as
            ``device="cpu"``, ``largest_component=True`` or ``engine="onnx"``.
    """

    def __init__(self, bundle: str | Path, **settings: Any) -> None:
        config = Path(bundle) / "configs" / "inference.json"
        if not config.is_file():
            remedy = "name a folder that python -m bundle pack wrote"
            raise InputError(file=config, found="no such file", expected="a packed bundle's config", remedy=remedy)
        given = Settings.read(str(config), {"bundle_root": str(bundle), **settings})
        given.check()
        parser = ConfigParser(given.merged)
        self.preprocessing = parser.get_parsed_content("preprocessing")
        kinds = [type(transform) for transform in self.preprocessing.transforms]
        self.loaded = kinds.index(CheckedLoadImaged) + 1  # index of the first transform after loading
        self.postprocessing = parser.get_parsed_content("postprocessing")
        self.inferer = parser.get_parsed_content("inferer")
        self.device = torch.device(parser.get_parsed_content("device"))
        self.metadata: dict[str, Any] = parser.get_parsed_content("weights_metadata")  # its stage, domains and labels
        self.network = parser.get_parsed_content("network").eval()
        if parser["engine"] == "pytorch":
            load_weights(parser.get_parsed_content("checkpoint"), self.network, self.metadata)
        labels = parser.get_parsed_content("label_names")
        self.label_names: list[str] = ["background", *labels]

    def __call__(self, volume: ArrayLike, affine: ArrayLike) -> np.ndarray:
        """Segment, or translate, one volume.

        Args:
            volume: intensities in the unit that the task expects (HU for CT), (H, W, D).
            affine: voxel indices to world coordinates in mm, RAS+ as in NIfTI, (4, 4).

        Returns:
            (H, W, D) on the volume's own grid: class ids, whose names are ``label_names``; of a synthesis bundle the
            translated intensities.

        Raises:
            InputError: an array that is not 3D, or holds NaN, infinite or constant values; an affine that is not finite
                or cannot be inverted.
        """
        voxels = compact(np.asarray(volume))
        check_shape(voxels.shape, "the array")
        check_affine(affine, "the affine of the array")
        grid = torch.as_tensor(np.asarray(affine, np.float64))
        # Without "no_channel" MONAI takes the first axis for channels, and crops do not move the affine along the last.
        meta = {"original_affine": grid, "original_channel_dim": "no_channel"}
        image = MetaTensor(torch.from_numpy(voxels), affine=grid, meta=meta)
        check_values(image, "the array", is_label=False)
        item = self.preprocessing({"image": image}, start=self.loaded)
        slices = item["image"][None].to(self.device)
        item["pred"] = self.inferer(slices, self.network)[0]
        dtype: Any = np.float32
        for transform in self.postprocessing.transforms:
            if isinstance(transform, AtomicSaveImaged):
                dtype = transform.dtype_for(np.asarray(item["pred"].cpu()))
            else:
                item = transform(item)
        return np.asarray(item["pred"][0].cpu()).astype(dtype)
