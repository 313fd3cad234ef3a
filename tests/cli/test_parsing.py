"""A command line as people type it: options anywhere, flags alone."""

from pathlib import Path
from typing import Any

import pytest

from transferkit.cli.open_extractor import Network
from transferkit.cli.parsing import call, rephrase
from transferkit.errors import UserError

seen: list[Any] = []


def do(place: str, names: list[str], k: int = 10, row: str | None = None, json: bool = False) -> int:
    """Do it.

    Args:
        place: where.
        names: any number.
        k: how many.
        row: which.
        json: how.
    """
    seen[:] = [place, names, k, row, json]
    return 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("A", ["A", [], 10, None, False]),
        ("A b c", ["A", ["b", "c"], 10, None, False]),
        ("A -k 5 b --json c", ["A", ["b", "c"], 5, None, True]),
        ("--json A b", ["A", ["b"], 10, None, True]),
        ("A --json false b", ["A", ["b"], 10, None, False]),
        ("A b --json=true --k=-3", ["A", ["b"], -3, None, True]),
        ("--row 7 A -k -3", ["A", [], -3, "7", False]),
    ],
)
def test_options_may_stand_anywhere(line: str, expected: list[Any]) -> None:
    assert call(do, ["do", *line.split()]) == 0
    assert seen == expected


def show(place: str, network: Network = Network(extractor=None), k: int = 1) -> int:
    """Show it.

    Args:
        place: where.
        network: with which extractor.
        k: how many.
    """
    seen[:] = [place, network, k]
    return 0


@pytest.mark.parametrize(
    ("line", "network"),
    [
        ("A", Network(None, "DEFAULT", None)),
        ("A --weights none -k 1 --extractor vit", Network("vit", "none", None)),
        ("--pooling avg A --config c.yaml", Network("resnet50", "DEFAULT", "avg")),
    ],
)
def test_options_of_several_verbs_have_no_section(
    line: str, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("extractor: resnet50\npooling: max\n")
    assert call(show, ["show", *line.split()]) == 0
    assert seen == ["A", network, 1]
    with pytest.raises(UserError, match="did you mean --weights"):
        call(show, ["show", "A", "--network.weight", "none"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "required: place"),
        ("A --jsn", "did you mean --json"),
        ("A b -k", "argument"),
        ("A -k x", "--k is 'x'; give int"),
        ("A --row --json", "--row"),
    ],
)
def test_what_is_wrong_is_said(line: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        call(do, ["do", *line.split()])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("jsn: true", "c.yaml: unknown option 'jsn'; did you mean json?"),
        ("rows: {a: b}", "c.yaml: unknown option 'rows'; did you mean row?"),
        ("zzz: 1", "c.yaml: unknown option 'zzz'; transferkit do --help lists them"),
    ],
)
def test_a_misspelt_key_of_a_config_names_the_file(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        call(do, ["do", "A", "--config", str(tmp_path / "c.yaml")])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        "Unrecognized arguments: --datset.p",
        "Option 'datset.p' is not accepted",
        "Option 'datset.p' is not accepted before subcommand fit",
        "Group 'x' does not accept option 'datset.p'",
        'No action for key "datset.p" to check its value.',
    ],
)
def test_an_unknown_option_in_any_of_the_parsers_words(message: str) -> None:
    assert rephrase(message, ["extractors", "datasets"], "benchmark").endswith("did you mean --datasets?")


@pytest.mark.parametrize("value", ["Namespace(x=1)", "NestedArg(key='x', val='3')"])
def test_an_option_of_an_option_without_any_is_unknown(value: str) -> None:
    """As of the key ``augmentation.x`` in a config, or ``--data.augmentation.x``."""
    message = f"Parser key \"data.augmentation\": Does not validate: Expected a <class 'str'>. Got value: {value}"
    said = "unknown option --data.augmentation.x; --data.augmentation takes one value"
    assert rephrase(message, ["data.augmentation"], "fit") == said
