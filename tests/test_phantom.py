"""The built-in data set: files, geometry, anatomy, contrast, determinism."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, find_objects
from scipy.ndimage import label as components
from scripts.core.errors import InputError
from scripts.lab.phantom import generate as phantom
from scripts.lab.phantom.contrast import CT_VALUES, MR_VALUES, Contrast, mr_image, paint
from scripts.lab.phantom.generate import MODALITIES, PhantomCase, anatomy, make_case, write_phantom
from scripts.lab.phantom.types import LABEL_VALUES, Layer, Subject, Tissue
from test_phantom_shapes import cube

SEED = 4
CASES = 2
MYOCARDIUM, ATRIUM, VENTRICLE, AORTA = 205, 420, 500, 820


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "new" / "set"
    write_phantom(out, cases=CASES, seed=SEED, progress=False)
    return out


@pytest.fixture(scope="module")
def volumes(folder: Path) -> dict[str, list[PhantomCase]]:
    read: dict[str, list[PhantomCase]] = {}
    for modality in MODALITIES:
        for index in range(CASES):
            stem = folder / f"{modality}_train" / f"{modality}_train_{1001 + index}"
            image, label = nib.load(f"{stem}_image.nii.gz"), nib.load(f"{stem}_label.nii.gz")
            case = PhantomCase(np.asarray(image.dataobj), np.asarray(label.dataobj), image.affine)
            read.setdefault(modality, []).append(case)
    return read


def every(volumes: dict[str, list[PhantomCase]]) -> Iterator[tuple[str, PhantomCase]]:
    for modality, cases in volumes.items():
        for case in cases:
            yield modality, case


def centre(case: PhantomCase, value: int) -> np.ndarray:
    return case.affine[:3, :3] @ np.argwhere(case.label == value).mean(0) + case.affine[:3, 3]


def volume_ml(case: PhantomCase, value: int) -> float:
    return float((case.label == value).sum() * abs(np.linalg.det(case.affine[:3, :3])) / 1000)


def around(case: PhantomCase, value: int, margin: int = 8) -> PhantomCase:
    """The part of a case round one structure, for quick distance maps."""
    box = find_objects((case.label == value).astype(int))[0]
    wide = tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in box)
    return PhantomCase(case.image[wide], case.label[wide], case.affine)


# Files ----------------------------------------------------------------------------------------------------------------


def test_files_carry_mm_whs_names_and_nothing_else_is_left(folder: Path) -> None:
    names = {
        f"{modality}_train/{modality}_train_{number}_{kind}.nii.gz"
        for modality in ("ct", "mr")
        for number in (1001, 1002)
        for kind in ("image", "label")
    }
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == names


def test_headers_agree_between_image_and_label(folder: Path) -> None:
    for path in folder.rglob("*_image.nii.gz"):
        image = nib.load(path)
        label = nib.load(str(path).replace("_image", "_label"))
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        for file in (image, label):
            assert file.get_data_dtype() == np.int16
            assert (int(file.header["qform_code"]), int(file.header["sform_code"])) == (1, 1)
            assert file.header.get_xyzt_units()[0] == "mm"
            # A quaternion of three float32 numbers places a corner 200 mm away to about a micrometre.
            np.testing.assert_allclose(file.get_qform(), file.get_sform(), atol=1e-3)


def test_every_label_file_holds_the_seven_structures(volumes: dict[str, list[PhantomCase]]) -> None:
    for _, case in every(volumes):
        assert set(np.unique(case.label)) == {0, 205, 420, 500, 550, 600, 820, 850}
    assert set(LABEL_VALUES.values()) == {205, 420, 500, 550, 600, 820, 850}


def test_orientation_and_spacing_differ_between_cases(volumes: dict[str, list[PhantomCase]]) -> None:
    codes = [nib.aff2axcodes(case.affine) for _, case in every(volumes)]
    assert len(set(codes)) >= 3
    spacings = [tuple(np.sort(np.linalg.norm(case.affine[:3, :3], axis=0)).round(3)) for _, case in every(volumes)]
    assert len(set(spacings)) == len(spacings)
    for modality, case in every(volumes):
        fine, _, thick = np.sort(np.linalg.norm(case.affine[:3, :3], axis=0))
        assert (
            (1.3 < fine < 1.8 and 2.1 < thick < 3.1) if modality == "ct" else (1.6 < fine < 2.0 and 3.4 < thick < 5.1)
        )


def test_mr_is_oblique_and_ct_is_not(volumes: dict[str, list[PhantomCase]]) -> None:
    # A stack turned by t about an axis n tilts voxel axis k by at most t; the mean of sin^2 over the three axes is at
    # least 2/3 sin^2 t, hence at 5 degrees one axis is tilted by more than 4.
    for modality, case in every(volumes):
        tilt = np.degrees(nib.affines.obliquity(case.affine)).max()
        assert 4 < tilt < 20.1 if modality == "mr" else tilt < 1e-3


def test_grids_follow_the_code_they_are_asked_for() -> None:
    for code in (*phantom.CT_CODES, *phantom.MR_CODES):
        affine, shape = phantom._grid(code, (1.0, 2.0, 3.0), (10, 20, 30), np.array([5.0, 6.0, 7.0]), np.eye(3))
        assert "".join(nib.aff2axcodes(affine)) == code
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        # Left-right 10 x 1 mm, back-front 20 x 2 mm, foot-head 30 x 3 mm, whatever the order in the file.
        np.testing.assert_allclose(spacing * 10, shape, rtol=1e-6)
        np.testing.assert_allclose(affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3], [5, 6, 7], atol=1e-4)


# Determinism ----------------------------------------------------------------------------------------------------------


def test_more_cases_leave_earlier_ones_and_old_files_are_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ct_train").mkdir()
    (tmp_path / "ct_train" / "ct_train_1001_image.nii.gz").write_bytes(b"stale")
    (tmp_path / "notes.txt").write_text("mine")
    write_phantom(tmp_path, cases=1, seed=SEED, progress=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    written = sorted(tmp_path.rglob("*.nii.gz"))
    assert len(written) == 4
    for path in written:
        old, new = nib.load(folder / path.relative_to(tmp_path)), nib.load(path)
        np.testing.assert_array_equal(np.asarray(old.dataobj), np.asarray(new.dataobj))
        np.testing.assert_array_equal(old.affine, new.affine)


def test_seeds_and_cases_give_other_people(volumes: dict[str, list[PhantomCase]]) -> None:
    first, second = volumes["mr"]
    other = make_case("mr", 0, seed=SEED + 1)
    assert len({round(volume_ml(case, VENTRICLE), 1) for case in (first, second, other)}) == 3


def test_the_sets_are_unpaired(volumes: dict[str, list[PhantomCase]]) -> None:
    for ct, mr in zip(volumes["ct"], volumes["mr"], strict=True):
        ratios = [volume_ml(ct, value) / volume_ml(mr, value) for value in LABEL_VALUES.values()]
        assert np.abs(np.log(ratios)).max() > 0.1


# Anatomy --------------------------------------------------------------------------------------------------------------


def test_volumes_are_plausible(volumes: dict[str, list[PhantomCase]]) -> None:
    bounds = {
        MYOCARDIUM: (80, 230),
        ATRIUM: (45, 120),
        VENTRICLE: (60, 240),
        AORTA: (35, 110),
        550: (45, 170),
        600: (45, 190),
        850: (30, 100),
    }
    for _, case in every(volumes):
        for value, (low, high) in bounds.items():
            assert low < volume_ml(case, value) < high, value


def test_positions_in_world_coordinates(volumes: dict[str, list[PhantomCase]]) -> None:
    for _, case in every(volumes):
        left_ventricle, left_atrium = centre(case, VENTRICLE), centre(case, ATRIUM)
        right_atrium, right_ventricle, aorta = centre(case, 550), centre(case, 600), centre(case, AORTA)
        # World x grows to the patient's right, y to the front, z to the head.
        assert left_ventricle[0] < left_atrium[0] < right_atrium[0]
        assert left_atrium[1] < left_ventricle[1] < right_ventricle[1]
        assert left_ventricle[2] < left_atrium[2] < aorta[2]
        assert centre(case, 850)[0] < aorta[0]


def test_bone_stands_behind_the_heart_and_table_below_the_back(volumes: dict[str, list[PhantomCase]]) -> None:
    for case in volumes["ct"]:
        points = np.argwhere(case.image > 480) @ case.affine[:3, :3].T + case.affine[:3, 3]
        atrium = centre(case, ATRIUM)
        near = points[np.abs(points[:, 0] - atrium[0]) < 30]
        assert np.median(near[:, 1]) < atrium[1] - 30
        back = np.argwhere(case.image > 20) @ case.affine[:3, :3].T + case.affine[:3, 3]
        table = np.argwhere(np.abs(case.image + 250) < 150) @ case.affine[:3, :3].T + case.affine[:3, 3]
        assert table[:, 1].min() < np.percentile(back[:, 1], 0.5) - 20


def test_aorta_and_wall_have_the_size_of_an_adult(volumes: dict[str, list[PhantomCase]]) -> None:
    for case in volumes["ct"]:
        spacing = np.linalg.norm(case.affine[:3, :3], axis=0)
        # The largest ball in a tube has the tube's radius, in a shell half its thickness.
        radius = distance_transform_edt(around(case, AORTA).label == AORTA, sampling=spacing).max()
        assert 13 < radius < 21
        wall = around(case, MYOCARDIUM).label == MYOCARDIUM
        thickness = 2 * distance_transform_edt(wall, sampling=spacing).max()
        assert 8 < thickness < 22


def test_structures_are_in_one_piece_and_inside_the_field(volumes: dict[str, list[PhantomCase]]) -> None:
    for _, case in every(volumes):
        for value in (MYOCARDIUM, ATRIUM, VENTRICLE, AORTA):
            mask = case.label == value
            sizes = np.bincount(components(mask)[0].ravel())[1:]
            assert sizes.max() / sizes.sum() > 0.98
            assert not any(np.moveaxis(mask, axis, 0)[end].any() for axis in range(3) for end in (0, -1))


def test_myocardium_is_a_shell_open_towards_the_atrium(volumes: dict[str, list[PhantomCase]]) -> None:
    for case in volumes["ct"]:
        near = around(case, VENTRICLE).label
        rim = (distance_transform_edt(near != VENTRICLE) < 1.5) & (near != VENTRICLE)
        assert (near[rim] == MYOCARDIUM).mean() > 0.6
        assert (near[rim] == ATRIUM).mean() > 0.03


@pytest.fixture(scope="module")
def coarse() -> dict[Tissue, np.ndarray]:
    """Where each tissue of an average person lies: body coordinates of its voxels on a 4 mm grid."""
    grid = cube(70, 4.0)
    tissues = np.zeros(grid.shape, int)
    for layer in anatomy(grid, Subject.draw(np.random.default_rng(0))):
        tissues[layer.box][layer.distance < 0] = layer.tissue
    places = np.stack([grid.whole.x, grid.whole.y, grid.whole.z], axis=-1)
    return {tissue: places[tissues == tissue] for tissue in Tissue}


def test_every_tissue_occurs(coarse: dict[Tissue, np.ndarray]) -> None:
    # The windpipe's 1.6 mm wall and the branching vessels are finer than the grid, but not absent.
    assert [tissue.name for tissue, places in coarse.items() if len(places) == 0] == []
    assert set(CT_VALUES) == set(MR_VALUES) == set(Tissue)


def test_organs_lie_where_they_belong(coarse: dict[Tissue, np.ndarray]) -> None:
    centres = {tissue: places.mean(0) for tissue, places in coarse.items()}
    heart = centres[Tissue.MYOCARDIUM]
    assert heart[0] < -10
    assert centres[Tissue.LIVER][0] > 20
    assert centres[Tissue.LIVER][2] < heart[2] - 30
    assert centres[Tissue.SPLEEN][0] < -50
    assert centres[Tissue.SPINAL_CORD][1] < heart[1] - 70
    lung = coarse[Tissue.LUNG]
    assert 0.35 < (lung[:, 0] > 0).mean() < 0.7
    dome = coarse[Tissue.LIVER][np.argmax(coarse[Tissue.LIVER][:, 2])]
    above = lung[(np.abs(lung[:, 0] - dome[0]) < 5) & (np.abs(lung[:, 1] - dome[1]) < 5)]
    assert above[:, 2].min() > dome[2]


# Contrast -------------------------------------------------------------------------------------------------------------


def contrast(case: PhantomCase, value: int) -> float:
    """Mean inside minus mean within 8 mm outside, over the image's range from the 1st to the 99th percentile."""
    spacing = np.linalg.norm(case.affine[:3, :3], axis=0)
    near = around(case, value)
    away = distance_transform_edt(near.label != value, sampling=spacing)
    low, high = np.percentile(case.image[::2, ::2, ::2], (1, 99))
    inside, outside = near.image[away == 0].mean(), near.image[(away > 0) & (away < 8)].mean()
    return float((inside - outside) / (high - low))


