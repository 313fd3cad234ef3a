"""Every verb that probes says so if the backbone was trained on images that it is measured on."""

from pathlib import Path

import pytest
import yaml

from tests.extractor.examples import resnet18
from tests.running import transferkit
from transferkit.data.image_table import open_images
from transferkit.data.seen import BACKBONE, remember_paths

OTHER = ["squeezenet1_1", "none"]


@pytest.fixture
def trained_on_all(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An exported extractor whose record remembers every image of the folder."""
    monkeypatch.chdir(photo_folder.parent)
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(photo_folder.parent / "cache"))
    extractor = resnet18()
    extractor.record[BACKBONE] = remember_paths(open_images(photo_folder).paths)
    extractor.save_pretrained("trained")
    extractor.record[BACKBONE] = remember_paths(["elsewhere.jpg"])
    extractor.save_pretrained("other")
    benchmark = {"extractors": {"mine": "trained", "not": "other"}, "datasets": {"photos": "photos"}, "fast": True}
    Path("mine.yaml").write_text(yaml.safe_dump(benchmark))
    return "trained"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["probe", "photos", "--extractor", "trained", "--fast"], ["", ""]),
        (["probe", "photos", "--extractor", "other", "--fast"], []),
        (["probe", "photos", "--extractor", "trained", "--fast", "--folds", "2"], [""]),
        (["rank", "photos", "--extractors", "trained,other", "--fast"], ["trained: "] * 2),
        (["benchmark", "--config", "mine.yaml"], ["mine on photos: "] * 2),
    ],
)
def test_it_is_said(trained_on_all: str, command: list[str], said: list[str]) -> None:
    done = transferkit(*command)
    assert done.status == 0, done.err
    lines = [line for line in done.err.splitlines() if "have paths that the backbone was trained on" in line]
    assert len(lines) == len(said), done.err
    assert all(line.startswith(f"warning: {before}") for line, before in zip(lines, said, strict=True))
