"""Every verb treats results that are there alike: the same question replaces them, another only with --overwrite."""

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import torch

from tests.running import refused, transferkit, write_photos
from tests.tiny import VIT, options
from transferkit.cli.dispatch import VERBS
from transferkit.data.embeddings import Embeddings
from transferkit.extractor import Extractor

CPU = ("--accelerator", "cpu")
NET = ("--extractor", "squeezenet1_1", "--weights", "none", *CPU)
SAVED = ("--extractor", "net", *CPU)
EMBED = ("--extractor", "squeezenet1_1", "--weights", "none", "--trainer.accelerator", "cpu")
BOXES = "path,x1,y1,x2,y2\nval/limes/0.jpg,2,2,{},20\n"
BARE = ("--pictures", "false")
SLOW = pytest.mark.slow

CASES = {  # verb -> place, a command, and another question; the place is the default one or that of --out
    "evaluate": ("a-evaluation", ["a.parquet", *BARE], ["a.parquet", "--seed", "1", *BARE]),
    "evaluate of another table": ("e", ["a.parquet", "--out", "e"], ["b.parquet", "--out", "e"]),
    "evaluate against references": (
        "f",
        ["a.parquet", "--reference", "b.parquet", "--out", "f"],
        ["a.parquet", "--reference", "a.parquet", "--out", "f"],
    ),
    "probe": ("probe", ["a.parquet", "--fast"], ["b.parquet", "--fast"]),
    "audit": ("audit", ["a.parquet"], ["b.parquet"]),
    "audit with other folds": ("g", ["a.parquet", "--out", "g"], ["a.parquet", "--out", "g", "--folds", "3"]),
    "embed": ("h.parquet", ["photos", *EMBED, "--out", "h.parquet"], ["photos/val", *EMBED, "--out", "h.parquet"]),
    "embed of a layer": (
        "i.parquet",
        ["photos", *EMBED, "--out", "i.parquet"],
        ["photos", *EMBED, "--out", "i.parquet", "--layer", "3"],
    ),
    "embed into shards": ("j", ["photos", *EMBED, "--out", "j/"], ["photos/val", *EMBED, "--out", "j/"]),
    "regions": (
        "regions.parquet",
        ["photos", "--boxes", "one.csv", *NET],
        ["photos", "--boxes", "other.csv", *NET],
    ),
    "regions by another method": (
        "k.parquet",
        ["photos", "--boxes", "one.csv", *NET, "--out", "k.parquet"],
        ["photos", "--boxes", "one.csv", *NET, "--out", "k.parquet", "--method", "roi_align"],
    ),
    "index": ("index", ["photos", *SAVED], ["photos/val", *SAVED]),
    "rank": (
        "rank",
        ["photos", "--extractors", "squeezenet1_0,squeezenet1_1", "--weights", "none", "--fast", *CPU],
        ["photos", "--extractors", "squeezenet1_0,squeezenet1_1", "--weights", "none", "--fast", *CPU, "--seed", "1"],
    ),
    "explain": (
        "runs/fit/0/explained",
        ["photos/val", *CPU, "--k", "0"],
        ["photos/train", *CPU, "--k", "0"],
    ),
}
QUICK = ("evaluate", "audit")
NEW_PLACE = {"fit", "predict", "quickstart"}  # each time a place of its own
IN_RUN = {"validate", "test"}  # what a run is worth, measured again
HANDED_ON = {"export", "distill"}  # somebody may have changed the files: never replaced without --overwrite
CELLS = {"benchmark"}  # keeps every cell, of any question
PAGES = {"report", "scan", "search"}  # of what is there, in moments: pages replace pages
ASKED = {"zeroshot"}  # tests/cli/commands/test_zeroshot.py
NOTHING = {"compare", "similarity", "duplicates", "models", "cache", "completion", "doctor"}


def test_every_verb_has_a_rule() -> None:
    rules = [{name.split()[0] for name in CASES}, NEW_PLACE, IN_RUN, HANDED_ON, CELLS, PAGES, ASKED, NOTHING]
    assert sorted(name for rule in rules for name in rule) == sorted(VERBS)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two tables, boxes, photos and, when it is needed, a run."""
    folder = tmp_path_factory.mktemp("overwrite")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERKIT_CACHE", str(folder / "cache"))
        for seed, name in enumerate(("a", "b")):
            rows = torch.randn(24, 3, generator=torch.Generator().manual_seed(seed))
            rows += torch.tensor([[4.0, 0, 0], [0, 4, 0]] * 12)
            paths = [f"{row:02d}.jpg" for row in range(24)]
            Embeddings(rows, paths, ["ants", "bees"] * 12, [None] * 24, {}).save(f"{name}.parquet")
        write_photos(folder / "photos", {"apples": (190, 50, 40), "limes": (70, 180, 60)}, {"train": 6, "val": 4})
        for name, right in (("one", 20), ("other", 25)):
            (folder / f"{name}.csv").write_text(BOXES.format(right))
        yield folder


def save_net() -> None:
    """Write an extractor, which an index opens again for its queries."""
    Extractor.from_pretrained("squeezenet1_1", weights="none").save_pretrained("net", overwrite=True)


def content(place: Path) -> dict[str, bytes]:
    """The bytes of every file below a place but pages and figures, which have no time in them but need none here."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.suffix not in (".html", ".png")}


@pytest.mark.parametrize("name", [each if each in QUICK else pytest.param(each, marks=SLOW) for each in CASES])
def test_only_the_same_question_replaces_results(name: str, work: Path) -> None:
    verb, (where, first, other) = name.split()[0], CASES[name]
    place = Path(where)
    if verb == "explain":
        done = transferkit("fit", "photos", *options("model", VIT), "--trainer.accelerator", "cpu")
        assert done.status == 0, done.err
    if verb == "index":
        save_net()
    done = transferkit(verb, *first)
    assert done.status == 0, done.err
    before = content(place)
    assert before
    done = transferkit(verb, *first)
    assert done.status == 0 and content(place) == before, done.err
    done = transferkit(verb, *other)
    assert refused(done, r"holds results that differ in |indexes .* not ") and "--overwrite" in done.err
    assert content(place) == before
    done = transferkit(verb, *other, "--overwrite")
    assert done.status == 0 and content(place) != before, done.err


@pytest.mark.parametrize("verb", ["report", "scan", pytest.param("search", marks=SLOW)])
def test_pages_replace_pages_alone(verb: str, work: Path) -> None:
    """What somebody else wrote stays, whatever its name; a page is replaced."""
    precious = work / f"{verb}.html"
    precious.write_text("<!doctype html><p>mine")
    table = Embeddings.load("a.parquet")
    if verb == "search" and not Path("pages").exists():
        save_net()
        assert transferkit("index", "photos", *SAVED, "--out", "pages").status == 0
    if verb == "report" and not Path("l").exists():
        table.save("l.parquet")
        assert transferkit("evaluate", "l.parquet", "--out", "l", "--pictures", "false").status == 0
    query = "photos/val/limes/0.jpg"
    command = {
        "report": ["l", "--out"],
        "scan": ["photos", "--report"],
        "search": ["pages", query, *CPU, "--html"],
    }[verb]
    assert refused(transferkit(verb, *command, str(precious)), "holds something else than a page")
    assert precious.read_text() == "<!doctype html><p>mine"
    page = work / f"own-{verb}.html"
    for _ in range(2):
        assert transferkit(verb, *command, str(page)).status == 0
    image = Path(query)
    if verb != "search":
        bytes_before = image.read_bytes()
        assert refused(transferkit(verb, *command, str(image)), "holds something else than a page")
        assert image.read_bytes() == bytes_before
