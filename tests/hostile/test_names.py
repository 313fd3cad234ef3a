"""Names of classes and files that would control a terminal, break a line, or run in a page are escaped everywhere."""

import csv
import json
import shlex
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.hostile.entrances import SMALL, parquet
from tests.running import Done, transferkit, write_photos
from transferkit.cli.console import command, table
from transferkit.runtime.text import for_terminal

CLASSES = {
    "<script>alert(1)<": (190, 50, 40),
    "a\tb\nc\x1b[31m": (70, 180, 60),
    "$\\frac$ \\x{": (90, 40, 130),  # invalid mathematics to a plotting library
    "=cmd|' '!A0": (10, 10, 10),  # a formula to a spreadsheet
    "猫\u202egpj.ü": (200, 200, 200),  # reverses the direction of the following text
    "'; rm -rf x; '": (90, 90, 90),
    "[red]x[bold]": (0, 90, 90),  # markup to rich
    "%s {0} {x!r}": (90, 0, 90),
}
FILE = "x\x1b[2J\r\n<img src=x onerror=alert(1)>\x07.jpg"


@pytest.fixture
def hostile(here: Path) -> Path:
    """Images under hostile names."""
    write_photos(here / "photos", CLASSES, {"train": 2, "val": 1, "test": 1})
    for label in CLASSES:
        (here / "photos/train" / label / "0.jpg").rename(here / "photos/train" / label / FILE)
    return here / "photos"


def printed_harmlessly(done: Done) -> bool:
    """Return whether only text and line ends reach the terminal."""
    return all(character.isprintable() or character == "\n" for character in done.out + done.err)


@pytest.mark.slow
def test_every_verb_prints_them_escaped_and_keeps_them_exact(hostile: Path) -> None:
    end = ["--data.root", "photos", "--name", "tiny"]
    done = transferkit("fit", *end, *SMALL, "--trainer.max_epochs", "1")
    assert done.status == 0 and printed_harmlessly(done) and "Warning" not in done.err, done.err
    (events,) = Path("runs/tiny/0").glob("events.out.tfevents.*")
    in_tensorboard_are_pictures_and_no_text_of_theirs(events)
    for verb in ("validate", "test", "predict"):  # add a new verb that prints names
        done = transferkit(verb, *end)
        assert done.status == 0, done.err
        assert printed_harmlessly(done), verb
    done = transferkit("export", "runs/tiny/0/checkpoints/best.ckpt", "--out", "exported")
    assert done.status == 0 and printed_harmlessly(done), done.err
    card = Path("exported/README.md").read_text()
    assert "<script>" not in card and all(character.isprintable() or character == "\n" for character in card)
    rows = parquet("runs/tiny/0/predict/predictions.parquet")
    assert sum(row["path"].endswith(f"/{FILE}") for row in rows) == len(CLASSES)
    assert {row["path"].split("/")[1] for row in rows} == set(CLASSES)
    assert {row["prediction"] for row in rows} <= set(CLASSES)


def test_a_line_about_bad_input_is_one_line(hostile: Path) -> None:
    (hostile / "train" / "a\tb\nc\x1b[31m" / FILE).write_bytes(b"no image")
    for arguments in (["fit", "--data.root", "photos", *SMALL], ["fit", "--data.root", "no\x1b[31m\nsuch"]):
        done = transferkit(*arguments)
        assert done.status == 2
        assert printed_harmlessly(done)
        assert done.err.splitlines()[-1].startswith("transferkit: error: ")


def test_scan_prints_and_writes_them_escaped(hostile: Path, here: Path) -> None:
    (hostile / "train" / "a\tb\nc\x1b[31m" / FILE).write_bytes(b"no image")
    done = transferkit("scan", "photos", "--out", "report.csv")
    assert done.status == 2 and printed_harmlessly(done)
    text = (here / "report.csv").read_text()
    assert all(character.isprintable() or character == "\n" for character in text)
    with (here / "report.csv").open(newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["severity"] == "error"]
    assert row["path"] == for_terminal(f"train/a\tb\nc\x1b[31m/{FILE}")
    done = transferkit("scan", "photos", "--json")
    assert printed_harmlessly(done)
    assert set(json.loads(done.out)["classes"]) == set(CLASSES)


def in_tensorboard_are_pictures_and_no_text_of_theirs(events: Path) -> None:
    found = EventAccumulator(str(events)).Reload()
    assert "val/confusion" in found.Tags()["images"]
    names = [name for tags in found.Tags().values() if isinstance(tags, list) for name in tags]
    assert all(for_terminal(name) == name for name in names)
    assert not any(label in name for name in names for label in CLASSES)
    assert not any(word in events.read_bytes() for word in (b"<script>", b"\x1b[31m"))


@pytest.mark.parametrize("name", [*CLASSES, FILE, "\udc80", "\x9b31m", "\u2028"])
def test_what_report_prints_is_harmless(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert for_terminal(name).isprintable()
    table(["name"], [[name]], title=for_terminal(name))
    out = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in out)


def test_a_command_to_paste_quotes_them() -> None:
    for name in CLASSES:
        assert shlex.split(command("fit", "--data.root", name)) == ["transferkit", "fit", "--data.root", name]
