"""The transforms of the task files on volumes as in public data sets: frames, blank parts, units, sides.

The volumes are small and each voxel says where it belongs, so that a slice cut across, a flip or a wrong unit shows.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CONFIGS, SMALL, config_files, refused, run_config, write_volume, write_weights
from monai.bundle import ConfigParser
from monai.transforms import Compose
from scipy.spatial.transform import Rotation
from scripts.core.domains import SOURCE, TARGET
from scripts.data.resampling import restore_grid
from scripts.data.slices import SliceSet, UnpairedSliceBatches

TASKS = {path.stem: dict(ConfigParser.load_config_file(str(path))) for path in (CONFIGS / "tasks").glob("*.yaml")}
HEARTS = ["cmr_bssfp2lge", "cmr_lge2bssfp"]
SHAPE = (24, 20, 9)
CODES = {"PSR": [[0, 0, 1], [-1, 0, 0], [0, 1, 0]], "LSP": [[-1, 0, 0], [0, 0, -1], [0, 1, 0]]}
"""Directions of the three stored axes as columns, in RAS, according to the header of a short-axis stack."""


def parser_of(task: str, stage: str = "segmentation", config: str = "train", **settings: Any) -> ConfigParser:
    """A config with its task, small networks, and by default each volume's own spacing."""
    parser = ConfigParser()
    parser.read_config(config_files(stage, config, task=task))
    parser.update(SMALL[stage] | {"device": "cpu", "slice_size": list(SHAPE[:2])} | settings)
    return parser


def short_axis_affine(code: str, origin_mm: float = 0.0) -> np.ndarray:
    """An oblique stack, 35 degrees off the named axes, 1.25 mm in plane and about 5 mm apart."""
    turn = Rotation.from_rotvec(np.deg2rad(35) * np.array([0.6, 0.64, 0.48])).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array(CODES[code], float) * (1.25, 1.25, 4.99998)
    affine[:3, 3] = origin_mm
    assert "".join(nib.aff2axcodes(affine)) == code
    return affine


def short_axis_stack() -> np.ndarray:
    """Slice z has values about 100 (z + 1), brighter towards the first axis's end; the last slice is blank."""
    rows = np.arange(SHAPE[0])[:, None, None]
    stack = 100.0 * (np.arange(SHAPE[2]) + 1) + rows + np.random.default_rng(0).uniform(0, 5, SHAPE)
    stack[..., -1] = 0
    return stack.astype(np.float32)


def write_stack(folder: Path, name: str, code: str, origin_mm: float = 0.0) -> dict[str, str]:
    """The stack and a label of it, with 1, 2, 3 beside one another in its middle slices."""
    label = np.zeros(SHAPE, np.uint8)
    label[6:18, 4:16, 2:6] = 1 + np.arange(12)[:, None, None] // 4
    affine = short_axis_affine(code, origin_mm)
    paths = {"image": write_volume(folder / f"{name}_image.nii.gz", short_axis_stack(), affine)}
    paths["label"] = write_volume(folder / f"{name}_label.nii.gz", label, affine)
    return {key: str(path) for key, path in paths.items()}


@pytest.mark.parametrize(
    ("stage", "side"), list(product(["synthesis", "segmentation"], ["preprocessing", "target_preprocessing"]))
)
@pytest.mark.parametrize("task", HEARTS)
def test_hearts_train_on_their_stored_slices_with_any_header(task: str, stage: str, side: str, tmp_path: Path) -> None:
    """Turning oblique short-axis stacks by their headers would cut some patients along and others across the stack."""
    keys = ("image", "label") if side == "preprocessing" else ("image",)
    items = [{key: write_stack(tmp_path, code, code)[key] for key in keys} for code in CODES]
    parser = parser_of(task, stage)
    parser["train#dataset#data"] = items
    transform = parser.get_parsed_content(f"train#{side}")
    cut = SliceSet(items, transform, slice_axis=TASKS[task]["slice_axis"])
    first, second = cut.images[cut.case_of == 0], cut.images[cut.case_of == 1]
    assert torch.equal(first, second)
    assert first.shape == (8, 1, *SHAPE[:2])  # eight slices that show something, none of the blank one
    grey = first.flatten(1)
    # Stored slices: 24 grey values wide, as far as the fixed range of translated images does not cut them.
    assert bool((grey.amax(1) - grey.amin(1) < 0.1).all())
    assert bool((grey.mean(1).diff() > 0.05).all())
    if cut.labels is not None:
        assert [sorted(one.unique().tolist()) for one in cut.labels[:8]] == [[0]] * 2 + [[0, 1, 2, 3]] * 4 + [[0]] * 2


