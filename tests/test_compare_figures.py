"""A comparison's figures, mask statistics and page, from all of its files and from some of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from comparison_folders import AFFINE, CASES, SHAPE, add_volumes, known_results, write_comparison
from conftest import refused
from matplotlib.axes import Axes
from matplotlib.image import imread
from scripts.core.files import write_json
from scripts.lab.cli import main
from scripts.lab.experiments.case_volumes import ComparisonVolumes, Cut, Volume
from scripts.lab.experiments.charts import dice_chart, gap_chart, line_style, loss_chart
from scripts.lab.experiments.mask_statistics import mask_correlations, mask_numbers
from scripts.lab.experiments.method_summaries import summarise_methods
from scripts.lab.experiments.pictures import mask_picture, segmentation_picture, shown_cases, translation_picture
from scripts.lab.experiments.results import read_comparison

CHARTS = ["dice", "structures", "gap", "losses"]
MONTAGES = ["translations", "segmentations", "mask"]


@pytest.fixture(scope="module", autouse=True)
def _small_pictures() -> Iterator[None]:
    """A quarter of the dots: a sixteenth of the work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.evaluation.montage.DOTS_PER_INCH", 40)
        patch.setattr("scripts.lab.experiments.case_volumes.CUT_PIXELS", 64)
        yield


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole comparison with its report."""
    results = {
        method: {seed: dict(list(cases.items())[:2]) for seed, cases in seeds.items()}
        for method, seeds in known_results().items()
    }
    folder = write_comparison(tmp_path_factory.mktemp("comparison"), results, failed={("style", 0): "out of <memory>"})
    add_volumes(folder)
    main(["report", str(folder)])
    return folder


def is_blank(path: Path) -> bool:
    return float(imread(path)[..., :3].std()) < 0.02


@pytest.mark.parametrize("name", [*CHARTS, *MONTAGES])
def test_every_figure_is_drawn(name: str, comparison: Path) -> None:
    assert not is_blank(comparison / "plots" / f"{name}.png")
    assert (comparison / "plots" / f"{name}.svg").is_file() == (name in CHARTS)


def test_the_page_stands_alone(comparison: Path) -> None:
    page = (comparison / "report.html").read_text()
    assert page.count("<img") == len(CHARTS) + len(MONTAGES)
    assert page.count('src="data:image/') == page.count("src=")
    assert "<td>65.0 ± 7.1</td>" in page
    assert '<p class="highlight">60 %</p>' in page
    assert "style, seed 0: failed. out of &lt;memory&gt;" in page
    assert "run training --seed 1 # glua" in page
    assert "translator_losses: no training log" in page  # the one thing that this comparison has not


def test_the_mask_lies_on_the_errors(comparison: Path) -> None:
    glua = json.loads((comparison / "mask.json").read_text())["glua"]
    assert [case["case"] for case in glua["cases"]] == CASES[:2] * 2  # two cases, two seeds
    for region in ("field_of_view", "structures"):
        # a feature is one voxel here: smoothing changes nothing
        assert glua["correlation"][region] == pytest.approx({"error": 1.0, "smoothed_error": 1.0})
    assert "Correlation of the local mask with the errors of none" in (comparison / "table.md").read_text()


def test_mask_correlation_by_construction() -> None:
    mask = np.zeros((8, 8, 3))
    mask[1:7, 1:7], mask[1:4, 1:7] = 0.2, 0.8
    everything = np.ones(mask.shape, bool)
    for error, expected in ((mask == 0.8, 1.0), (mask != 0.8, -1.0)):
        # outside the field of view the mask is 0: errors there (second case) do not count
        found = mask_correlations(mask, error, everything, feature_voxels=(1, 1, 1))
        for region in found.values():
            assert list(region.values()) == pytest.approx([expected] * 2)
    constant = mask_correlations(np.full(mask.shape, 0.5), mask == 0.8, everything, feature_voxels=(2, 2, 1))
    assert set(constant["field_of_view"].values()) == {None}
    nothing = mask_correlations(np.zeros(mask.shape), mask == 0.8, everything, feature_voxels=(2, 2, 1))
    assert set(nothing["field_of_view"].values()) == {None}


def test_smoothing_lets_a_coarse_mask_agree_with_scattered_errors() -> None:
    density = np.repeat(np.linspace(0.05, 0.95, 40)[:, None], 40, 1)[..., None]
    error = np.random.default_rng(0).random(density.shape) < density
    found = mask_correlations(density, error, np.ones_like(error), feature_voxels=(5, 5, 1))["field_of_view"]
    assert found["smoothed_error"] > found["error"] + 0.2  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"shapes .* differ"):
        mask_correlations(density, error[:9], error, feature_voxels=(5, 5, 1))


def part_of(comparison: Path, folder: Path, *removed: str) -> Path:
    """A copy of a comparison without its report and some of its parts, whose data are elsewhere."""
    shutil.copytree(comparison, folder, ignore=shutil.ignore_patterns("plots", "report.html", "table.*", "mask.*"))
    (folder / "comparison.json").write_text((folder / "comparison.json").read_text().replace(str(comparison), "/gone"))
    for name in removed:
        shutil.rmtree(folder / name)
    return folder


@pytest.mark.parametrize(
    ("removed", "left_out"),
    [
        (["data"], {*MONTAGES}),
        (["methods/none_seed0"], {"gap", "mask"}),
        (["methods", "translators", "data"], {*CHARTS, *MONTAGES}),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, list) else "",
)
def test_a_report_of_an_incomplete_comparison(
    removed: list[str], left_out: set[str], comparison: Path, tmp_path: Path
) -> None:
    folder = part_of(comparison, tmp_path / "moved", *removed)
    main(["report", str(folder)])
    drawn = {path.stem for path in (folder / "plots").glob("*.png")}
    assert drawn == {*CHARTS, *MONTAGES} - left_out
    page = (folder / "report.html").read_text()
    assert page.count("<img") == len(drawn)
    assert page.count("<li>") >= len(left_out)
    assert (folder / "table.md").is_file()


def test_the_judgement_of_snapshots_is_shown_where_it_was_made(comparison: Path, tmp_path: Path) -> None:
    assert "selection.md" not in (comparison / "report.html").read_text() + (comparison / "table.md").read_text()
    folder = write_comparison(tmp_path, {}, failed={("glua", 0): "killed"})
    (folder / "plots").mkdir()
    shutil.copy(comparison / "plots" / "dice.png", folder / "plots" / "selection.png")
    (folder / "selection.md").write_text("# Which score finds the best snapshot?\n")
    main(["report", str(folder)])
    page, table = (folder / "report.html").read_text(), (folder / "table.md").read_text()
    assert page.count("<img") == len(list((folder / "plots").glob("*.png")))
    assert "Numbers: selection.md" in page
    assert "[selection.md](selection.md)" in table
    assert "![plots/selection.png](plots/selection.png)" in table


def test_the_page_begins_with_the_recommended_method(tmp_path: Path) -> None:
    # its 63 % between 30 and 80 %: two thirds of the gap
    results = known_results()
    results["recommended"] = results.pop("better")
    main(["report", str(write_comparison(tmp_path, results))])
    page = (tmp_path / "report.html").read_text()
    assert '<p class="highlight">66 %</p>' in page
    assert "is closed by recommended." in page


def test_a_target_without_labels_is_shown_without_truth(comparison: Path, tmp_path: Path) -> None:
    """Neither numbers nor errors; translations, segmentations and losses as ever."""
    folder = tmp_path / "unlabelled"
    shutil.copytree(comparison, folder, ignore=shutil.ignore_patterns("plots", "report.html", "table.*", "mask.*"))
    content = json.loads((folder / "comparison.json").read_text())
    write_json(folder / "comparison.json", content | {"dataset_dir": "data"})
    target = json.loads((folder / "data" / "ct.json").read_text())
    write_json(
        folder / "data" / "ct.json", target | {"validation": [{"image": e["image"]} for e in target["validation"]]}
    )
    for run in (folder / "methods").iterdir():
        record = json.loads((run / "run.json").read_text())
        record["steps"]["inference"] = record["steps"].pop("evaluation")
        write_json(run / "run.json", record)
        for name in ("eval_largest_component", "eval/summary.json", "eval/metrics.csv"):
            shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink(missing_ok=True)
    main(["report", str(folder)])
    drawn = {path.stem for path in (folder / "plots").glob("*.png")}
    assert drawn == {"losses", "translations", "segmentations"}
    page = (folder / "report.html").read_text()
    assert "The first and the last held-out case of the target." in page
    assert "have no labels: nothing was measured" in page
    assert "Dice" not in page.split("</style>")[1].split("Not drawn")[0]


def test_the_gaps_bars_are_of_the_seeds_that_all_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 1 of glua is better by 20 points in the myocardium; no bound has it."""
    drawn: list[tuple[float, float]] = []
    bar = Axes.barh
    monkeypatch.setattr(
        Axes, "barh", lambda self, y, width, **k: drawn.append((k["left"], width)) or bar(self, y, width, **k)
    )
    gap_chart(summarise_methods(read_comparison(write_comparison(tmp_path))), ["myocardium"], tmp_path / "gap")
    (_, glua) = drawn
    assert glua == pytest.approx((20.0, 30.0))