def test_modalities_differ_more_in_the_myocardium_than_in_the_aorta(volumes: dict[str, list[PhantomCase]]) -> None:
    gap = {
        value: np.mean([contrast(case, value) for case in volumes["ct"]])
        - np.mean([contrast(case, value) for case in volumes["mr"]])
        for value in (MYOCARDIUM, AORTA)
    }
    # The aorta is brighter than what surrounds it in both. Around the myocardium blood and fat outshine it in MR; in CT
    # lung and fat are far darker and make up for the blood. By the tissue tables, with half blood, a quarter fat and a
    # quarter lung around: MR (245 - 547) / 900 = -0.34, CT (104 + 52) / 1400 = 0.11, a gap of 0.4.
    assert gap[MYOCARDIUM] > 0.2
    assert gap[MYOCARDIUM] > 2 * abs(gap[AORTA])
    assert min(contrast(case, AORTA) for _, case in every(volumes)) > 0.05


def test_blood_is_brighter_than_myocardium_in_both(volumes: dict[str, list[PhantomCase]]) -> None:
    for _, case in every(volumes):
        means = {value: case.image[case.label == value].mean() for value in (MYOCARDIUM, ATRIUM, VENTRICLE, AORTA)}
        assert min(means[ATRIUM], means[VENTRICLE], means[AORTA]) > 1.4 * means[MYOCARDIUM]