@pytest.mark.parametrize("task", HEARTS)
def test_a_hearts_prediction_goes_back_to_its_voxels_by_index(task: str, tmp_path: Path) -> None:
    """Both headers, world positions far apart, the blank slice in place: the same voxels come back to their places."""
    parser = parser_of(task, config="inference")
    there = parser.get_parsed_content("preprocessing")
    low, high = np.percentile(short_axis_stack()[..., :-1], (0.5, 99.5))
    expected = np.clip((short_axis_stack() - low) / (high - low) * 2 - 1, -1, 1)
    for code, origin_mm in (("PSR", 0.0), ("LSP", 46.6)):
        case = there({"image": write_stack(tmp_path, code, code, origin_mm)["image"]})
        returned = restore_grid(case["image"].clone(), case["image"])
        np.testing.assert_allclose(np.asarray(returned[0])[..., :-1], expected[..., :-1], atol=1e-3)
        np.testing.assert_allclose(np.asarray(returned.affine), short_axis_affine(code, origin_mm), atol=1e-4)
        assert np.isfinite(np.asarray(returned)).all()


def test_hearts_of_any_header_are_segmented_alike_with_every_slice(tmp_path: Path) -> None:
    """Nine slices in, nine out, the blank one with them, on the grid and with the affine of the file."""
    write_weights(HEARTS[0], tmp_path / "models")
    (tmp_path / "in").mkdir()
    for code in CODES:
        write_volume(tmp_path / "in" / f"{code}.nii.gz", short_axis_stack(), short_axis_affine(code))
    places = {"bundle_root": tmp_path, "dataset_dir": tmp_path / "in", "output_dir": tmp_path / "out"}
    run_config("inference", "segmentation", "inference", CONFIGS / "tasks" / f"{HEARTS[0]}.yaml", **places)
    written = {code: nib.load(tmp_path / "out" / f"{code}_seg.nii.gz") for code in CODES}
    for code, file in written.items():
        assert file.shape == SHAPE
        np.testing.assert_allclose(file.affine, short_axis_affine(code), atol=1e-4)
    assert len(np.unique(written["PSR"].dataobj)) > 1
    np.testing.assert_array_equal(*(np.asarray(file.dataobj) for file in written.values()))


def abdominal_ct(folder: Path, stored_as: str = "HU") -> str:
    """33 x 33 x 5 voxels, stored as LAS; the last slice, row and column are blank, as a resampler left them."""
    voxels = np.full((33, 33, 5), -125.0, np.float32)
    voxels[4:28, 3:29, :4] = 40.0
    voxels[4:28, 3:6, :4] = -100.0  # fat
    voxels[10:14, 10:14, 1:3] = 275.0
    affine = np.diag([-1.5, 1.5, 5.0, 1.0])
    if stored_as == "HU":
        return str(write_volume(folder / "ct.nii.gz", voxels, affine))
    scale = {"[-1, 1]": (200.0, 75.0), "8 bits": (400 / 255, -125.0), "z-score": (70.0, 0.0)}[stored_as]
    return str(write_volume(folder / "ct.nii.gz", (voxels - scale[1]) / scale[0], affine))


