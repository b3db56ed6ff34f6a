"""Unit test of a packed bundle for a pull request to MONAI's Model Zoo.

Copy it to the zoo's ``ci/unit_tests/test_<bundle>.py``: the bundle's name is read from the file's. It trains a small
network for one iteration on random volumes, evaluates it and runs inference, all in a temporary folder.
"""

import json
import shutil
import tempfile
import unittest
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

__all__ = ["TestBundle"]

BUNDLE = Path("models", Path(__file__).stem.replace("test_", "", 1))
CONFIGS = BUNDLE / "configs"
SHAPE = (48, 48, 4)
SMALL: dict = {"device": "cpu", "slice_size": [32, 32], "spacing_mm": [-1.0, -1.0, -1.0]}
SMALL_NETWORKS: dict = {
    "segmentation": {"network_def#width": 4, "network_def#layers": [1, 1, 1, 1], "network_def#feature_channels": 8},
    "synthesis": {"generator_channels": 4, "generator_blocks": 1},
}
SHORT: dict = {"max_epochs": 1, "iterations_per_epoch": 1, "batch_size": 1}


class TestBundle(unittest.TestCase):
    """Training, evaluation and inference of the bundle, each through MONAI's workflow."""

    def setUp(self) -> None:
        """Write two cases of each domain, with datalists."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        config = json.loads((CONFIGS / "train.json").read_text())
        self.domains = [config["source_domain"], config["target_domain"]]
        rng = np.random.default_rng(0)
        for domain in self.domains:
            cases = [self.write_case(f"{domain}_{index}", config["label_values"], rng) for index in range(2)]
            lists = {"training": cases, "validation": cases[:1]}
            (self.folder / f"{domain}.json").write_text(json.dumps(lists))
        self.stage = "segmentation" if (CONFIGS / "evaluate.json").is_file() else "synthesis"
        self.settings = {
            **SMALL,
            **SMALL_NETWORKS[self.stage],
            "bundle_root": str(self.folder / "run"),
            "dataset_dir": str(self.folder),
        }

    def write_case(self, name: str, label_values: list, rng: np.random.Generator) -> dict:
        """A body with one block per structure, in HU for CT and in any unit for MR."""
        label = np.zeros(SHAPE, np.int16)
        for index, value in enumerate(label_values):
            label[12 + 4 * index : 16 + 4 * index, 16:32, 1:3] = value
        image = np.full(SHAPE, -1000.0)
        image[8:40, 8:40] = rng.normal(40, 20, (32, 32, SHAPE[2]))
        image += 0.2 * label
        entry = {kind: f"{name}_{kind}.nii.gz" for kind in ("image", "label")}
        for kind, voxels in (("image", image.astype(np.int16)), ("label", label)):
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), self.folder / entry[kind])
        return entry

    def run_workflow(self, kind: str, configs: list, check: bool, **settings: Any) -> None:
        """Run a workflow of some config files, after checking its properties."""
        workflow = ConfigWorkflow(
            workflow_type=kind,
            config_file=[str(CONFIGS / name) for name in configs],
            logging_file=str(CONFIGS / "logging.conf"),
            meta_file=str(CONFIGS / "metadata.json"),
            **{**self.settings, **settings},
        )
        workflow.initialize()
        if check:
            assert workflow.check_properties() == []
        workflow.run()
        workflow.finalize()

    def test_train_evaluate_infer(self) -> None:
        """One after the other: evaluation and inference use the trained weights."""
        labelled = {"labelled_datalist": str(self.folder / f"{self.domains[0]}.json"), "translator": "none"}
        training = {**SHORT, **(labelled if self.stage == "segmentation" else {})}
        self.run_workflow("train", ["train.json"], check=True, **training)
        assert (self.folder / "run" / "models" / "model.pt").is_file()
        if self.stage == "segmentation":
            self.run_workflow("train", ["train.json", "evaluate.json"], check=False, **training)
            assert (self.folder / "run" / "eval" / "summary.json").is_file()
            volume = self.folder / f"{self.domains[1]}_0_image.nii.gz"
            self.settings["dataset_dir"] = str(volume)
        self.run_workflow("infer", ["inference.json"], check=True, output_dir=str(self.folder / "written"))
        assert list((self.folder / "written").glob("*.nii.gz"))


if __name__ == "__main__":
    unittest.main()
