"""Pictures: orientation, size in pixels, colours, and atomic writing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from scripts.core.errors import InputError
from scripts.evaluation.figures import case_figure, loss_curves
from scripts.evaluation.montage import (
    DOTS_PER_INCH,
    NORMALISED,
    STRUCTURE_COLOURS,
    Panel,
    edge_marks,
    slice_montage,
    structure_colour,
    upright,
)
from scripts.lab.experiments.charts import line_style
from scripts.lab.page import Figure
from skimage.color import deltaE_ciede2000, rgb2lab

LINE_COLOURS = [line_style(order)["color"] for order in range(7)]

SIGHT = {
    "full": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""What eyes make of linear RGB: Machado, Oliveira and Fernandes 2009, severity 1.0."""

PNG = b"\x89PNG\r\n\x1a\n"
NAMES = ["myocardium", "aorta"]


def pixels(path: Path) -> np.ndarray:
    """The picture as (row, column, RGB) in [0, 1], after a check that it is a PNG file."""
    assert path.read_bytes().startswith(PNG)
    return imread(path)[..., :3]


def in_pixels(inches: float) -> object:
    return pytest.approx(inches * DOTS_PER_INCH, abs=1)


def shows(path: Path, colour: str, tolerance: float = 0.02) -> bool:
    return bool((np.abs(pixels(path) - to_rgb(colour)).max(axis=-1) < tolerance).any())


@pytest.fixture
def volume() -> tuple[np.ndarray, np.ndarray]:
    """An image and its labels on a 24 x 20 x 9 grid: class 1 a box, class 2 a smaller one inside."""
    labels = np.zeros((24, 20, 9), np.uint8)
    labels[4:20, 4:16, 2:8], labels[8:14, 7:12, 3:6] = 1, 2
    return labels * 100.0 + np.random.default_rng(0).normal(size=labels.shape), labels


def test_upright_is_radiological() -> None:
    # Axis 0 runs from left to right, axis 1 from posterior to anterior: the last voxel of both is right-anterior,
    # and radiologists see anterior at the top and the patient's right on the left.
    ras = np.zeros((4, 3))
    ras[-1, -1] = 1.0  # right, anterior
    ras[0, 0] = 2.0  # left, posterior
    picture = upright(ras)
    assert picture.shape == (3, 4)
    assert picture[0, 0] == 1.0  # top left
    assert picture[-1, -1] == 2.0  # bottom right


def test_a_bright_voxel_at_right_anterior_is_drawn_at_the_top_left(tmp_path: Path) -> None:
    ras = np.full((10, 10), -1.0)
    ras[8:, 8:] = 1.0
    slice_montage([[Panel(image=ras, limits=NORMALISED)]], tmp_path / "voxel.png")
    picture = pixels(tmp_path / "voxel.png").mean(axis=-1)
    margin = int(0.1 * DOTS_PER_INCH)
    panel = picture[margin:-margin, margin:-margin]
    assert panel[: len(panel) // 8, : len(panel) // 8].mean() > 0.95
    assert panel[-len(panel) // 8 :, -len(panel) // 8 :].mean() < 0.05


def least_difference(colours: Sequence[str], sight: str) -> float:
    """CIEDE2000 of the two colours that some eyes find most alike; one that they can just see is about 2."""
    encoded = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(SIGHT[sight]).T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055))
    return min(float(deltaE_ciede2000(one, other)) for one, other in combinations(lab, 2))


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("palette", [STRUCTURE_COLOURS, LINE_COLOURS], ids=["structures", "lines"])
def test_colours_are_distinct_to_every_eye(palette: Sequence[str], sight: str) -> None:
    assert least_difference(palette, sight) > 10


def test_a_palette_that_colour_blind_readers_confuse_is_found() -> None:
    matplotlibs = ["#1F77B4", "#FF7F0E", "#2CA02C", "#D62728", "#9467BD", "#8C564B", "#E377C2"]
    assert least_difference(matplotlibs, "full") > 10
    assert least_difference(matplotlibs, "protanopia") < 5
    assert least_difference(["#FF0000", "#00AA00"], "deuteranopia") < 5


