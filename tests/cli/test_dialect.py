"""The library names arguments, a command names its options."""

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
