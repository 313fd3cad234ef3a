"""The help of the verbs that are functions, and its layout: true to the parser, first things first, and quick."""

import importlib
import inspect
import re
import subprocess
import sys
from typing import Any

import docstring_parser
import pytest
import yaml

from tests.running import transferkit
from transferkit.cli import fit_help
from transferkit.cli.dispatch import VERBS
from transferkit.cli.help_layout import Option, lines, words, written
from transferkit.cli.parsing import make_parser
from transferkit.cli.verb_help import EVERY, FIRST, options_by_group

FUNCTIONS = {
    verb: getattr(importlib.import_module(f"transferkit.cli.commands.{module}"), verb)
    for verb, (module, _) in VERBS.items()
    if verb not in fit_help.VERBS
}


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def shown(text: str) -> list[str]:
    """The options that a help explains, in order."""
    return re.findall(r"^  --([\w.]+)", text, re.MULTILINE)


@pytest.mark.parametrize("verb", FUNCTIONS)
@pytest.mark.parametrize("ask", ["-h", "--help"])
def test_the_help_has_every_option_once_with_five_first(verb: str, ask: str) -> None:
    done = transferkit(verb, "anything", ask)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"usage: transferkit {verb} ") and max(map(len, done.out.splitlines())) <= 100
    groups = options_by_group(FUNCTIONS[verb])
    positional, options = groups.pop(""), [option.name for group in groups.values() for option in group]
    expected = [*options, *(option.name for option in EVERY)]
    assert sorted(shown(done.out)) == sorted(expected)
    assert re.findall(r"^  ([A-Z_]+) ", done.out, re.MULTILINE) == [option.name for option in positional]
    if len(options) > 5:
        used_most = done.out.split("Used most:")[1].split("\n\n")[0]
        assert shown(used_most) == list(FIRST.get(verb, options[:5])) and len(shown(used_most)) == 5


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_defaults_and_words_are_those_of_the_parser(verb: str) -> None:
    parser, _ = make_parser(FUNCTIONS[verb], verb)
    parsed: dict[str, Any] = parser.get_defaults().as_dict()
    for option in (option for name, group in options_by_group(FUNCTIONS[verb]).items() if name for option in group):
        section, _, field = option.name.rpartition(".")
        default = (parsed[section] if section else parsed)[field]
        said = yaml.safe_load(option.default) if option.default else default
        assert said == default or str(said) == str(default), option
        assert option.default or default in (None, ""), option
        if option.choices:
            (action,) = (action for action in parser._actions if action.dest == option.name)
            assert "|".join(option.choices).replace("|", "', '") in str(action._typehint), option


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_every_argument_has_a_text(verb: str) -> None:
    documented = {p.arg_name for p in docstring_parser.parse(FUNCTIONS[verb].__doc__ or "").params}
    assert documented == set(inspect.signature(FUNCTIONS[verb]).parameters)
    assert all(option.text for group in options_by_group(FUNCTIONS[verb]).values() for option in group)


@pytest.mark.parametrize("verb", ["embed", "cache", "search", "distill"])
def test_a_help_needs_neither_torch_nor_the_parser(verb: str) -> None:
    code = (
        "import sys; from transferkit.cli.dispatch import run; run([sys.argv[1], '--help']); "
        "print('heavy:', *set(sys.modules) & {'torch', 'lightning', 'jsonargparse', 'transformers', 'numpy'})"
    )
    done = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True, timeout=20)
    assert done.stdout.splitlines()[-1] == "heavy:", done


def test_the_layout_of_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = list(lines([Option("k", "one two three four five six seven eight", ["a", "b"], "a"), Option("l" * 30, "x")]))
    assert text == [
        "  --k                      one two three four five six seven",
        "                           eight (a|b; default: a)",
        f"  --{'l' * 30}",
        "                           x",
    ]
    assert written(None) == written("") == "" and written(False) == "false" and written((1, 5)) == "(1, 5)"
    assert words(int | None) == [] and words(str) == []