def test_missing_parts_are_named(comparison: Path, tmp_path: Path) -> None:
    masks = ["methods/glua_seed0/inference", "methods/glua_seed1/inference"]
    part = read_comparison(part_of(comparison, tmp_path / "part", "translators", *masks))
    picture = tmp_path / "picture.png"
    assert refused(translation_picture, part, picture).found == "no translated volume"
    assert refused(mask_picture, part, picture).found == "no local mask of the cases shown"
    assert "no local mask" in refused(mask_numbers, part).found
    damaged = part.folder / "methods" / "none_seed0" / "eval" / "predictions" / "ct_2_seg.nii.gz"
    damaged.write_bytes(b"no volume")
    assert refused(segmentation_picture, part, picture).file == str(damaged)
    assert not picture.exists()


def test_median_and_worst_case(comparison: Path) -> None:
    cases, sentence = shown_cases(read_comparison(comparison), {})
    assert "by the mean Dice of glua: the median (ct_2) and the worst (ct_1)" in sentence
    # both cases have one Dice: by their names ct_1 stands first, and the second is the better of two medians
    assert cases == {"ct_2": "median", "ct_1": "worst"}


def test_charts_need_results(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {}, failed={("glua", 0): "killed"})
    summaries = summarise_methods(read_comparison(folder))
    assert refused(dice_chart, summaries, tmp_path / "dice").found == "no run with results"
    assert "both bounds" in refused(gap_chart, summaries, ["aorta"], tmp_path / "gap").found
    assert refused(loss_chart, {"glua": []}, tmp_path / "losses").found == "no training log"
    assert not list(tmp_path.glob("*.png"))


