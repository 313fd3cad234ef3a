"""Reports: every number equals the file that it is from; what is missing is said; names stay text."""

import csv
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from tests.reports.example_results import NASTY, Example, write_json, write_photographed_run, write_run
from transferkit import evaluation
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import open_images
from transferkit.data.integrity import verify
from transferkit.errors import UserError
from transferkit.reports import data_sections
from transferkit.reports.content import Remark
from transferkit.reports.leak_section import leak_blocks
from transferkit.reports.report import report_of, report_of_two
from transferkit.reports.result_files import ImageSource, ResultFolder
from transferkit.reports.run_report import without_unreadable


class Shown(NamedTuple):
    """A number of a page: its exact value, where it is from, and as it is shown."""

    value: float
    source: str
    text: str


class Page(HTMLParser):
    """What a page holds, read by Python's own parser."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.numbers: list[Shown] = []
        self.text, self.tags = "", Counter[str]()
        self.pending: dict[str, str | None] | None = None
        self.skip = 0
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.skip += tag in ("style", "script")
        if tag == "data":
            self.pending, self.inside = dict(attrs), ""

    def handle_endtag(self, tag: str) -> None:
        self.skip -= tag in ("style", "script")
        if tag == "data":
            assert self.pending is not None
            self.numbers.append(Shown(float(str(self.pending["value"])), str(self.pending["data-source"]), self.inside))
            self.pending = None

    def handle_data(self, data: str) -> None:
        if not self.skip:
            self.text += data
        if self.pending is not None:
            self.inside += data

    def of(self, source: str) -> list[float]:
        """The values of one source."""
        return [number.value for number in self.numbers if number.source == source]


def in_json(content: Any, key: str) -> float:
    """The number at a dotted key; of a list or mapping, how many entries it has."""
    for part in [key] if isinstance(content, dict) and key in content else key.split("."):
        content = content[int(part)] if isinstance(content, list) else content[part]
    return float(len(content) if isinstance(content, dict | list) else content)


def in_column(file: Path, name: str) -> set[float]:
    """The numbers in a column of a table; none if it has no such column."""
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        return {float(value) for value in table[name].to_pylist()} if name in table.column_names else set()
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as opened:
            return {float(row[name]) for row in csv.DictReader(opened) if row.get(name)}
    return set()


def check_numbers(page: Page, folder: Path) -> Counter[str]:
    """Compare every number with the file that it names, and its text with its value; sources that were met."""
    met: Counter[str] = Counter()
    known: dict[str, set[float]] = {}
    for value, source, text in page.numbers:
        file, _, key = source.partition(" ")
        met[file] += 1
        if file.endswith(".json"):
            assert value == in_json(json.loads((folder / file).read_text()), key), source
        elif key and source not in known:
            known[source] = in_column(folder / file, key)
        assert not known.get(source) or value in known[source], source
        shown = float(re.sub(r"[,%]|pp| ", "", text))
        factor = 100 if text.endswith(("%", "pp")) else 1
        assert shown == pytest.approx(factor * value, rel=5e-4, abs=0.0500001 if factor == 100 else 1e-12), source
    return met


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return write_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(example: Example) -> Page:
    return Page(report_of(example.run))


def test_numbers_of_a_run_are_those_of_its_files(page: Page, example: Example) -> None:
    met = check_numbers(page, example.run)
    assert met["metrics.json"] >= 3 and met["predictions.parquet"] > 20
    assert page.of("metrics.json test/ece") == [example.metrics["test/ece"]]


def test_numbers_of_predictions_are_counted_again(page: Page, example: Example) -> None:
    columns = pq.read_table(example.run / "predictions.parquet").to_pydict()
    right = Counter(label for label, pred in zip(columns["label"], columns["prediction"], strict=True) if label == pred)
    totals = Counter(columns["label"])
    accuracy = sum(right.values()) / len(example.paths)
    assert page.of("predictions.parquet")[0] == accuracy == example.metrics["test/acc"]
    oracle = binomtest(sum(right.values()), len(example.paths)).proportion_ci(method="wilson")
    assert (page.of("wilson low"), page.of("wilson high")) == (
        [pytest.approx(oracle.low)],
        [pytest.approx(oracle.high)],
    )
    shares = sorted(right[name] / totals[name] for name in totals)
    assert sorted(page.of("predictions.parquet class")[0::3]) == shares  # accuracy, right and images of each class
    assert sum(page.of("cell")) == len(example.paths)
    said = set(np.array(columns["probability"], dtype=np.float32).astype(np.float64).tolist())
    assert set(page.of("predictions.parquet probability")) <= said
    assert page.of("splits.parquet")[0] == len(example.paths)


def test_sections_come_in_the_order_people_read(example: Example) -> None:
    html = (example.run / "report.html").read_text(encoding="utf-8")
    order = ["classes", "confusions", "mistakes", "labels", "outliers", "duplicates", "calibration", "curves", "map"]
    order += ["data", "repeat"]
    assert re.findall(r'<section id="([\w-]+)"', html) == order
    assert html.index("headline") < html.index('<section id="classes"')


def test_names_are_text_and_nothing_else_is_loaded(page: Page, example: Example) -> None:
    html = (example.run / "report.html").read_text(encoding="utf-8")
    assert page.tags["script"] == 1 and "<script>alert" not in html and page.tags["b"] == 0
    for name in NASTY:
        assert name in page.text
    assert not re.search(r'(?:src|href)="(?!#|data:)', html) and "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html.replace("&#39;", "'")


def test_each_image_is_in_the_page_once(page: Page, example: Example) -> None:
    html = (example.run / "report.html").read_text(encoding="utf-8")
    uris = re.findall(r'href="(data:[^"]+)"', html)
    assert len(uris) == len(set(uris)) == len(example.paths)
    assert set(re.findall(r'<use href="#(i\d+)"', html)) <= {f"i{number}" for number in range(len(uris))}


def test_the_same_files_give_the_same_page(example: Example, tmp_path: Path) -> None:
    assert report_of(example.run, tmp_path / "again.html").read_bytes() == (example.run / "report.html").read_bytes()


def without(*names: str) -> Callable[[Path], None]:
    return lambda run: [(run / name).unlink() for name in names] and None  # type: ignore[return-value]


def damaged(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes(b"PAR1 not so") and None  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("predictions.parquet", "embeddings.parquet"), "nothing was tested yet"),
        (without("embeddings.parquet"), "near-duplicates, leaks and the map: embeddings.parquet"),
        (without("metrics.csv"), "learning curves: metrics.csv is not there"),
        (without("splits.parquet"), "how many images of what: splits.parquet is not there"),
        (without("audit.parquet"), "likely label errors and outliers: audit.parquet is not there"),
        (without("leaks.json"), "near-duplicates of training images among those of other splits: leaks.json"),
        (without("metrics.json"), ""),
        (without("audit.json"), ""),
        (damaged("predictions.parquet"), "predictions.parquet cannot be read"),
        (damaged("embeddings.parquet"), "embeddings.parquet cannot be read"),
        (damaged("metrics.json"), "metrics.json cannot be read"),
        (damaged("splits.parquet"), "splits.parquet cannot be read"),
    ],
)
def test_a_report_is_made_of_what_there_is(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    run = write_run(tmp_path, NASTY[:2]).run
    spoil(run)
    page = Page(report_of(run))
    check_numbers(page, run)
    assert said in page.text and (bool(said) is ("Not in this report" in page.text))


def test_images_that_have_moved(tmp_path: Path) -> None:
    run = write_run(tmp_path, NASTY[:2]).run
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    page = Page(report_of(run))
    assert "the images are no longer at" in page.text and page.tags["image"] == 0
    page = Page(report_of(run, images=str(tmp_path / "elsewhere" / "labels.csv")))
    assert "Not in this report" not in page.text and page.tags["image"] == 12


def test_some_images_that_have_gone(tmp_path: Path) -> None:
    example = write_run(tmp_path, NASTY[:2])
    for path in example.paths[:3]:
        (tmp_path / "images" / path).unlink()
    page = Page(report_of(example.run))
    assert "3 of 12 thumbnails: no such file" in page.text and page.tags["image"] == 9


def test_one_class_right_throughout_and_all_right(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", NASTY[:2]).run
    for name in ("predictions", "splits"):
        table = pq.read_table(one / f"{name}.parquet").to_pylist()
        alike = [{**row, **{key: NASTY[0] for key in ("label", "prediction") if key in row}} for row in table]
        pq.write_table(pa.Table.from_pylist(alike), one / f"{name}.parquet")
    alone = Page(report_of(one))
    assert "Every image of every class is right (1 class)." in alone.text and "12 test; 1 class." in alone.text
    page = Page(report_of(write_run(tmp_path, NASTY[:3], wrong=0).run))
    assert "Every image of every class is right" in page.text and "There is no mistake" in page.text
    assert "100.0%" in page.text


def test_leaks_between_splits_are_told(tmp_path: Path) -> None:
    example = write_run(tmp_path, NASTY[:2])
    images = tmp_path / "images"
    (images / example.paths[0]).write_bytes((images / example.paths[1]).read_bytes())
    splits = ["train", *["test"] * 11]
    pq.write_table(
        pa.table({"path": example.paths, "label": example.labels, "split": splits}), example.run / "splits.parquet"
    )
    assert (
        f"Leaks: files with the same bytes lie in different splits: {example.paths[0]} (train)"
        in Page(report_of(example.run)).text
    )


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "a", wrong=0.4), write_run(tmp_path / "b", wrong=0.1)
    page = Page(report_of_two(one.run, other.run, tmp_path / "two.html"))
    right = [np.array([a == b for a, b in zip(e.labels, e.preds, strict=True)]) for e in (one, other)]
    assert page.of("difference") == [pytest.approx(right[1].mean() - right[0].mean())]
    gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    assert page.of("mcnemar_p") == [pytest.approx(binomtest(lost, gained + lost).pvalue)]
    assert f"right on {gained:,} that" in page.text
    low, high = page.of("interval low")[0], page.of("interval high")[0]
    assert low <= page.of("difference")[0] <= high
    assert f"{lost:,} images." in page.text if lost else "No image." in page.text


def test_two_runs_of_different_images_are_refused_and_shared_ones_compared(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "a", NASTY[:2]), write_run(tmp_path / "b", NASTY[:3])
    page = Page(report_of_two(one.run, other.run, tmp_path / "two.html"))
    assert "0 images of" in page.text and "and 6 of" in page.text
    with pytest.raises(UserError, match="judged no image in common"):
        report_of_two(one.run, write_run(tmp_path / "c", ["x", "y"]).run, tmp_path / "two.html")
    without("predictions.parquet")(other.run)
    with pytest.raises(UserError, match="holds no predictions"):
        report_of_two(one.run, other.run, tmp_path / "two.html")
    numbers = pa.table({"path": ["a"], "target": [1.0], "prediction": [2.0]})
    pq.write_table(numbers, other.run / "predictions.parquet")
    with pytest.raises(UserError, match=r"predicts one class per image, .* a number per image; give two that"):
        report_of_two(one.run, other.run, tmp_path / "two.html")


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds none of config\.yaml"):
        report_of(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        report_of(tmp_path / "nowhere")


def test_numbers_of_an_evaluation_are_those_of_its_files(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = [NASTY[number % 3] for number in range(30)]
    table = Embeddings(
        torch.randn(30, 8, generator=generator) + 2, [f"{n:02d}.jpg" for n in range(30)], labels, [None] * 30, {}
    )
    found = evaluation.measure(table)
    evaluation.save_overall(found, tmp_path / "similarity.json")
    evaluation.save_per_class(found, tmp_path / "per_class.csv")
    page = Page(report_of(tmp_path, embeddings=table))
    met = check_numbers(page, tmp_path)
    values = json.loads((tmp_path / "similarity.json").read_text())
    numbers = [value for value in values.values() if isinstance(value, int | float) and math.isfinite(value)]
    assert met["similarity.json"] >= len(numbers) and met["per_class.csv"] > 0
    assert "do not say where their images are" in page.text


def test_numbers_of_a_probe_are_those_of_its_file(tmp_path: Path, example: Example) -> None:
    linear = {
        "top1": 0.75, "top1_interval": [0.55, 0.88], "correct": 18, "rows": 24, "top5": None, "mean_per_class": 0.75,
        "per_class": dict.fromkeys(NASTY, 0.75), "ece": 0.1, "ece_calibrated": 0.05, "C": 0.1,
        "standardisation": "l2", "sweep": {"C": [0.01, 0.1, 1.0], "val_top1": {"l2": [0.6, 0.8, None]}},
    }  # fmt: skip
    side = {"top1": 0.5, "top1_interval": [0.31, 0.69]}
    curve = [{"n_per_class": 1, "mean": 0.3, "std": 0.05, "accuracies": []}]
    manifest = example.run.parents[2] / "images" / "labels.csv"
    content = {"linear": linear, "knn": side, "nearest_class_mean": side, "warnings": ["one < two"],
               "few_shot": {"seeds": [0, 1], "curve": curve}, "options": {"fast": True},
               "images": {"source": str(manifest), "image_root": None}}  # fmt: skip
    write_json(tmp_path / "probe.json", content)
    (tmp_path / "predictions.parquet").write_bytes((example.run / "predictions.parquet").read_bytes())
    page = Page(report_of(tmp_path))
    met = check_numbers(page, tmp_path)
    assert met["probe.json"] >= 8 and "one < two" in page.text and page.tags["image"] > 0


def test_numbers_of_a_benchmark_are_those_of_its_table(tmp_path: Path) -> None:
    rows = [
        "approach,dataset,top1,top1_low,top1_high,knn_top1,test,error,difference,mcnemar_p",
        "a,photos,0.8,0.7,0.9,0.75,100,,,",
        "b,photos,0.9,0.8,0.95,0.85,100,,0.1,0.04",
        "<c>,photos,,,,,,out of memory,,",
    ]
    (tmp_path / "benchmark.csv").write_text("\n".join(rows) + "\n")
    page = Page(report_of(tmp_path))
    check_numbers(page, tmp_path)
    assert page.of("benchmark.csv top1") == [0.9, 0.9, 0.8] and page.of("benchmark.csv difference") == [0.1]
    assert "<c> on photos: out of memory" in page.text


@pytest.mark.slow
def test_two_thousand_photographs_of_fifty_classes_stay_small(tmp_path: Path) -> None:
    example = write_photographed_run(tmp_path)
    start = time.process_time()
    file = report_of(example.run)
    assert file.stat().st_size <= 8 * 2**20
    assert time.process_time() - start <= 20  # of processor time: 10 s on two cores
    page = Page(file)
    check_numbers(page, example.run)
    assert page.tags["image"] > 1000


def test_sentences_on_duplicates_say_which_images_they_are_of(tmp_path: Path) -> None:
    """No two tested images may be alike while one of them is a copy of a training image."""
    table = Embeddings(torch.eye(8), [f"{n}.png" for n in range(8)], ["a"] * 8, ["test"] * 8, {})
    lead = data_sections.near_duplicates(table, images="tested images").lead
    assert lead.startswith("Among the 8 tested images: no two are nearly the same (cosine of ")
    pairs = [{"first": "0.png", "second": "9.png", "splits": ["test", "train"], "labels": ["a", "a"], "cosine": 1.0}]
    for count, said in ((1, "these are nearly the same and"), (0, "no two that are nearly the same are")):
        content = {"count": count, "threshold": 0.95, "images": 16, "of": 16, "pairs": pairs[:count]}
        write_json(tmp_path / "leaks.json", content)
        first = leak_blocks(ResultFolder(tmp_path))[0]
        assert (
            isinstance(first, Remark) and first.text == f"Among the images of all splits: {said} in different splits."
        )


def test_unreadable_images_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"")
    table = open_images(tmp_path)
    paths = list(table.paths)
    splits = {"path": paths, "label": ["a"] * 4, "split": ["train", "train", "val", "val"]}
    assert without_unreadable(splits, ImageSource(table)) == (splits, ""), "nothing is known yet"
    verify(table)
    kept, said = without_unreadable(splits, ImageSource(table))
    assert kept["path"] == ["0.png", "2.png", "3.png"] and kept["split"] == ["train", "val", "val"]
    assert said == " Unreadable, left out: 1 train."
