"""Every command and the Python of the README, run as they stand, against a cache filled with random weights."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision import models

from transferkit import cli

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
VIT = "google/vit-base-patch16-224-in21k"
pytestmark = pytest.mark.docs


def blocks(language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.usefixtures("filled_caches")
def test_every_command_does_what_it_says(
    photo_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photo_folder.parent)
    Path("boxes.csv").write_text("path,x1,y1,x2,y2,label\ntrain/apples/0.jpg,0,0,20,20,spot\n")
    commands = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    assert len(commands) > 5
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "transferkit"
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        try:
            status = cli.run(arguments)
        except SystemExit as end:  # --print_config ends the parser
            status = end.code or 0
        assert status == 0, f"{command}: {capsys.readouterr().err[-2000:]}"


@pytest.mark.usefixtures("filled_caches")
def test_the_python_runs(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photo_folder.parent)
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {})

    model = models.resnet18()
    model.fc = torch.nn.Identity()
    model.load_state_dict(load_file("my-extractor/model.safetensors"))
