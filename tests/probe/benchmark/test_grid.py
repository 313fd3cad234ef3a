"""The grid of a benchmark: what is measured, kept, measured again, and recorded as failed; and its table."""

import csv
import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, mean_absolute_error, r2_score
from sklearn.preprocessing import MultiLabelBinarizer

from transferkit.data.image_table import open_images
from transferkit.data.targets import parts_of
from transferkit.embed import cached_features
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.probe import compare_predictions, load_predictions, probe_embeddings, probe_targets
from transferkit.probe.benchmark import benchmark_table, grid
from transferkit.probe.benchmark.cells import Approach, Cell, Dataset, cell_folder, locked, read_cell
from transferkit.reports.report import report_of
from transferkit.similarity import evaluate

QUICK = {"shots": [1, 2], "few_shot_seeds": [0, 1], "coarse_to_fine": True}
TWO = {"one": Approach("1"), "two": Approach("2")}


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "out"


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the probes of each extractor and dataset."""
    counts: Counter[str] = Counter()

    def counted(embeddings: Any, **options: Any) -> Any:
        counts["probes"] += 1
        return probe_targets(embeddings, **options)

    monkeypatch.setattr(grid, "probe_targets", counted)
    return counts


def opened(approach: Approach) -> Extractor:
    """A small network whose random weights depend on the extractor's name."""
    if approach.extractor == "broken":
        raise UserError("broken cannot be opened; give another")
    torch.manual_seed(int(approach.extractor))
    preprocessing = approach.preprocessing or {"resize": [32, 32], "crop": [32, 32]}
    return Extractor.from_pretrained("shufflenet_v2_x0_5", "none", approach.pooling, preprocessing)


def run(out: Path, datasets: dict[str, str], approaches: dict[str, Approach] = TWO, **more: Any) -> list[Cell]:
    places = {name: Dataset(images) for name, images in datasets.items()}
    return grid.run(out, approaches, places, opened, **{"options": QUICK, **more})


def test_a_cell_holds_what_the_probe_and_the_metrics_say(out: Path, photo_folder: Path) -> None:
    first, second = run(out, {"photos": str(photo_folder)})
    extractor = opened(Approach("2"))
    features = cached_features(extractor, open_images(photo_folder))
    report = probe_embeddings(features, **QUICK).report  # type: ignore[arg-type]
    assert (second.top1, list(second.top1_interval or ())) == (
        report["linear"]["top1"],
        report["linear"]["top1_interval"],
    )
    assert (second.knn_top1, second.knn_k) == (report["knn"]["top1"], report["knn"]["k"])
    points = {str(p["n_per_class"]): [p["mean"], p["std"]] for p in report["few_shot"]["curve"]}
    assert second.few_shot == points
    assert second.cosine_gap == pytest.approx(evaluate(features.embedding, features.labels).overall["cosine_gap"])
    assert (second.library, second.embed_dim) == ("torchvision", 1024)
    assert second.parameters == sum(p.numel() for p in extractor.backbone.parameters())
    assert second.images_per_second and second.images_per_second > 0
    saved = json.loads((cell_folder(out, "two", "photos") / "probe.json").read_text())
    assert saved["embeddings"]["weights_sha256"] == extractor.weights_sha256()
    assert first.key != second.key


def test_failures_are_recorded_and_do_not_stop_the_rest(out: Path, photo_folder: Path) -> None:
    approaches = {"bad": Approach("broken"), **TWO}
    cells = run(out, {"nowhere": str(out / "nowhere"), "photos": str(photo_folder)}, approaches)
    assert [(cell.dataset, cell.approach, cell.error is None) for cell in cells] == [
        ("nowhere", "bad", False),
        ("nowhere", "one", False),
        ("nowhere", "two", False),
        ("photos", "bad", False),
        ("photos", "one", True),
        ("photos", "two", True),
    ]
    text = (out / "benchmark.md").read_text()
    assert "- bad on photos: broken cannot be opened; give another" in text
    assert text.count("| photos | ") == 2
    for file in ("benchmark.csv", "benchmark.png"):
        assert (out / file).stat().st_size > 0


