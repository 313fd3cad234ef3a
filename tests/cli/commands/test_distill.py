"""distill: a run, and a student that is an extractor; resumed with the options of its run; bad input gets one line."""

import json
from contextlib import chdir
from pathlib import Path

import pytest

from tests.running import refused, transferkit, write_photos
from tests.tiny import VIT
from transferkit.extractor import Extractor

COLORS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos and a teacher."""
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    write_photos(tmp_path / "photos", COLORS, {"train": 8, "test": 2})
    teacher = Extractor.from_pretrained(VIT["backbone"], "none", None, {"image_size": 32}, VIT["architecture"])
    teacher.save_pretrained(tmp_path / "teacher")
    return tmp_path


@pytest.mark.slow
def test_a_student_is_an_extractor_and_a_run_is_resumed(here: Path) -> None:
    command = ["distill", "photos", "--teacher", "teacher", "--student", "teacher", "--batch_size", "8"]
    quick = ["--num_workers", "0", "--accelerator", "cpu"]
    with chdir(here):
        done = transferkit(*command, *quick, "--epochs", "2", "--out", "one", "--json")
        assert done.status == 0, done.err
        found = json.loads(done.out)
        assert found["run"] == "runs/distill/0" and found["metrics"]["val/loss"] > 0 and "epoch 2/2" in done.err
        assert refused(transferkit(*command, "--out", "one"), "one exists; choose another place or add --overwrite")
        resumed = transferkit("distill", "--ckpt_path", "last", "--epochs", "3", "--out", "two")
        assert resumed.status == 0 and "epoch 3/3" in resumed.err and not Path("runs/distill/1").exists()
        assert "written: runs/distill/0, two" in resumed.err
        probed = transferkit("probe", "photos", "--extractor", "two", "--fast", "--json")
        assert probed.status == 0, probed.err
        exported = transferkit("export", "best", "--name", "distill", "--out", "three")
        assert exported.status == 0, exported.err
        card = Path("three/README.md").read_text()
        assert "| regime | distill |" in card and "| teacher | teacher |" in card and "`val/cosine`" in card
        assert Path("two/model.safetensors").read_bytes() == Path("three/model.safetensors").read_bytes()
        other = ["--ckpt_path", "last", "--lr", "0.5", "--out", "four"]
        assert refused(transferkit("distill", "photos", *other), "--lr 0.5 differs from the 0.001")
        assert refused(transferkit("test", "--name", "distill"), "lacks model or data")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--teacher", "nowhere/teacher"], "nowhere/teacher"),
        (["--views", "0"], "--views is 0; give 1 or more"),
        (["--ckpt_path", "last"], r"no run with a checkpoint in runs/distill"),
        (["--image_size", "small"], "--image_size"),
    ],
)
def test_bad_input_gets_one_line(here: Path, given: list[str], line: str) -> None:
    options = {"--teacher": "teacher", "--student": "teacher", **dict(zip(given[::2], given[1::2], strict=True))}
    with chdir(here):
        assert refused(transferkit("distill", "photos", *(part for pair in options.items() for part in pair)), line)
        assert not Path("runs").exists() and not Path("student").exists()


def test_networks_of_other_proportions_cannot_share_views(here: Path) -> None:
    wide = Extractor.from_pretrained(here / "teacher")
    wide.preprocessing = wide.preprocessing.replace(image_size=(32, 64))
    wide.save_pretrained(here / "wide")
    with chdir(here):
        command = ["distill", "photos", "--teacher", "wide", "--student", "teacher", "--accelerator", "cpu"]
        line = r"cannot share views: .* 32 x 64 pixels, the student 32 x 32; .* by --teacher_size and --image_size$"
        assert refused(transferkit(*command), line)
