"""``transferkit benchmark`` from the command line."""

import json
from pathlib import Path

import pytest
import yaml

from tests.commands.running import transferkit

CONFIG = {
    "extractors": {
        "random": {"extractor": "shufflenet_v2_x0_5", "weights": "none"},
        "pretrained": "resnet18",
    },
    "datasets": {"photos": "photos"},
    "out": "out",
    "fast": True,
}


@pytest.fixture(autouse=True)
def place(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(photo_folder.parent)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(photo_folder.parent / "cache"))
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    return photo_folder.parent


def test_a_table_of_what_could_be_measured(place: Path) -> None:
    done = transferkit("benchmark", "--config", "mine.yaml")
    assert done.status == 0
    assert "random" in done.out and "linear" in done.out
    assert "1 of 2 cells could not be measured" in done.err
    assert "cannot be reached" in (place / "out/benchmark.md").read_text()
    assert "written: out/benchmark.md, out/benchmark.csv, out/benchmark.png" in done.err
    again = transferkit("benchmark", "--config", "mine.yaml", "--json")
    cells = json.loads(again.out)["cells"]
    assert [cell["approach"] for cell in cells] == ["random", "pretrained"]
    assert cells[0]["top1"] is not None and cells[1]["top1"] is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"extractors": {"x": {"extractor": "resnet18", "wieghts": "none"}}},
            "'x' has no option 'wieghts'; it takes extractor, weights",
        ),
        ({"extractors": {"x": {"weights": "none"}}}, "'x' has no 'extractor'"),
        ({"extractors": {"x": {"extractor": 18}}}, "extractor of 'x' is 18; give text"),
        ({"extractors": None}, "no extractors to benchmark"),
        ({"datasets": {}}, "no datasets to benchmark"),
        ({"datasets": ["photos"]}, "--datasets is"),
        ({"on_error": "maybe"}, "--on_error is 'maybe'; give 'fail', 'skip'"),
        ({"ouf": "x"}, "ouf"),
    ],
)
def test_a_config_that_cannot_be_used(change: dict[str, object], line: str, place: Path) -> None:
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIG | change))
    done = transferkit("benchmark", "--config", "mine.yaml")
    assert done.status == 2, done.err
    assert line in done.err and done.err.count("\n") == 1
    assert not (place / "out").exists()