def test_a_chart_is_the_same_each_time(tmp_path: Path) -> None:
    summaries = summarise_methods(read_comparison(write_comparison(tmp_path)))
    first, second = (dice_chart(summaries, tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second
    assert first.startswith(b"<?xml")


def test_lines_can_be_told_apart() -> None:
    assert len({str(line_style(order)) for order in range(28)}) == 28


def test_volumes_are_turned_to_the_tasks_axes(comparison: Path) -> None:
    volumes = ComparisonVolumes(read_comparison(comparison))
    truth = volumes.truth(volumes.held_out()["ct_1"]["label"])
    # stored as LPS: the first two axes run the other way in RAS
    assert truth.voxels.shape == SHAPE
    assert truth.voxels[-1 - 4, -1 - 5, 2] == 1
    assert truth.spacing_mm == pytest.approx(tuple(np.abs(np.diag(AFFINE)[:3])))
    image = volumes.image(volumes.held_out()["ct_1"]["image"], "target_intensity").voxels
    assert float(image[-1 - 4, -1 - 5, 2]) == pytest.approx(2 * 0.35 - 1, abs=0.15)  # 350 of 0..1000


def test_a_cut_is_in_millimetres() -> None:
    # a square of 20 mm from 10 to 30 mm on a grid of 1 x 2 mm, seen through a window of 40 mm about its centre
    voxels = np.zeros((60, 30, 2), np.uint8)
    voxels[10:30, 5:15] = 1
    labels = Volume(voxels=voxels, spacing_mm=(1.0, 2.0, 5.0))
    cut = Cut.around(labels, 2, margin_mm=10.0)
    assert (cut.centre_mm, cut.side_mm) == ((20.0, 20.0), 40.0)
    seen = cut.of(labels, 0, is_label=True)
    assert seen.shape == (64, 64)
    assert seen[16:48, 16:48].all()
    assert seen.sum() == 32**2
    assert Cut.around(Volume(voxels=voxels * 0, spacing_mm=(1.0, 2.0, 5.0)), 2, 10.0).side_mm == 60.0
