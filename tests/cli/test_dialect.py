"""The library names arguments, a command names its options."""

import importlib
import re

import pytest

from transferkit.cli.commands.embed import Processes
from transferkit.cli.dialect import options_of, translate
from transferkit.cli.open_extractor import Network

ONE = Processes()


def command(images: str, network: Network = Network(), trainer: Processes = ONE) -> int:
    """A command, with a section whose options have no prefix and one whose options have."""
    return 0


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ('give `weights="none"`', "give --weights none"),
        ("`weights`: no such file", "--weights: no such file"),
        ("`devices` is 5", "--trainer.devices is 5"),
        ("`source` is a text model", "--extractor is a text model"),
        ("`images` is empty", "IMAGES is empty"),
        ("leave out `head`", "leave out head"),  # an argument that the command does not have
        ('`weights={"a": 1}`', "--weights '{\"a\": 1}'"),
        ("no arguments at all", "no arguments at all"),
    ],
)
def test_arguments_become_options(message: str, line: str) -> None:
    assert translate(message, options_of(command)) == line


WITHOUT = ("probe", "index", "similarity", "regions", "duplicates", "export", "benchmark", "embed")
MESSAGES = (
    "x has no preprocessor_config.json; put it there, or give `preprocessing={a: 1, b: [R, G]}`",
    'x is not there; give a local directory as `source`, a filled HF_HOME, or `weights="none"` for r',
    'y is not there; put it into TORCH_HOME, give a file as `weights`, or `weights="none"` for random weights',
)


@pytest.mark.parametrize("verb", WITHOUT)
@pytest.mark.parametrize("message", MESSAGES)
def test_remedies_name_only_options_that_the_command_has(verb: str, message: str) -> None:
    function = getattr(importlib.import_module(f"transferkit.cli.commands.{verb}"), verb)
    told = translate(message, options_of(function))
    named = set(re.findall(r"--([\w.]+)", told))
    assert named <= {option.removeprefix("--") for option in options_of(function).values()}
    assert "`" not in told
    assert told.startswith(message.rpartition("; ")[0]) and not told.endswith((" ", ",", "or"))
