"""Tables and notes; names that would steer a terminal are in tests/hostile/test_names.py."""

import shlex

import pytest

from transferkit.cli.console import cell, command, note_first, table


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.5, "0.5000"), (1e-5, "1e-05"), (0.0, "0.0000"), (1234567, "1,234,567"), ("a", "a")],
)
def test_values_in_a_table(value: object, text: str) -> None:
    assert cell(value) == text


def test_a_table_has_its_title_above_and_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    table(["name", "count"], [["a", 1], ["b", 2000]], title="a title that is longer than the table is wide")
    title, _, _, _, one, two, _ = capsys.readouterr().out.splitlines()
    assert title.startswith("a title") and one.endswith("    1 │") and two.endswith("2,000 │")


def test_of_many_notes_the_first_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    note_first("left out", ["a", "b", "c"], "; see the report", most=2)
    note_first("left out", [], "; see the report")
    assert capsys.readouterr().err == "left out: a\nleft out: b\nleft out: 1 more; see the report\n"


def test_a_command_can_be_pasted() -> None:
    assert shlex.split(command("embed", "my photos", "--out", "it's.parquet"))[2:] == [
        "my photos",
        "--out",
        "it's.parquet",
    ]
