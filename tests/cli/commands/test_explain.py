"""``explain``: pictures, nearest training images and a page, of a run, a checkpoint or an export."""

import html
import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.running import refused, transferkit, write_photos
from tests.tiny import VIT, options
from transferkit.extractor import Extractor
from transferkit.similarity import cosine_matrix

NASTY = "limes<b>&'"
COLOURS = {"apples": (190, 50, 40), NASTY: (70, 180, 60)}
BEST = "runs/fit/0/checkpoints/best.ckpt"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photos and a run."""
    folder = tmp_path_factory.mktemp("explain")
    write_photos(folder / "photos", COLOURS, {"train": 6, "val": 3})
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERKIT_CACHE", str(folder / "cache"))
        done = transferkit("fit", "photos", *options("model", VIT), "--trainer.accelerator", "cpu")
        assert done.status == 0, done.err
        yield folder


def explained(*arguments: str) -> dict[str, Any]:
    place = [] if "--out" in arguments else ["--out", "explained", "--overwrite"]
    done = transferkit("explain", *arguments, *place, "--accelerator", "cpu", "--json")
    assert done.status == 0, done.err
    content: dict[str, Any] = json.loads(done.out)
    return content


def test_a_run(work: Path) -> None:
    found = explained("photos/val")
    assert found == json.loads(Path("explained/explanations.json").read_text()) and found["checkpoint"] == BEST
    extractor = Extractor.from_pretrained(BEST)
    paths = sorted(path.relative_to("photos/val").as_posix() for path in Path("photos/val").rglob("*.*g"))
    assert [each["path"] for each in found["images"]] == paths
    train = sorted(map(str, Path("photos/train").rglob("*.*g")))
    cosine = cosine_matrix(extractor.embed([f"photos/val/{path}" for path in paths]), extractor.embed(train))
    for each, row in zip(found["images"], cosine, strict=True):
        with Image.open(Path("explained") / each["overlay"]) as drawn:
            assert drawn.size == Image.open(f"photos/val/{each['path']}").size
        assert each["label"] == Path(each["path"]).parent.name and each["class_name"] == each["prediction"]
        near = torch.tensor([near["cosine"] for near in each["nearest"]])
        torch.testing.assert_close(near, row.topk(5).values, atol=1e-5, rtol=0)
        assert [near["label"] for near in each["nearest"]] == [
            Path(near["path"]).parent.name for near in each["nearest"]
        ]
        assert all(abs(row[train.index(near["path"])] - near["cosine"]) < 1e-5 for near in each["nearest"])
    page = Path("explained/report.html").read_text(encoding="utf-8")
    assert "limes&lt;b&gt;&amp;" in page and "<b>" not in page


def test_into_the_run_whose_report_shows_it(work: Path) -> None:
    labels = {f"photos/val/{name}/{number}": name for name in COLOURS for number in range(3)}
    rows = [f"{file},{'apples' if name != 'apples' else NASTY}" for file, name in labels.items()]
    found = {path.with_suffix("").as_posix(): path.as_posix() for path in Path("photos/val").rglob("*.*g")}
    lines = [f"{found[row.split(',')[0]]},{row.split(',')[1]}" for row in rows]
    Path("wrong.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    right = explained("photos/val")["images"]
    done = transferkit("explain", "wrong.csv", "--mistakes", "--accelerator", "cpu", "--json")  # every label is wrong
    assert done.status == 0, done.err
    images = json.loads(done.out)["images"]
    assert all(each["label"] != each["prediction"] for each in images)
    assert len(images) == sum(each["label"] == each["prediction"] for each in right) > 0
    assert [each["probability"] for each in images] == sorted((each["probability"] for each in images), reverse=True)
    page = Path("runs/fit/0/report.html").read_text(encoding="utf-8")
    assert page.count("what spoke for") >= len(images) and "Mistakes come first" in page and "<b>" not in page
    assert page.count('aria-label="training image train/') == 4 * min(8, len(images)) > 0
    assert f"apples taken for {html.escape(NASTY, quote=True)}, and the nearest" in page.replace("&#39;", "&#x27;")
    Path("runs/fit/0/explained/explanations.json").write_text('{"images": [1]}')
    assert transferkit("report", "runs/fit/0").status == 0
    assert "explanations.json is damaged; explain again" in Path("runs/fit/0/report.html").read_text(encoding="utf-8")
    Path("runs/fit/0/explained/explanations.json").write_text(
        done.out.replace('"weights_sha256": "', '"weights_sha256": "0')
    )
    assert transferkit("report", "runs/fit/0").status == 0
    assert "another checkpoint was explained" in Path("runs/fit/0/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["runs/fit/0", "last", BEST])
def test_what_may_be_explained(place: str, work: Path) -> None:
    found = explained("photos/val/apples", "--ckpt_path", place, "--out", "other", "-k", "0")
    assert len(found["images"]) == 3 and all(each["nearest"] == [] for each in found["images"])


def test_an_export_needs_the_training_images(work: Path) -> None:
    assert transferkit("export", BEST, "--out", "exported").status == 0
    done = transferkit("explain", "photos/val", "--ckpt_path", "exported", "--accelerator", "cpu")
    assert done.status == 0 and "not in it: the nearest training images: an export does not name" in done.err
    found = explained("photos/val", "--ckpt_path", "exported", "--train", "photos/train", "-k", "2")
    assert all(len(each["nearest"]) == 2 for each in found["images"])
    assert found["images"] == [each | {"nearest": each["nearest"][:2]} for each in explained("photos/val")["images"]]


def test_an_image_is_not_its_own_neighbor(work: Path) -> None:
    for each in explained("photos/train", "--out", "own", "-k", "20")["images"]:
        assert len(each["nearest"]) == 11 and f"photos/train/{each['path']}" not in [n["path"] for n in each["nearest"]]


def test_images_that_have_gone(work: Path) -> None:
    shutil.copytree("photos/val", "new")
    Path("photos").rename("moved")
    try:
        done = transferkit("explain", "new", "--out", "gone", "--accelerator", "cpu")
        assert done.status == 0 and "the training images of runs/fit/0 are not there" in done.err
        assert all(each["nearest"] for each in explained("new", "--out", "gone", "--train", "moved/train")["images"])
    finally:
        Path("moved").rename("photos")


def test_unreadable_images_are_left_out(work: Path) -> None:
    Path("mixed").mkdir()
    Path("mixed/bad.png").write_text("no")
    done = transferkit("explain", "mixed", "--out", "none", "--accelerator", "cpu")
    assert refused(done, "none of the 1 images can be read")
    shutil.copy("photos/val/apples/0.jpg", "mixed/good.jpg")
    found = explained("mixed", "--out", "mixed-out")
    assert [each["path"] for each in found["images"]] == ["good.jpg"] and found["unreadable"] == ["bad.png"]
    assert found["images"][0]["label"] is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["photos/val", "-k", "-1"], "-k is -1; give 0 or more"),
        (
            ["photos/val", "--class_name", "pears", "--out", "pears"],
            r"--class_name is 'pears', which is not a class here",
        ),
        (["photos/val", "--ckpt_path", "gone.ckpt"], "checkpoint gone.ckpt does not exist"),
        (["photos/val", "--name", "gone"], "no run with a checkpoint in runs/gone"),
        (["photos/val", "--ckpt_path", "photos"], "photos"),
        (["no-photos"], "no-photos"),
        (["photos/val/apples/0.jpg", "--mistakes"], "--mistakes needs labels, and photos/val/apples/0.jpg has none"),
    ],
)
def test_bad_input(arguments: list[str], says: str, work: Path) -> None:
    assert refused(transferkit("explain", *arguments, "--accelerator", "cpu"), says)
