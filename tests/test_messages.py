"""The library names arguments and the command line its options: no message names what a reader cannot give."""

import ast
import logging
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module

import pytest

from tests.test_layers import MODULES, room_of
from transferkit.cli import dispatch, fit_help
from transferkit.cli.dialect import ARGUMENT, options_of

CONVERTED = {room_of(module) for module in MODULES}  # rooms whose messages follow the rule
RAISED = {"UserError", "ToldByFirst"}
LEVELS = {f"log.{level.lower()}" for level in logging.getLevelNamesMapping()}
OPTION = re.compile(r"(?<![\w-])--[a-z]")
PAGE = {
    "search/html.py",  # CSS has names that begin with two dashes
    "reports/other_reports.py",  # a report gives the command that repeats it
    "reports/probe_report.py",
    "reports/rank_report.py",
    "reports/run_report.py",
}


@cache
def arguments() -> set[str]:
    """What at least one verb has an option for."""
    found: set[str] = set()
    for verb, (module, _) in dispatch.VERBS.items():
        command = import_module(f"transferkit.cli.commands.{module}")
        found |= set(
            fit_help.options_by_argument(verb) if verb in fit_help.VERBS else options_of(getattr(command, module))
        )
    return found


def text_of(node: ast.AST) -> str:
    """The text of a string or an f-string, a value in it being ``…``."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each string in a call that a user reads: of a UserError, or of the log."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in RAISED | LEVELS:
            for node in ast.walk(call):
                if isinstance(node, ast.JoinedStr | ast.Constant):
                    yield call.lineno, text_of(node)


def strings(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each string that is not a docstring."""
    tree = ast.parse(source)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def unknown(source: str) -> list[str]:
    """Arguments in the messages of a file that no verb has an option for."""
    named = ((line, match[1]) for line, text in messages(source) for match in ARGUMENT.finditer(text))
    return sorted({f"{line}: `{name}`" for line, name in named if name not in arguments()})


def options_in(source: str) -> list[str]:
    """Options of the command line in the strings of a file."""
    return [f"{line}: {text}" for line, text in strings(source) if OPTION.search(text)]


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) in CONVERTED])
def test_an_argument_in_a_message_is_an_option_of_a_verb(module: str) -> None:
    assert unknown(MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    "module", [name for name in MODULES if room_of(name) in CONVERTED - {"cli"} and name not in PAGE]
)
def test_the_library_names_no_options(module: str) -> None:
    assert options_in(MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("source", "names", "options"),
    [
        ('raise UserError(f"{x}: give `weights=\\"none\\"`")', 0, 0),
        ('log.warning("`weihgts` is %s", 1)', 1, 0),
        ("raise UserError(f'`{name}` is {value}; leave out `nothing={value}`')", 1, 0),
        ('raise UserError(f"add --overwrite to {place}")', 0, 1),
        ('"""add --overwrite"""\nSKIP = "leave out with --on_error skip"', 0, 1),
        ('f"a -- b {x} --- c"', 0, 0),
    ],
)
def test_the_rules_themselves(source: str, names: int, options: int) -> None:
    assert (len(unknown(source)), len(options_in(source))) == (names, options)
