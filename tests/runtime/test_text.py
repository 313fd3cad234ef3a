"""Text made harmless: what the parsers of each target see is the text, and nothing of it means anything."""

import html
import re
from html.parser import HTMLParser

import pytest

from transferkit.runtime.text import (
    for_file_name,
    for_html,
    for_markdown,
    for_markdown_cell,
    for_terminal,
    on_one_line,
)

NASTY = [
    "a\x1b[31mb",
    "line\nbreak\ttab",
    "<img src=x onerror=1>",
    "a|b`c`*d*_e_ [f](g)",
    "\u202egnp.exe",
    "木 é",
    "\\|",
]


@pytest.mark.parametrize("text", NASTY)
def test_nothing_steers_a_terminal(text: str) -> None:
    for shown in (for_terminal(text), for_markdown(text), for_markdown_cell(text), for_html(text), on_one_line(text)):
        assert shown.isprintable()


@pytest.mark.parametrize("text", NASTY)
def test_html_is_text(text: str) -> None:
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(f'<p title="{for_html(text)}">{for_html(text)}</p>')
    assert tags == ["p"] and html.unescape(for_html(text)) == for_terminal(text)


@pytest.mark.parametrize("text", NASTY)
def test_a_cell_of_markdown_is_one_cell(text: str) -> None:
    for cell in (for_markdown(text), for_markdown_cell(text)):
        assert not re.search(r"(?<!\\)(\\\\)*\|", cell) and "<" not in cell


def test_names_of_files() -> None:
    assert for_file_name("a/b:c") == "a-b-c" and for_file_name("..") == "" and len(for_file_name("x" * 200)) == 60