def test_intensities_have_their_modalitys_range(volumes: dict[str, list[PhantomCase]]) -> None:
    for case in volumes["ct"]:
        assert case.image.min() >= -1024
        assert abs(np.median(case.image[case.image < -930]) + 1000) < 25
        lung = case.image[(case.image > -920) & (case.image < -700)]
        assert abs(np.median(lung) + 830) < 60
        assert abs(case.image[case.label == MYOCARDIUM].mean() - 104) < 45
    for case in volumes["mr"]:
        assert case.image.min() >= 0


def test_mr_noise_without_signal_is_rayleigh_distributed() -> None:
    # Magnitude of two Gaussians of deviation s: mean s sqrt(pi / 2), deviation s sqrt(2 - pi / 2), ratio 1.913.
    grid = cube(48, 2.0)
    image, label = mr_image([], grid, np.diag([2.0, 2.0, 2.0, 1.0]), np.random.default_rng(0))
    assert image.mean() / image.std() == pytest.approx(1.913, rel=0.02)
    assert not label.any()


def test_surface_voxels_take_a_share_of_either_side() -> None:
    grid = cube(21, 1.0)
    plane = Layer(Tissue.FAT, grid.whole.box, grid.whole.x, 500)  # fat where x < 0; the voxel at x = 0 is half fat
    table = {Tissue.FAT: Contrast(100, 0, 7)}
    picture = paint([plane], grid, table, np.random.default_rng(0), np.zeros(grid.shape, np.float32))
    np.testing.assert_allclose(picture.image[[5, 10, 15], 0, 0], [100, 50, 0], atol=1e-3)
    np.testing.assert_array_equal(picture.labels[[5, 10, 15], 0, 0], [500, 0, 0])
    np.testing.assert_array_equal(picture.texture[[5, 15], 0, 0], [7, 0])


