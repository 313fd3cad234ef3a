"""What a checkpoint of adapters records of the extractor that they belong to."""

from pathlib import Path

import pytest

from transferkit import backbones
from transferkit.backbones.adapters import Adapters
from transferkit.extractor.adapted import adapter_record


def test_a_folder_does_not_hide_the_model_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = backbones.build("resnet18", "none")
    given = {"weights": "none", "pooling": None, "preprocessing": None, "revision": None}

    def recorded(source: str) -> str:
        found: str = adapter_record({**given, "source": source}, backbone, Adapters(4, 8.0))["base"]["source"]
        return found

    Path("resnet18").mkdir()
    Path("mine").mkdir()
    assert recorded("resnet18") == "resnet18" == backbones.build("resnet18", "none").name
    assert recorded("mine") == str(tmp_path / "mine")
    Path("resnet18/transferkit.json").touch()  # an export is opened from its folder, whatever that is called
    assert recorded("resnet18") == str(tmp_path / "resnet18")
    assert recorded("google/vit-base-patch16-224-in21k") == "google/vit-base-patch16-224-in21k"