def test_blank_edges_of_a_ct_are_dropped_in_training_and_kept_in_the_output(tmp_path: Path) -> None:
    """257 voxels are no multiple of anything, and the last slice, row and column show nothing."""
    path, size = abdominal_ct(tmp_path), {"slice_size": [32, 32]}
    parser = parser_of("abdomen_mr2ct", **size)
    transform = parser.get_parsed_content("train#target_preprocessing")
    cut = SliceSet([{"image": path}], transform, window_size=size["slice_size"])
    assert cut.images.shape == (4, 1, 32, 32)
    assert bool(torch.isfinite(cut.images).all())
    there = parser_of("abdomen_mr2ct", config="inference", **size).get_parsed_content("preprocessing")
    case = there({"image": path})
    returned = restore_grid(case["image"] + 1, case["image"])
    assert returned.shape == (1, 33, 33, 5)
    # 40 HU are (40 + 125) / 200 = 0.825 above the window's start; what was cut off comes back as nothing.
    np.testing.assert_allclose(np.asarray(returned[0, 8:24, 9:25, 0]), 0.825, atol=1e-5)
    np.testing.assert_allclose(np.asarray(returned[0, 10:14, 10:14, 1]), 2.0, atol=1e-5)
    assert not np.asarray(returned[0, :, :, 4]).any()


def test_a_window_of_8_bits_reads_as_hounsfield_units(tmp_path: Path) -> None:
    """Slope 400/255 and intercept -125: the top reads a little above 275, and a reader without them sees 0 to 255."""
    stored = np.tile(np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None], (2, 2, 4))
    stored[:4] = stored[-4:] = 0
    file = nib.Nifti1Image(stored, np.diag([-1.5, 1.5, 5.0, 1.0]))
    file.header.set_slope_inter(400 / 255, -125)
    nib.save(file, tmp_path / "ct.nii.gz")
    assert nib.load(tmp_path / "ct.nii.gz").get_fdata().max() > 275.0
    intensity = parser_of("abdomen_mr2ct").get_parsed_content("target_intensity").transforms[1]
    loaded = Compose(parser_of("abdomen_mr2ct").get_parsed_content("train#target_preprocessing").transforms[:2])
    scaled = np.asarray(intensity(loaded({"image": str(tmp_path / "ct.nii.gz")}))["image"][0])
    assert (scaled.min(), scaled.max()) == (-1.0, 1.0)
    # 128 is 75.78 HU, and that is 0.0039 in [-1, 1].
    np.testing.assert_allclose(scaled[stored == 128], 128 / 127.5 - 1, atol=1e-6)


IN_HU = [
    (task, f"{side}_intensity")
    for task, content in sorted(TASKS.items())
    for side in ("source", "target")
    if content[f"{side}_domain"] == "ct" and "scaled" not in task
]
SCALED = [(task, f"{side}_intensity") for task in sorted(TASKS) for side in ("source", "target") if "scaled" in task]


@pytest.mark.parametrize("stored_as", ["[-1, 1]", "8 bits", "z-score"])
@pytest.mark.parametrize(("task", "key"), IN_HU)
def test_a_ct_of_another_unit_is_refused_before_it_trains(task: str, key: str, stored_as: str, tmp_path: Path) -> None:
    """A CT in [-1, 1], of 0 to 255 or z-scored would be one grey in a window of Hounsfield units."""
    parser = parser_of(task)
    loading = Compose(parser.get_parsed_content("train#target_preprocessing").transforms[:2])
    case = loading({"image": abdominal_ct(tmp_path, stored_as)})
    error = refused(parser.get_parsed_content(key), case)
    assert error.file.endswith("ct.nii.gz")
    assert "no air and no fat: no value below -50" in error.found
    assert error.expected == "a CT in HU"


@pytest.mark.parametrize(("task", "key"), SCALED)
def test_volumes_in_their_own_unit_are_refused_where_scaled_ones_are_expected(
    task: str, key: str, tmp_path: Path
) -> None:
    """These tasks scale nothing, so HU or an MR of hundreds would reach the network as they are."""
    intensity = parser_of(task).get_parsed_content(key)
    raw = {"image": torch.linspace(-1000, 600, 500).view(1, 10, 10, 5)}
    assert "intensities that are not scaled: -992 to 592" in refused(intensity, raw).found
    z_scores = {"image": raw["image"] / 160 + 0.5}  # -5.75 to 4.25
    assert "Expected values within -2 and 2" in str(refused(intensity, z_scores))
    scaled = {"image": raw["image"] / 800}  # -1.25 to 0.75: protocols do not clip
    assert intensity(scaled)["image"] is scaled["image"]


IN_PERCENTILES = [
    (task, f"{side}_intensity")
    for task, content in sorted(TASKS.items())
    for side in ("source", "target")
    if "Percentiles" in content[f"{side}_intensity"]["_target_"]
]


