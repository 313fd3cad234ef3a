"""``transferkit zeroshot`` and ``fit --model.head zeroshot``: the same classifier of words, and a fit from there."""

import csv
import json
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest

from tests.backbones.families import save
from tests.backbones.words import save_dual
from tests.running import Done, refused, transferkit, write_photos

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
FIT = ["photos", "--model.backbone", "clip", "--model.head", "zeroshot", "--data.num_workers", "0"]
FIT += ["--trainer.accelerator", "cpu"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with photos and a model of images and texts."""
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    with chdir(tmp_path):
        write_photos(Path("photos"), COLOURS, {"train": 4, "val": 6})
        save_dual("clip", Path("clip"))
        yield tmp_path
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def zeroshot(*arguments: str) -> Done:
    return transferkit("zeroshot", *arguments, "--extractor", "clip", "--accelerator", "cpu")


def test_metrics_where_there_are_labels() -> None:
    done = zeroshot("photos", "--split", "val", "--json")
    assert done.status == 0, done.err
    said = json.loads(done.out)
    rows = said["predictions"]
    assert said["images"] == said["scored"] == len(rows) == 12
    assert said["test/acc"] == pytest.approx(sum(row["label"] == row["prediction"] for row in rows) / 12)
    with Path("zeroshot/predictions.csv").open(newline="") as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == [row["prediction"] for row in rows]
    page = Path("zeroshot/report.html").read_text(encoding="utf-8")
    assert "Not in this report" not in page and '<section id="labels"' in page
    assert (
        "next: transferkit fit photos --model.backbone clip --model.pooling projection --model.head zeroshot"
        in done.err
    )


def test_predictions_where_there_are_none() -> None:
    done = zeroshot("photos/val/apples", "--classes", "red apple,lime", "--templates", '["{}", "a {}"]')
    assert done.status == 0, done.err
    assert "probability" in done.out and "0.jpg" in done.out and "next" not in done.err
    assert json.loads(Path("zeroshot/zeroshot.json").read_text())["templates"] == ["{}", "a {}"]
    said = r"zeroshot.json holds results that differ in classes .*--out or add --overwrite"
    assert refused(zeroshot("photos/val/apples", "--classes", "lime", "--templates", '["{}", "a {}"]'), said)
    Path("classes.txt").write_text("lime\n\nred apple\n", encoding="utf-8")
    assert zeroshot("photos/val/apples", "--classes", "classes.txt", "--out", "more").status == 0
    assert json.loads(Path("more/zeroshot.json").read_text())["classes"] == ["lime", "red apple"]


def test_labels_that_are_not_among_the_classes() -> None:
    done = zeroshot("photos", "--classes", "apples,bananas")
    assert done.status == 0 and "10 images have a label that is not among the classes" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["photos", "--classes", "ant,,bee"], "class 2 of 3 in --classes has an empty name"),
        (["photos", "--classes", "ant,ant"], "--classes has 'ant' twice"),
        (["photos", "--classes", "nowhere.txt"], "--classes nowhere.txt cannot be read"),
        (["photos", "--templates", "[a photo]"], r"the template 'a photo' has no \{\}"),
        (["photos/val/apples"], "photos/val/apples has no labels to take the classes from; .* --classes ant,bee"),
        (["photos", "--split", "test"], "--split test: no image of photos is in it; its splits: train, val"),
        (["photos", "--pooling", "cls"], "clip has no pooling 'cls'; it offers pooler, projection, mean"),
        (["photos", "--pooling", "pooler"], "pooling pooler of clip is not in the space .*; give --pooling projection"),
        (["photos", "--weights", "none"], "random weights of clip know no words"),
        (["photos", "--revision", "v1"], "clip has no revisions to choose from; leave out --revision"),
    ],
)
def test_bad_input(arguments: list[str], said: str) -> None:
    assert refused(zeroshot(*arguments), said)


def test_words_asked_of_a_model_of_images_alone() -> None:
    save("vit", Path("vit"))
    said = "vit has no pooling 'projection', the space of images and texts: .* give a model of both"
    assert refused(transferkit("zeroshot", "photos", "--extractor", "vit"), said)
    assert refused(transferkit("fit", "photos", "--model.backbone", "vit", "--model.head", "zeroshot"), said)


@pytest.mark.slow
def test_ten_thousand_classes() -> None:
    Path("classes.txt").write_text("\n".join(f"thing {number}" for number in range(10_000)), encoding="utf-8")
    done = zeroshot("photos", "--classes", "classes.txt", "--templates", '["{}"]')
    assert done.status == 0, done.err
    assert "20 images have a label that is not among the classes" in done.err


def metrics_of(run: str) -> list[dict[str, str]]:
    with Path(run, "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["val/acc"]]


@pytest.mark.parametrize("regime", ["frozen", pytest.param("full", marks=pytest.mark.slow)])
def test_a_fit_begins_with_what_words_say(regime: str) -> None:
    words = json.loads(zeroshot("photos", "--split", "val", "--json").out)
    done = transferkit("fit", *FIT, "--model.regime", regime, "--trainer.max_epochs", "2", "--name", regime, "--json")
    assert done.status == 0, done.err
    validated = metrics_of(f"runs/{regime}/0")
    assert len(validated) == 3  # before the first step, and after each epoch
    assert float(validated[0]["val/acc"]) == pytest.approx(words["test/acc"])
    assert float(validated[0]["val/ece"]) == pytest.approx(words["test/ece"], abs=1e-5)
    assert json.loads(done.out)["metrics"]["val/acc"] >= words["test/acc"] - 1e-6
    done = transferkit("test", "--name", regime, "--data.root", "photos", "--data.num_workers", "0")
    assert done.status == 0, done.err
