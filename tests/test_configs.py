"""Every shipped config says what it is for, and its command takes it."""

import shlex
from pathlib import Path

import pytest
import yaml

from transferkit.cli import dispatch

CONFIGS = sorted((Path(__file__).parents[1] / "configs").iterdir())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_fits_its_command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # bare names are found without a source tree
    first, second, *_ = path.read_text().splitlines()
    program, *arguments = shlex.split(first.removeprefix("# "))
    assert first.startswith("# ") and program == "transferkit" and arguments[0] in dispatch.VERBS
    assert path.name in arguments and len(second) > len("# what to expect")
    assert dispatch.run([*arguments, "--print_config"]) == 0
    printed, written = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(path.read_text())
    assert contains(printed, written), "the command drops or changes a value of its config"


def contains(whole: object, part: object) -> bool:
    """Whether nested mappings hold all that others hold."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(contains(whole.get(key), value) for key, value in part.items())
    return whole == part


def test_the_promised_configs_are_there() -> None:
    names = {path.name for path in CONFIGS}
    assert {"resnet18.yaml", "vit.yaml", "finetune.yaml", "scratch.yaml", "quickstart.yaml"} <= names
