"""The same seed gives the same result to the bit, for every command, whatever the number of workers."""

import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backbones.words import save_dual
from tests.kill.traces import timeless, traces
from tests.running import transferkit, write_photos
from tests.tiny import RESNET, VIT, options
from transferkit.data.embeddings import Embeddings
from transferkit.similarity import cosine_matrix

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}
NET = "shufflenet_v2_x0_5"
RANDOM = ["--extractor", NET, "--weights", "none"]
FIT = ["--data.root", "photos", "--name", "cut", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"]
ALONE = ["--data.num_workers", "0"]
FULL = [*options("model", {**VIT, "regime": "full", "dropout": 0.3}), "--data.augmentation", "strong"]
BOXES = "path,x1,y1,x2,y2\ntrain/apples/0.jpg,0,0,20,20\nval/limes/0.jpg,5,5,30,30\n"
GRID = ["--extractors", json.dumps({name: {"extractor": name, "weights": "none"} for name in (NET, "squeezenet1_1")})]
GRID += ["--datasets", '{"photos": "photos"}', "--fast"]
DISTILL = ["--image_size", "64", "--epochs", "1", "--views", "2", "--batch_size", "4", "--num_workers", "0", "--json"]
# In this order, in one folder: what is tested of a command may need what those before it left.
COMMANDS = {
    "fit": ["fit", *FULL, *FIT, *ALONE],
    "validate": ["validate", "--name", "cut", *FIT[:2], *ALONE],
    "test": ["test", "--name", "cut", *FIT[:2], *ALONE],
    "predict": ["predict", "--name", "cut", *FIT[:2], *ALONE],
    "explain": ["explain", "photos/val", "--name", "cut", "-k", "2", "--json"],
    "embed": ["embed", "photos", *RANDOM, "--out", "e.parquet"],
    "evaluate": ["evaluate", "e.parquet", "--out", "evaluated"],
    "compare": ["compare", "e.parquet", "e.parquet", "--json"],
    "similarity": ["similarity", "photos/val/limes/0.jpg", "photos/val/apples/0.jpg", *RANDOM, "--json"],
    "probe": ["probe", "photos", *RANDOM, "--fast", "--json"],
    "rank": ["rank", "photos", "--extractors", f"{NET},squeezenet1_1", "--weights", "none", "--fast", "--json"],
    "benchmark": ["benchmark", *GRID, "--json"],
    "export": ["export", NET, "--weights", "none", "--out", "exported"],
    "distill": ["distill", "photos", "--teacher", "exported", "--student", NET, "--weights", "none", *DISTILL],
    "index": ["index", "photos", "--extractor", "exported", "--index", "HNSW8"],
    "search": ["search", "index", "photos/val/limes/0.jpg", "--json"],
    "regions": ["regions", "photos", "--boxes", "boxes.csv", *RANDOM],
    "duplicates": ["duplicates", "photos", *RANDOM, "--threshold", "1", "--json"],
    "scan": ["scan", "photos", "--out", "scan.csv", "--json"],
    "zeroshot": ["zeroshot", "photos", "--extractor", "dual", "--json"],
    "models": ["models", "google/*", "--json"],
    "audit": ["audit", "e.parquet", "--out", "audited"],
    "report": ["report", "probe"],
    "cache": ["cache"],
    "completion": ["completion", "bash"],
}
QUICK = ("fit", "embed", "similarity", "probe", "scan")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with chdir(tmp_path):
        yield tmp_path
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)


def left_by(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What commands print on stdout as JSON, and leave in a folder with photos, without their times.

    The folder and the files of the photos are the same each time: their names and times are in some results.
    """
    if not Path("photos").is_dir():
        write_photos(Path("photos"), COLOURS, {"train": 6, "val": 4})
    work = Path("work").absolute()
    work.mkdir()
    Path("photos").rename(work / "photos")  # a copy would have other times: see transferkit.data.fingerprint
    (work / "boxes.csv").write_text(BOXES)
    if any(command[0] == "zeroshot" for command in commands):
        save_dual("clip", work / "dual")
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(work / "cache"))
    found: dict[str, Any] = {}
    with chdir(work):
        for arguments in commands:
            done = transferkit(*arguments)
            assert done.status in (0, 2) and "transferkit: error" not in done.err, done.err
            if "--json" in arguments:
                found[arguments[0]] = timeless(json.loads(done.out))
        found |= traces(Path())
    (work / "photos").rename("photos")
    shutil.rmtree(work)
    return found


def test_every_verb_is_here() -> None:
    from transferkit.cli.dispatch import VERBS

    assert {*COMMANDS, "quickstart", "doctor"} == set(VERBS)  # tests/training/test_demo.py runs the quickstart


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    return True


@pytest.mark.parametrize("names", [QUICK, pytest.param(tuple(COMMANDS), marks=pytest.mark.slow)], ids=len)
def test_twice_is_the_same(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [COMMANDS[name] for name in names]
    one, two = (left_by(commands, monkeypatch) for _ in range(2))
    assert same(one, two)


@pytest.mark.parametrize(
    ("verb", "option", "more"),
    [
        ("embed", "--workers", ("1", "3")),
        pytest.param("fit", "--data.num_workers", ("0", "2"), marks=pytest.mark.slow),
    ],
)
def test_the_number_of_workers_does_not_matter(
    verb: str, option: str, more: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [part for part in COMMANDS[verb] if part not in ALONE]
    one, two = (left_by([[*arguments, option, count]], monkeypatch) for count in more)
    for left in (one, two):
        for name in ("config.yaml", "report.html"):  # which say how many there were
            left.pop(f"runs/cut/0/{name}", None)
    assert same(one, two)


def test_random_weights_are_those_of_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was drawn before: a probe measures the network that embed and export show."""
    left_by([], monkeypatch)
    random, exported = (Path(f"{name}.parquet") for name in ("random", "exported"))
    torch.rand(7)
    for arguments in (
        COMMANDS["export"],
        ["embed", "photos", *RANDOM, "--out", str(random)],
        ["embed", "photos", "--extractor", "exported", "--out", str(exported)],
        ["similarity", *COMMANDS["similarity"][1:]],
    ):
        done = transferkit(*arguments)
        assert done.status == 0, done.err
    one, two = Embeddings.load(random), Embeddings.load(exported)
    assert torch.equal(one.embedding, two.embedding)
    rows = [one.paths.index(path) for path in ("val/limes/0.jpg", "val/apples/0.jpg")]
    cosine = torch.tensor(json.loads(done.out)["cosine"])
    torch.testing.assert_close(cosine_matrix(one.embedding[rows]), cosine, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_the_seed_of_the_split_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed of the training leaves the splits, another seed of the splits the first weights."""
    command = ["fit", *options("model", RESNET), *FIT[2:], *ALONE, "--data.root", "photos/train"]
    found = {}
    for training, splits in (("1", "1"), ("2", "1"), ("1", "2")):
        seeds = ["--seed_everything", training, "--data.split_seed", splits, "--data.val_fraction", "0.5"]
        left = left_by([[*command, *seeds]], monkeypatch)
        saved = left["runs/cut/0/checkpoints/last.ckpt"]["state_dict"]
        backbone = {name: value for name, value in saved.items() if name.startswith("backbone.")}
        found[training, splits] = left["runs/cut/0/splits.parquet"], backbone
    assert found["1", "1"][0] == found["2", "1"][0] != found["1", "2"][0]
    assert found["1", "1"][1] == found["1", "2"][1] != found["2", "1"][1]