def test_contrast_ordering_turns_over_between_modalities() -> None:
    # Fat outshines muscle in MR and is darker in CT; bone likewise the other way round.
    assert MR_VALUES[Tissue.FAT].mean > MR_VALUES[Tissue.MYOCARDIUM].mean
    assert CT_VALUES[Tissue.FAT].mean < CT_VALUES[Tissue.MYOCARDIUM].mean
    assert MR_VALUES[Tissue.CORTICAL_BONE].mean < MR_VALUES[Tissue.MUSCLE].mean
    assert CT_VALUES[Tissue.CORTICAL_BONE].mean > CT_VALUES[Tissue.MUSCLE].mean


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "name"), [({"cases": 0}, "cases"), ({"cases": -3}, "cases"), ({"seed": -1}, "seed")]
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, settings: dict[str, int], name: str) -> None:
    with pytest.raises(InputError, match=rf"--{name}: {settings[name]}\. Expected a whole number of at least"):
        write_phantom(tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="cannot be written"):
        write_phantom(tmp_path / "out", cases=1, progress=False)


def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: bytes) -> int:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    small = PhantomCase(np.zeros((2, 2, 2), np.int16), np.zeros((2, 2, 2), np.int16), np.eye(4))
    monkeypatch.setattr(phantom, "make_case", lambda *_, **__: small)
    old = tmp_path / "ct_train" / "ct_train_1001_image.nii.gz"
    old.parent.mkdir()
    old.write_bytes(b"old")
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match="No space left on device"):
        write_phantom(tmp_path, cases=1, progress=False)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [old]
    assert old.read_bytes() == b"old"


def test_signature_is_what_the_command_line_calls() -> None:
    parameters = inspect.signature(write_phantom).parameters
    assert {name: value.default for name, value in parameters.items() if name != "out"} == {
        "cases": 10,
        "seed": 0,
        "progress": True,
    }