@pytest.mark.parametrize(("task", "key"), IN_PERCENTILES)
def test_an_mr_of_any_unit_is_one_image(task: str, key: str) -> None:
    """MR has no unit: scaled to [-1, 1], z-scored or doubled, a volume's own percentiles make the same of it."""
    raw = torch.from_numpy(short_axis_stack())[None]
    intensity = parser_of(task).get_parsed_content(key)
    expected = intensity({"image": raw})["image"]
    for other in (raw * 2, raw / raw.max() * 2 - 1, (raw - raw.mean()) / raw.std()):
        torch.testing.assert_close(intensity({"image": other})["image"], expected, atol=1e-4, rtol=0)
    # The whole volume is scaled at once: a blank slice is one value, not 0 / 0, and dark slices stay darker.
    assert bool(torch.isfinite(expected).all())
    assert expected[..., 0].mean() < expected[..., 7].mean() - 1


def test_every_mr_is_scaled_by_its_own_percentiles() -> None:
    """Arbitrary units, another maximum in every volume: a fixed window would fit none of them."""
    mr = [
        (task, f"{side}_intensity")
        for task, content in sorted(TASKS.items())
        for side in ("source", "target")
        if content[f"{side}_domain"] != "ct" and "scaled" not in task
    ]
    assert mr == IN_PERCENTILES


@pytest.mark.parametrize("stage", ["synthesis", "segmentation"])
@pytest.mark.parametrize("axis", [0, 1])
def test_left_stays_left_in_training(axis: int, stage: str) -> None:
    """A mirrored body with labels that are not exchanged would teach the right kidney on the left."""
    parser = parser_of("abdomen_ct2mr", stage)
    names = [name for name in ("augmentation", "source_augmentation") if name in parser.get()["train"]]
    image, label = torch.full((64, 1, 64, 64), -1.0), torch.zeros(64, 1, 64, 64, dtype=torch.uint8)
    place = [slice(None), slice(None), slice(30, 34), slice(30, 34)]
    place[axis + 2] = slice(8, 12)  # 22 pixels from the middle; turned by 30 degrees 19, shifted by a tenth 12.6
    image[tuple(place)], label[tuple(place)] = 1.0, 2
    seen = 0
    for seed in range(8):
        moved, classes = image, label
        for name in names:
            transform = parser.get_parsed_content(f"train#{name}")
            moved, classes = transform(moved, classes, torch.Generator().manual_seed(seed))
        far = classes.movedim(axis + 2, 0)[32:]
        assert not far.any()
        # The marker is there, and the brightest part of the image is where its label says.
        seen += int(classes.flatten(1).any(1).sum())
        bright = (moved.movedim(axis + 2, 0) > 0.6)[32:]
        assert not bright.any()
    assert seen == 8 * 64


def test_no_config_mirrors_unless_asked() -> None:
    """Neither in training nor in test-time averaging; SIFA's test volumes alone are turned, in two axes at once."""
    for path in CONFIGS.rglob("*.yaml"):
        text = path.read_text()
        assert "Flipd" not in text, path
        assert all(line.split("#")[0].strip() in ("flip_axes: []", 'flip_axes: "@flip_axes"') for line in _flips(text))


def _flips(text: str) -> list[str]:
    return [line for line in text.splitlines() if "flip_axes:" in line and "test_flip_axes" not in line]