def test_an_internal_error_is_recorded_with_its_type(
    out: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*args: Any, **options: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(grid, "probe_targets", fault)
    assert [cell.error for cell in run(out, {"photos": str(photo_folder)})] == ["MemoryError: no room"] * 2
    assert not (out / "benchmark.png").exists()


def test_only_what_is_missing_or_failed_is_measured(out: Path, photo_folder: Path, probes: Counter[str]) -> None:
    photos = {"photos": str(photo_folder)}
    first = run(out, photos)
    assert probes["probes"] == 2
    again = run(out, photos)
    assert probes["probes"] == 2
    assert again == first
    run(out, photos, {**TWO, "three": Approach("3"), "bad": Approach("broken")})
    assert probes["probes"] == 3
    anew = run(out, photos, resume=False)
    assert probes["probes"] == 5
    assert [replace(cell, images_per_second=None) for cell in anew] == [
        replace(cell, images_per_second=None) for cell in first
    ]


@pytest.mark.parametrize(
    "part",
    [
        "image",
        "weights",
        "options",
        *(
            pytest.param(part, marks=pytest.mark.slow)
            for part in ("label", "split", "pooling", "preprocessing", "on_error", "protocol")
        ),
    ],
)
def test_a_cell_that_is_no_longer_valid_is_measured_again(
    part: str, out: Path, photo_folder: Path, probes: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = photo_folder / "manifest.csv"
    rows = [(path, path.split("/")[1], path.split("/")[0]) for path in open_images(photo_folder).paths]

    def write(rows: list[tuple[str, ...]]) -> None:
        manifest.write_text("\n".join(map(",".join, [("path", "label", "split"), *rows])))

    write(rows)
    photos, one = {"photos": str(manifest)}, {"one": Approach("1")}
    run(out, photos, one)
    more: dict[str, Any] = {}
    if part == "image":
        Image.new("RGB", (40, 32), "navy").save(photo_folder / rows[0][0])
    elif part == "label":
        write([(rows[0][0], "limes", rows[0][2]), *rows[1:]])
    elif part == "split":
        write([(rows[0][0], rows[0][1], "val"), *rows[1:]])
    elif part == "weights":
        one = {"one": Approach("2")}
    elif part == "pooling":
        one = {"one": Approach("1", pooling="logits")}
    elif part == "preprocessing":
        one = {"one": Approach("1", preprocessing={"resize": [32, 32], "crop": [32, 32], "mean": [0.4, 0.4, 0.4]})}
    elif part == "options":
        more["options"] = {**QUICK, "seed": 1}
    elif part == "on_error":
        more["on_error"] = "skip"
    else:
        monkeypatch.setattr(grid, "PROTOCOL", -1)
    run(out, photos, one, **more)
    assert probes["probes"] == 2
    run(out, photos, one, **more)
    assert probes["probes"] == 2


def test_the_speed_is_that_of_extraction(out: Path, photo_folder: Path) -> None:
    cached_features(opened(Approach("1")), open_images(photo_folder))
    first, second = run(out, {"photos": str(photo_folder)})
    assert first.images_per_second is None and second.images_per_second
    _, kept = run(out, {"photos": str(photo_folder)}, options={**QUICK, "seed": 1})
    assert kept.key != second.key and kept.images_per_second == second.images_per_second


def test_what_was_measured_before_an_interruption_is_kept(
    out: Path, photo_folder: Path, probes: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = grid.save
    kept: list[str] = []

    def interrupted(cell: Cell, folder: Path, result: Any = None) -> None:
        if kept:
            (folder.parent / ".half.1.tmp").mkdir()
            raise KeyboardInterrupt
        kept.append(cell.approach)
        measure(cell, folder, result)

    monkeypatch.setattr(grid, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(out, {"photos": str(photo_folder)})
    monkeypatch.setattr(grid, "save", measure)
    assert [cell.approach for cell in run(out, {"photos": str(photo_folder)})] == ["one", "two"]
    assert probes["probes"] == 3
    assert not list((out / "cells").glob(".*"))


def test_a_damaged_cell_is_measured_again(out: Path, photo_folder: Path, probes: Counter[str]) -> None:
    run(out, {"photos": str(photo_folder)})
    (cell_folder(out, "one", "photos") / "cell.json").write_text('{"approach": "one"')
    assert read_cell(cell_folder(out, "one", "photos")) is None
    run(out, {"photos": str(photo_folder)})
    assert probes["probes"] == 3


def test_one_benchmark_at_a_time_and_a_killed_one_leaves_no_lock(out: Path) -> None:
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True); "
    hold += "time.sleep(60)"
    out.mkdir()
    with subprocess.Popen([sys.executable, "-c", hold, out / ".lock"], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"another benchmark is writing into {out}"), locked(out):
            pass
        other.send_signal(signal.SIGKILL)
    with locked(out), pytest.raises(UserError, match="another benchmark"), locked(out):
        pass


def test_the_table_compares_with_the_first_on_the_same_images(out: Path, photo_folder: Path) -> None:
    cells = run(out, {"photos": str(photo_folder)})
    first, second = (load_predictions(cell_folder(out, name, "photos")) for name in TWO)
    expected = compare_predictions(first, second)
    with (out / "benchmark.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["difference"] == "" and float(rows[1]["difference"]) == expected.difference
    assert float(rows[1]["mcnemar_p"]) == expected.mcnemar_p
    assert float(rows[1]["difference_low"]) == expected.interval[0]
    for row, cell in zip(rows, cells, strict=True):
        assert float(row["top1"]) == cell.top1 and float(row["shot_2_std"]) == cell.few_shot["2"][1]
    header, _, *lines = (out / "benchmark.md").read_text().split("\n\n")[0].splitlines()
    assert header.count(" | ") == lines[0].count(" | ") == lines[1].count(" | ")
    assert benchmark_table.difference(expected) in lines[1] and lines[0].endswith("| – |")
    image = Image.open(out / "benchmark.png")
    image.load()
    assert image.format == "PNG"


def test_names_cannot_leave_their_place(out: Path, photo_folder: Path) -> None:
    names = {"a | b": Approach("1"), "<img src=x>\x1b[2J": Approach("2"), "$x_$ ../../y": Approach("1")}
    cells = run(out, {"../photos\nn": str(photo_folder)}, names)
    assert len({cell_folder(out, cell.approach, cell.dataset) for cell in cells}) == 3
    assert all(cell_folder(out, cell.approach, cell.dataset).parent == out / "cells" for cell in cells)
    text = (out / "benchmark.md").read_text()
    assert "a \\| b" in text and "<img" not in text and "\x1b" not in text
    assert asdict(cells[0])["approach"] == "a | b"


def test_seeds_are_cells_of_their_own_and_one_row(out: Path, photo_folder: Path, probes: Counter[str]) -> None:
    photos, options = {"photos": str(photo_folder)}, {**QUICK, "seed": 3}
    run(out, photos, options=options)
    cells = run(out, photos, options=options, seeds=[4, 5])
    assert probes["probes"] == 6, "the cell of the first seed is kept"
    features = cached_features(opened(Approach("1")), open_images(photo_folder))
    reports = [probe_embeddings(features, **QUICK, seed=seed).report for seed in (3, 4, 5)]  # type: ignore[arg-type]
    assert cells[0].seeds == [3, 4, 5] and cells[0].top1 == reports[0]["linear"]["top1"]
    for name, part in (("top1", "linear"), ("knn_top1", "knn")):
        values = [report[part]["top1"] for report in reports]
        assert cells[0].over_seeds[name] == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    text = (out / "benchmark.md").read_text()
    assert "linear over seeds" in text and "are the same for every seed" in text
    with (out / "benchmark.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert float(row["top1_seeds_mean"]) == cells[0].over_seeds["top1"][0] and row["seeds"] == "3 4 5"
    assert "over seeds" not in benchmark_table.markdown(run(out, photos, options=options), {})


@pytest.mark.slow
def test_labels_and_numbers_have_tables_of_their_own(out: Path, photo_folder: Path) -> None:
    """What a cell holds is what scikit-learn says of the predictions that it saved."""
    paths = open_images(photo_folder).paths
    light = [float(np.asarray(Image.open(photo_folder / path).convert("L")).mean()) for path in paths]
    bright = [[path.split("/")[1], *(["bright"] if row % 3 == 0 else [])] for row, path in enumerate(paths)]
    for name, column, cells in (("labels", "label", map("|".join, bright)), ("light", "target", map(str, light))):
        lines = [f"path,{column}", *(f"{path},{cell}" for path, cell in zip(paths, cells, strict=True))]
        (photo_folder / f"{name}.csv").write_text("\n".join(lines))
    places = {
        "photos": Dataset(str(photo_folder)),
        "labels": Dataset(str(photo_folder / "labels.csv"), multilabel=True),
        "light": Dataset(str(photo_folder / "light.csv")),
    }
    plain = {"coarse_to_fine": True, "test_fraction": 0.4}
    cells = grid.run(out, TWO, places, opened, options=plain, seeds=[1])
    assert [cell.error for cell in cells] == [None] * 6
    assert [cell.target for cell in cells[::2]] == ["class", "labels", "number"]
    labels, light_cell = cells[3], cells[5]
    saved = {cell.dataset: cell_folder(out, cell.approach, cell.dataset) for cell in (labels, light_cell)}
    found = pd.read_parquet(saved["light"] / "predictions.parquet")
    truth, predicted = (found[name].astype(float) for name in ("target", "prediction"))
    assert light_cell.score == light_cell.measures["r2"] == pytest.approx(r2_score(truth, predicted))
    assert light_cell.measures["mae"] == pytest.approx(mean_absolute_error(truth, predicted))
    low, high = light_cell.intervals["r2"]
    assert low <= light_cell.measures["r2"] <= high
    found = pd.read_parquet(saved["labels"] / "predictions.parquet")
    binary = MultiLabelBinarizer(classes=["apples", "bright", "limes"])
    sides = [binary.fit_transform(found[name].map(parts_of)) for name in ("label", "prediction")]
    assert labels.measures["f1_micro"] == pytest.approx(f1_score(*sides, average="micro"))
    assert labels.score == labels.measures["map"] and 0 < labels.measures["map"] <= 1

    tables = [part for part in (out / "benchmark.md").read_text().split("\n\n") if part.startswith("| dataset")]
    heads = [table.splitlines()[0] for table in tables]
    assert ["linear" in heads[0], "mAP" in heads[1], "R²" in heads[2]] == [True] * 3
    assert [len(table.splitlines()) for table in tables] == [4, 4, 4]
    assert all(title in heads[2] for title in ("MAE", "Spearman", "R² over seeds"))
    assert (out / "benchmark.tex").read_text().count(r"\begin{tabular}") == 3
    with (out / "benchmark.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["target"] for row in rows] == ["class"] * 2 + ["labels"] * 2 + ["number"] * 2
    assert (float(rows[5]["r2"]), float(rows[5]["r2_low"])) == (light_cell.score, low) and rows[5]["top1"] == ""
    assert float(rows[3]["map_seeds_mean"]) == labels.over_seeds["map"][0] and rows[0]["map"] == ""
    again = grid.run(out, TWO, places, opened, options=plain, seeds=[1])
    assert again == cells, "kept"
    report = report_of(out).read_text(encoding="utf-8")
    assert "mean average precision" in report and "test images, a number per image" in report


def test_saved_cells_that_the_table_leaves_out_are_counted(
    out: Path, photo_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = {"photos": str(photo_folder)}
    run(out, photos)
    assert "not in this table" not in (out / "benchmark.md").read_text() + caplog.text
    run(out, photos, {"two": TWO["two"]})
    assert "1 saved cells are not in this table" in (out / "benchmark.md").read_text()
    assert f"1 saved cells of {out} are not in this table" in caplog.text