def test_structures_have_colours_of_their_own() -> None:
    assert len({structure_colour(k) for k in range(1, 8)}) == 7
    assert structure_colour(8) == structure_colour(1)


def test_montage_has_the_expected_size(tmp_path: Path) -> None:
    panel = Panel(image=np.zeros((8, 4)), limits=NORMALISED)
    slice_montage([[panel] * 3] * 2, tmp_path / "grid.png", pixel_aspect=4.0)
    # three panels of 2 inches, two gaps of 0.05, two margins of 0.1; a panel is 2 * (4 * 4) / 8 = 4 inches high
    width, height = 3 * 2 + 2 * 0.05 + 2 * 0.1, 2 * 4 + 0.05 + 0.08 + 0.1
    assert pixels(tmp_path / "grid.png").shape[:2] == (in_pixels(height), in_pixels(width))


def test_legend_and_outlines_show_the_structures_colours(tmp_path: Path) -> None:
    labels = np.zeros((16, 16), int)
    labels[:, :] = 2  # fills the picture: its outline closes at the edge
    panel = Panel(image=np.full((16, 16), -1.0), labels=labels, limits=NORMALISED)
    slice_montage([[panel]], tmp_path / "outline.png")
    assert shows(tmp_path / "outline.png", STRUCTURE_COLOURS[1])
    assert not shows(tmp_path / "outline.png", STRUCTURE_COLOURS[0])
    slice_montage([[panel]], tmp_path / "legend.png", label_names=NAMES)
    assert shows(tmp_path / "legend.png", STRUCTURE_COLOURS[0])


def test_case_figure(volume: tuple, tmp_path: Path) -> None:
    image, labels = volume
    maps = {"prediction": np.roll(labels, 2, 0), "truth": labels}
    affine = np.diag([1.0, 1.2, 4.0, 1.0])
    case_figure(image, maps, affine, tmp_path / "case.png", label_names=NAMES, title="case 1")
    # labelled slices 2..7, all of one area: slice 2 is the first of the largest; the quarters are 3, 4 and 6 (rounded),
    # of which 4 and 6 are the farthest: three rows of image, prediction and truth
    width, height = 0.3 + 3 * 2 + 2 * 0.05 + 0.1, 0.32 + 0.24 + 0.36 + 3 * 2 * (20 * 1.2) / 24 + 2 * 0.05
    assert pixels(tmp_path / "case.png").shape[:2] == (in_pixels(height), in_pixels(width))
    for colour in STRUCTURE_COLOURS[:2]:
        assert shows(tmp_path / "case.png", colour)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_case_figure_of_any_stacking_axis_and_without_labels(axis: int, volume: tuple, tmp_path: Path) -> None:
    image, labels = volume
    for name, truth in (("some", labels), ("none", np.zeros_like(labels))):
        path = tmp_path / f"{name}.png"
        case_figure(image, {"truth": truth}, np.diag([1, 1, 4, 1]), path, label_names=NAMES, title="", slice_axis=axis)
        assert pixels(path).size


def test_a_case_figure_is_the_same_for_every_storage_of_a_volume(volume: tuple, tmp_path: Path) -> None:
    """Stored as RAS with voxels of 1 x 2 x 4 mm, and as inferior, posterior, right."""
    image, labels = volume
    settings = {"label_names": NAMES, "title": "case"}
    case_figure(image, {"truth": labels}, np.diag([1.0, 2.0, 4.0, 1.0]), tmp_path / "ras.png", **settings)
    turned = [array.transpose(2, 1, 0)[::-1, ::-1] for array in (image, labels)]
    affine = np.array([[0, 0, 1.0, 0], [0, -2.0, 0, 38], [-4.0, 0, 0, 32], [0, 0, 0, 1]])
    case_figure(turned[0], {"truth": turned[1]}, affine, tmp_path / "ipr.png", **settings)
    assert (tmp_path / "ras.png").read_bytes() == (tmp_path / "ipr.png").read_bytes()


