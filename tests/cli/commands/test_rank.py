"""rank: the files and the table agree, and bad input gets one line."""

import csv
import json
from contextlib import chdir
from pathlib import Path

import pytest

from tests.running import refused, transferkit, write_photos
from transferkit.cli.commands.rank import split_names

COLOURS = {"apples": (190, 50, 40), "limes": (70, 180, 60)}


@pytest.mark.slow
def test_two_extractors_are_ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    write_photos(tmp_path / "photos", COLOURS, {"train": 8, "test": 6})
    with chdir(tmp_path):
        names = ["squeezenet1_1", "shufflenet_v2_x0_5"]
        command = ["rank", "photos", "--extractors", ", ".join(names), "--weights", "none", "--fast"]
        done = transferkit(*command, "--json")
        assert done.status == 0, done.err
        found = json.loads(done.out)
        assert sorted(row["extractor"] for row in found["rows"]) == sorted(names)
        assert {row["width"] for row in found["rows"]} == {512, 1024} and found["splits"]["test"] == 12
        assert found["rows"][0]["linear"]["top1"] >= found["rows"][1]["linear"]["top1"]
        saved = json.loads(Path("rank/rank.json").read_text())
        assert {name: saved[name] for name in found} == found
        with Path("rank/rank.csv").open() as file:
            assert [row["extractor"] for row in csv.DictReader(file)] == [row["extractor"] for row in found["rows"]]
        probed = transferkit("probe", "photos", "--extractor", names[0], "--weights", "none", "--fast", "--json")
        (same,) = (row for row in found["rows"] if row["extractor"] == names[0])
        assert json.loads(probed.out)["linear"]["top1"] == same["linear"]["top1"]
        table = transferkit(*command)
        assert table.status == 0 and "test images" in table.out and Path("rank/report.html").is_file()
        assert refused(
            transferkit(*command, "--seed", "1"), r"rank.json holds results that differ in seed \(0, now 1\)"
        )
        assert json.loads(Path("rank/rank.json").read_text()) == saved


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([], "give two or more extractors to rank"),
        (["--extractors", "resnet18,"], "give two or more extractors to rank"),
        (["--extractors", "resnet18,resnet18"], "--extractors has 'resnet18' twice"),
    ],
)
def test_bad_input_gets_one_line(given: list[str], line: str) -> None:
    assert refused(transferkit("rank", "digits", *given), line)


def test_names_may_have_spaces() -> None:
    assert split_names(" a, b/c ,d") == ["a", "b/c", "d"]
