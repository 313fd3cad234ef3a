"""Several labels, and a number, per image: from a manifest through fit, test, predict, probe and export."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import MultiLabelBinarizer, StandardScaler
from transformers import AutoImageProcessor, AutoModelForImageClassification

from tests.running import refused, transferkit
from tests.tiny import VIT, options
from transferkit.data.embeddings import Embeddings
from transferkit.data.targets import parts_of
from transferkit.extractor import Extractor

NAMES = ("blue", "green", "red")
QUIET = ("--trainer.accelerator", "cpu", "--trainer.max_epochs", "4")
KINDS = ("labels", "numbers")
OPTION = {"labels": ("--data.multilabel", "true"), "numbers": ()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures whose channels say which labels they have, and how bright they are."""
    root, noise = tmp_path_factory.mktemp("targets"), np.random.default_rng(0)
    rows: list[tuple[str, list[str], float]] = []
    for number in range(40):
        has = noise.random(3) < 0.4
        pixels = noise.normal(80, 40, (12, 12, 3))
        pixels[..., has] += 60
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / f"{number:02d}.png")
        names = [name for name, own in zip(("red", "green", "blue"), has, strict=True) if own]
        rows.append((f"{number:02d}.png", names, float(pixels.mean()) * 10 - 500))
    splits = ["test" if row % 4 == 0 else "train" for row in range(40)]
    for name, column, cells in (("labels", "label", ["|".join(r[1]) or "|" for r in rows]),
                                ("numbers", "target", [r[2] for r in rows])):  # fmt: skip
        with (root / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", column, "split"])
            writer.writerows(zip([r[0] for r in rows], cells, splits, strict=True))
    lists = pa.table({"path": [r[0] for r in rows], "label": [sorted(r[1]) for r in rows], "split": splits})
    pq.write_table(lists, root / "lists.parquet")
    return root


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fit and a test of both."""
    found = {}
    for kind in KINDS:
        root = tmp_path_factory.mktemp(kind)
        to = ("--trainer.default_root_dir", str(root))
        done = transferkit("fit", str(data / f"{kind}.csv"), *OPTION[kind], *options("model", VIT), *QUIET, *to)
        assert done.status == 0, done.err
        found[kind] = root / "runs/fit/0"
        done = transferkit("test", "--ckpt_path", str(found[kind] / "checkpoints/best.ckpt"), *QUIET[:2], *to)
        assert done.status == 0, done.err
    return found


def metrics_of(run: Path) -> dict[str, float]:
    return dict(json.loads((run / "metrics.json").read_text()))


def results_of(run: Path) -> tuple[pd.DataFrame, Embeddings]:
    return pd.read_parquet(run / "predictions.parquet"), Embeddings.load(run / "embeddings.parquet")


def test_a_fit_of_labels_is_measured_as_scikit_learn_does(runs: dict[str, Path]) -> None:
    run = runs["labels"]
    metrics, (table, embeddings) = metrics_of(run), results_of(run)
    extractor = Extractor.from_pretrained(run / "checkpoints/best.ckpt")
    probability = extractor.classify(embeddings.embedding).sigmoid().numpy()
    binarize = MultiLabelBinarizer(classes=NAMES)
    target = binarize.fit_transform(table["label"].map(parts_of))
    levels = np.array([extractor.record["thresholds"][name] for name in NAMES])
    assert metrics["test/map"] == pytest.approx(average_precision_score(target, probability, average="macro"))
    assert metrics["test/f1_micro"] == pytest.approx(f1_score(target, probability >= levels, average="micro"))
    np.testing.assert_array_equal(binarize.transform(table["prediction"].map(parts_of)), probability >= levels)
    assert embeddings.kind == "labels" and embeddings.labels == table["label"].tolist()
    assert (run / "report.html").stat().st_size > 1000 and "mean average precision" in (run / "report.html").read_text()


def test_a_fit_of_a_number_is_measured_as_scikit_learn_does(runs: dict[str, Path]) -> None:
    run = runs["numbers"]
    metrics, (table, embeddings) = metrics_of(run), results_of(run)
    extractor = Extractor.from_pretrained(run / "checkpoints/best.ckpt")
    found = extractor.classify(embeddings.embedding)[:, 0].numpy()
    np.testing.assert_allclose(found, table["prediction"], rtol=1e-5, atol=1e-2)
    assert metrics["test/mae"] == pytest.approx(mean_absolute_error(table["target"], table["prediction"]), rel=1e-5)
    assert metrics["test/r2"] == pytest.approx(r2_score(table["target"], table["prediction"]), rel=1e-5)
    assert metrics["test/r2_low"] <= metrics["test/r2"] <= metrics["test/r2_high"]
    assert embeddings.kind == "number" and "R²" in (run / "report.html").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_of_a_frozen_fit_is_the_optimum_of_scikit_learn(kind: str, runs: dict[str, Path], data: Path) -> None:
    splits = pd.read_parquet(runs[kind] / "splits.parquet")
    train = splits[splits["split"] == "train"]
    extractor = Extractor.from_pretrained(runs[kind] / "checkpoints/best.ckpt")
    raw = extractor.embed([data / path for path in train["path"]])
    rows = StandardScaler().fit_transform(raw.double().numpy())
    c = float(pd.read_csv(runs[kind] / "metrics.csv").set_index("epoch")["head/C"][int(extractor.record["epoch"])])
    ours = extractor.classify(raw).numpy()
    if kind == "labels":
        target = MultiLabelBinarizer(classes=NAMES).fit_transform(train["label"].map(parts_of))
        model = OneVsRestClassifier(LogisticRegression(C=c, max_iter=100_000, tol=1e-9)).fit(rows, target)
        np.testing.assert_allclose(torch.from_numpy(ours).sigmoid(), model.predict_proba(rows), atol=1e-3)
    else:
        numbers = train["label"].astype(float)
        expected = Ridge(alpha=1 / c).fit(rows, numbers).predict(rows)
        np.testing.assert_allclose(ours[:, 0], expected, atol=1e-3 * float(numbers.std()))


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_transformers_own_classifier(kind: str, runs: dict[str, Path], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "export"
    done = transferkit("export", str(runs[kind] / "checkpoints/best.ckpt"), "--out", str(out))
    assert done.status == 0, done.err
    model = AutoModelForImageClassification.from_pretrained(out).eval()
    problem = {"labels": "multi_label_classification", "numbers": "regression"}[kind]
    assert model.config.problem_type == problem
    images = [Image.open(data / f"{number:02d}.png").convert("RGB") for number in range(4)]
    pixels = AutoImageProcessor.from_pretrained(out)(images, return_tensors="pt")["pixel_values"]
    extractor = Extractor.from_pretrained(out)
    ours = extractor.classify(extractor.embed([data / f"{number:02d}.png" for number in range(4)]))
    with torch.inference_mode():
        theirs = model(pixel_values=pixels).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3 * float(ours.abs().max()))
    width = {"labels": torch.zeros(4, 3), "numbers": torch.zeros(4, 1)}[kind]
    assert model(pixel_values=pixels, labels=width).loss.isfinite()  # the loss that problem_type chooses
    card = (out / "README.md").read_text()
    assert {"labels": "threshold of its probability", "numbers": "a number, in the unit"}[kind] in card
    assert extractor.record["target"] == {"labels": "labels", "numbers": "number"}[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_of_a_folder(kind: str, runs: dict[str, Path], data: Path, tmp_path: Path) -> None:
    to = ("--trainer.default_root_dir", str(tmp_path), *QUIET[:2])
    checkpoint = str(runs[kind] / "checkpoints/best.ckpt")
    done = transferkit("predict", str(data), "--ckpt_path", checkpoint, "--json", *to)
    assert done.status == 0, done.err
    rows = json.loads(done.out)["predictions"]
    table = pd.read_csv(runs[kind] / "predict/predictions.csv")
    assert len(rows) == len(table) == 40 and [row["path"] for row in rows] == table["path"].tolist()
    if kind == "labels":
        assert list(table.columns) == ["path", "label", "prediction"]
        full = pd.read_parquet(runs[kind] / "predict/predictions.parquet")
        assert list(full.columns[3:]) == [f"probability/{name}" for name in NAMES]
        assert all(parts_of(text) == tuple(sorted(set(parts_of(text)) & set(NAMES))) for text in table["prediction"])
    else:
        assert list(table.columns) == ["path", "target", "prediction"] and table["prediction"].dtype == float
    done = transferkit("predict", str(data), "--ckpt_path", checkpoint, *to)
    assert done.status == 0 and table["path"][0] in done.out
    assert refused(transferkit("predict", str(data), "--ckpt_path", checkpoint, "--coverage", "0.9", *to), "calibrat")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_embed_evaluate_and_probe(kind: str, runs: dict[str, Path], data: Path, tmp_path: Path) -> None:
    extractor = ("--extractor", str(runs[kind] / "checkpoints/best.ckpt"))
    table, source = str(tmp_path / "t.parquet"), str(data / f"{'lists.parquet' if kind == 'labels' else 'numbers.csv'}")
    assert transferkit("embed", source, *extractor, "--out", table).status == 0
    loaded = Embeddings.load(table)
    assert loaded.kind == {"labels": "labels", "numbers": "number"}[kind] and None not in loaded.labels
    again = transferkit("embed", source, *extractor, "--out", table)  # nothing is missing
    assert again.status == 0, again.err
    done = transferkit("evaluate", table, "--out", str(tmp_path / "e"), "--json")
    found = json.loads(done.out)
    assert done.status == 0 and ("jaccard@1" in found) == (kind == "labels")
    done = transferkit("probe", table, "--out", str(tmp_path / "p"), "--json")
    assert done.status == 0, done.err
    linear = json.loads(done.out)["linear"]
    assert {"labels": "map", "numbers": "mae"}[kind] in linear
    done = transferkit("probe", source, *extractor, "--out", str(tmp_path / "q"), "--export", str(tmp_path / "x"))
    assert done.status == 0 and (tmp_path / "q/report.html").is_file(), done.err
    to = ("--trainer.default_root_dir", str(tmp_path), *QUIET[:2])
    wanted = ("--data.root", source, *OPTION[kind])
    done = transferkit("test", "--ckpt_path", str(tmp_path / "x"), *wanted, *to)
    assert done.status == 0, done.err
    assert {"labels": "test/map", "numbers": "test/mae"}[kind] in done.out


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("regime", ["lp-ft", "full"])
def test_fine_tuning_and_the_fit_that_goes_on(kind: str, regime: str, data: Path, tmp_path: Path) -> None:
    source, to = str(data / f"{kind}.csv"), ("--trainer.default_root_dir", str(tmp_path))
    more = ("--model.regime", regime, "--data.mixup", "0.2", "--model.ema", "0.5")
    short = (*QUIET[:2], "--trainer.max_epochs", "2", *to)
    done = transferkit("fit", source, *OPTION[kind], *options("model", VIT), *more, *short)
    assert done.status == 0, done.err
    run, name = tmp_path / "runs/fit/0", {"labels": "val/map", "numbers": "val/r2"}[kind]
    best = metrics_of(run)[name]
    start = ("--model.backbone", str(run / "checkpoints/best.ckpt"), "--model.regime", "full", "--name", "on")
    done = transferkit("fit", source, *OPTION[kind], *start, *QUIET[:2], "--trainer.max_epochs", "1", *to)
    assert done.status == 0, done.err
    rows = pd.read_csv(tmp_path / "runs/on/0/metrics.csv").set_index("epoch")
    assert rows[name][0] == pytest.approx(best, abs=1e-4)  # the head that it starts from is the same


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_are_compared(kind: str, runs: dict[str, Path], tmp_path: Path) -> None:
    out, source = tmp_path / "two.html", f'data-source="{"map" if kind == "labels" else "r2"} first"'
    assert transferkit("report", str(runs[kind]), str(runs[kind]), "--out", str(out)).status == 0
    page = out.read_text(encoding="utf-8")
    (value,) = re.findall(rf'value="([^"]+)" {source}', page)
    assert float(value) == pytest.approx(
        metrics_of(runs[kind])["test/map" if kind == "labels" else "test/r2"], abs=1e-5
    )
    assert "There is no difference." in page
    other = next(runs[each] for each in KINDS if each != kind)
    assert refused(transferkit("report", str(runs[kind]), str(other)), "per image; give two that predict the same")


def test_labels_without_the_option_and_the_reverse_are_refused(data: Path) -> None:
    model = options("model", VIT)
    fit = ("fit", *model, *QUIET, "--data.root")
    assert refused(transferkit(*fit, str(data / "labels.csv")), r"look like several .* add --data.multilabel true")
    assert refused(
        transferkit(*fit, str(data / "lists.parquet")), "are lists, several per image; add --data.multilabel"
    )
    several = (str(data / "numbers.csv"), "--data.multilabel", "true")
    assert refused(transferkit(*fit, *several), "has a number per image .*; leave out --data.multilabel")
    assert refused(
        transferkit(*fit, "digits", "--data.multilabel", "true"), "needs a manifest whose column label holds"
    )
    assert refused(transferkit(*fit, str(data / "numbers.csv"), "--model.loss", "asymmetric"), "is for several labels")
    balanced = (str(data / "numbers.csv"), "--data.class_weights", "balanced")
    assert refused(transferkit(*fit, *balanced), "--data.class_weights is for classes")


@pytest.mark.slow
def test_other_verbs_refuse_them_in_one_line(data: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    best = {kind: str(runs[kind] / "checkpoints/best.ckpt") for kind in KINDS}
    numbers, lists, out = str(data / "numbers.csv"), str(data / "lists.parquet"), ("--out", str(tmp_path / "o"))
    expected = "needs one class per image, not "
    assert refused(transferkit("audit", numbers, "--extractor", best["labels"], *out), expected)
    assert refused(transferkit("rank", lists, "--extractors", ",".join(best.values()), *out), expected)
    assert refused(transferkit("zeroshot", lists, "--extractor", best["labels"], *out), expected)
    assert refused(transferkit("explain", str(data / "00.png"), "--ckpt_path", best["numbers"], *out), expected)
    to: Any = ("--trainer.default_root_dir", str(tmp_path), *QUIET[:2])
    wrong = transferkit("test", "--ckpt_path", best["numbers"], "--data.root", lists, "--data.multilabel", "true", *to)
    assert refused(wrong, "has several labels per image, the checkpoint was trained on a number per image")
