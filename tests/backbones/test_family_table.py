"""docs/backbones.md says what the backbones do."""

import pytest

from tests.backbones.families import CONFIGS, DUALS
from tests.backbones.family_table import DOCS, END, START, table


def test_every_family_has_a_row() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"| {family} |" in text or f"| {family} (vision tower) |" in text for family in (*CONFIGS, *DUALS))


@pytest.mark.slow
def test_the_table_is_what_is_measured() -> None:
    assert DOCS.read_text(encoding="utf-8").split(START)[1].partition(END)[0] == table()
