"""The help of fit and its siblings: short, ours first, true to what the parser takes."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer

from tests.running import transferkit
from transferkit.cli.fit_help import FIRST, LINKED, known_options, section
from transferkit.data.datamodule import ImageDataModule
from transferkit.training.module import TransferModule

VERBS = ["fit", "validate", "test", "predict"]
LIGHTNINGS = {"verbose", "return_predictions", "weights_only", "subcommand"}  # of its methods; without effect here


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def options_in(text: str) -> list[str]:
    """Names of the options that a help explains, in order."""
    return re.findall(r"^  --([\w.]+)", text, re.MULTILINE)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options with their sections -> value."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        is_section = not prefix and name in ("model", "data", "trainer")
        found |= flat(value, f"{name}.") if is_section else {prefix + name: value}
    return found


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("ask", ["-h", "--help"])
def test_ours_come_first_and_are_short(verb: str, ask: str) -> None:
    done = transferkit(verb, "--ckpt_path", "gone.ckpt", ask)
    assert (done.status, done.err) == (0, "")
    assert len(done.out.splitlines()) <= 90 and max(map(len, done.out.splitlines())) <= 100
    assert done.out.startswith(f"usage: transferkit {verb} [IMAGES] [options]\n")
    shown = options_in(done.out)
    assert tuple(shown[:5]) == FIRST[verb] and len(set(shown)) == len(shown)
    assert {name for name in shown if name.startswith("trainer.")} <= {"trainer.max_epochs"}
    assert f"transferkit {verb} --help-trainer" in done.out.splitlines()[-1]
    data = {f"data.{name}" for name in inspect.signature(ImageDataModule).parameters}
    model = {f"model.{name}" for name in inspect.signature(TransferModule).parameters} - {LINKED}  # seed_everything
    assert data <= set(shown) and (model <= set(shown)) is (verb == "fit")
    assert ("top_k" in shown) is (verb == "predict")


def test_lightnings_are_shown_where_they_are_asked_for() -> None:
    done = transferkit("fit", "--help-trainer")
    assert done.status == 0 and transferkit("fit", "photos", "--help_trainer") == done
    assert options_in(done.out) == [f"trainer.{name}" for name in inspect.signature(Trainer).parameters]


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_the_parser_is_known_with_its_default(verb: str) -> None:
    parsed = flat(yaml.safe_load(transferkit(verb, "--print_config").out))
    known = set(known_options(verb))
    assert parsed.keys() - known <= LIGHTNINGS
    assert known - parsed.keys() <= {"model", "data", "trainer", "config", "print_config", "debug"}
    told = [*section("model", TransferModule, {}), *section("data", ImageDataModule, {})]
    for option in told:
        default = re.search(r"default: (.*)$", option.values)
        assert yaml.safe_load(default[1]) == parsed[option.name] if default else parsed[option.name] in (None, "")


def test_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    lines = transferkit("fit", "--help").out.splitlines()
    assert max(len(line) for line in lines if line.startswith(" ")) <= 70