@pytest.mark.parametrize(
    ("orientation", "slice_axis", "marks"),
    [("RAS", 2, ("R", "L")), ("RAS", 1, ("R", "L")), ("RAS", 0, ("A", "P")), ("LPS", 2, ("L", "R")), (None, 2, ())],
)
def test_the_sides_of_upright_slices(orientation: str | None, slice_axis: int, marks: tuple[str, ...]) -> None:
    """The last voxel along the first axis of a slice is drawn on the left, see ``upright``."""
    assert edge_marks(orientation, slice_axis) == marks


def test_marks_are_drawn_at_the_edges(tmp_path: Path) -> None:
    panel = Panel(image=np.full((16, 16), -1.0), limits=NORMALISED)
    slice_montage([[panel]], tmp_path / "plain.png")
    slice_montage([[panel]], tmp_path / "marked.png", marks=("R", "L"))
    columns = np.flatnonzero((pixels(tmp_path / "marked.png") != pixels(tmp_path / "plain.png")).any((0, 2)))
    width = pixels(tmp_path / "plain.png").shape[1]
    assert ((columns < 0.15 * width) | (columns > 0.85 * width)).all()
    assert columns.min() < width / 2 < columns.max()


def test_loss_curves(tmp_path: Path) -> None:
    rows = [f"{i},{10 / (i + 1)},{'' if i % 2 else 0.5}," for i in range(60)]  # gaps, and a column without values
    (tmp_path / "log.csv").write_text("\n".join(["iteration,total,adversarial,unused", *rows]))
    loss_curves(tmp_path / "log.csv", tmp_path / "curves.png")
    # two columns have values: two panels of 2.9 inches beside each other
    assert pixels(tmp_path / "curves.png").shape[1] == in_pixels(2 * 2.9)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "header ''"),
        ("step,total\n1,2\n", "header 'step,total'"),
        ("iteration,total\n", "0 rows"),
        ("iteration,total\n1,high\n", "cannot be read"),
        ("iteration,total\n1,2\n2\n", "cannot be read"),
        ("iteration,total\n1,\n", "no values"),
        ("iteration,total\n1,2,3\n", "2 names and rows of 3 cells"),
    ],
)
def test_a_bad_log_gets_a_sentence(text: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(InputError, match=found):
        loss_curves(tmp_path / "log.csv", tmp_path / "curves.png")
    with pytest.raises(InputError, match="cannot be read"):
        loss_curves(tmp_path / "missing.csv", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_a_full_disk_leaves_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_the_disk(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fill_the_disk)
    with pytest.raises(InputError, match="No space left on device"):
        slice_montage([[Panel(image=np.zeros((4, 4)))]], tmp_path / "eval" / "picture.png")
    assert list((tmp_path / "eval").iterdir()) == []


def test_data_uri_holds_the_file(tmp_path: Path) -> None:
    slice_montage([[Panel(image=np.zeros((4, 4)))]], tmp_path / "picture.png")
    head, content = Figure(path=tmp_path / "picture.png", caption="").source.split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(content) == (tmp_path / "picture.png").read_bytes()


def test_bad_inputs_are_named(volume: tuple, tmp_path: Path) -> None:
    image, labels = volume
    with pytest.raises(ValueError, match=r"rows of one length: these have \[1, 2\]"):
        slice_montage([[Panel(image=image[0])], [Panel(image=image[0])] * 2], tmp_path / "a.png")
    with pytest.raises(ValueError, match="rows of one length"):
        slice_montage([], tmp_path / "a.png")
    with pytest.raises(ValueError, match="one 3D shape"):
        case_figure(image[:5], {"truth": labels}, np.eye(4), tmp_path / "a.png", label_names=NAMES, title="")
    assert list(tmp_path.iterdir()) == []