@pytest.mark.parametrize(
    ("stage", "side"),
    [("synthesis", "preprocessing"), ("segmentation", "preprocessing"), ("segmentation", "target_preprocessing")],
)
@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_resampled_label_has_no_class_in_between(task: str, stage: str, side: str, tmp_path: Path) -> None:
    """Anything but the nearest neighbour would write classes 1 and 2 round the last one."""
    highest = TASKS[task]["label_values"][-1]
    body = np.zeros((22, 22, 7), bool)
    body[4:18, 4:18, 1:6] = True
    is_ct = TASKS[task]["source_domain" if side == "preprocessing" else "target_domain"] == "ct"
    image = np.where(body, 0.5, -1.0) if "scaled" in task else np.where(body, 100.0, -1000.0 if is_ct else 3.0)
    image[4:6] -= 0.1 if "scaled" in task else 190.0  # fat
    if "scaled" not in task and stage == "segmentation" and side == "preprocessing":
        image = np.abs(image)  # what synthesis writes
    affine = np.diag([-1.9, 2.1, 4.0, 1.0])
    item = {"image": str(write_volume(tmp_path / "i.nii.gz", image.astype(np.float32), affine))}
    item["label"] = str(write_volume(tmp_path / "l.nii.gz", body.astype(np.int16) * highest, affine))
    parser = parser_of(task, stage, slice_size=[32, 32], spacing_mm=[1.3, 1.1, 3.1], labels_are_class_ids=False)
    made = parser.get_parsed_content(f"train#{side}")(item)["label"]
    highest_class = len(TASKS[task]["label_names"])
    assert {highest_class} <= set(made.unique().tolist()) <= {0, highest_class}  # a section may hold the body alone


@pytest.mark.parametrize("blank", [-1.0, 0.0])
def test_blank_slices_give_finite_numbers_and_gradients(blank: float) -> None:
    """A constant slice has no variance, and instance norm divides by it; inference meets such slices."""
    image = torch.full((2, 1, 32, 32), blank)
    domain = torch.tensor([SOURCE, TARGET])
    translator = parser_of("phantom_mr2ct", "synthesis").get_parsed_content("network_def")
    content = translator.encode(image, domain)
    segmenter = parser_of("phantom_mr2ct").get_parsed_content("network_def")
    for network, output in ((translator, translator.decode(content, domain)), (segmenter, segmenter(image))):
        output.square().mean().backward()
        assert bool(torch.isfinite(output).all())
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        assert gradients
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


class Bright(torch.nn.Module):
    """A 'segmenter' that calls what is brighter than 0 a liver."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([-image, image, *[torch.full_like(image, -9.0)] * 3], 1)


def large_patient(folder: Path) -> tuple[dict[str, str], np.ndarray]:
    """Slices with three windows of 32 x 32; the organ is in a corner, outside the middle window."""
    image = np.random.default_rng(0).uniform(0, 40, (96, 90, 4)).astype(np.float32)
    organ = np.zeros(image.shape, bool)
    organ[2:26, 60:88] = True
    image[organ] += 200
    affine = np.diag([-2.0, -2.0, 6.0, 1.0])
    item = {"image": str(write_volume(folder / "large.nii.gz", image, affine))}
    item["label"] = str(write_volume(folder / "large_label.nii.gz", organ.astype(np.uint8), affine))
    return item, organ


def test_an_organ_outside_the_middle_of_a_large_patient_is_learned_from(tmp_path: Path) -> None:
    item, _ = large_patient(tmp_path)
    parser = parser_of("abdomen_ct2mr", slice_size=[32, 32])
    slices = SliceSet([item], parser.get_parsed_content("train#target_preprocessing"), window_size=[32, 32])
    assert not slices.middle(torch.arange(4))[1].any()
    augmentation = parser.get_parsed_content("train#augmentation")
    batches = UnpairedSliceBatches(source=slices, batch_size=8, augmentation=augmentation)
    shown = torch.cat([batches.batch(index)["label"].flatten(1).any(1) for index in range(25)])
    # A window shows the organ where it starts above row 26 of 64 and behind column 28 of 58: in a quarter of the draws
    # and more, as a sixth of them lie at each border.
    assert shown.float().mean() > 0.2


def test_an_organ_outside_the_middle_of_a_large_patient_is_segmented(tmp_path: Path) -> None:
    item, organ = large_patient(tmp_path)
    parser = parser_of("abdomen_ct2mr", config="inference", slice_size=[32, 32], output_dir=str(tmp_path))
    case = parser.get_parsed_content("preprocessing")({"image": item["image"]})
    assert case["image"].shape == (1, 96, 90, 4)
    case["pred"] = parser.get_parsed_content("inferer")(case["image"][None], Bright())[0]
    parser.get_parsed_content("postprocessing")(case)
    written = nib.load(tmp_path / "large_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), organ)
    np.testing.assert_allclose(written.affine, np.diag([-2.0, -2.0, 6.0, 1.0]))
