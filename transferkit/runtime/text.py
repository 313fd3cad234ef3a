"""Text from data (file names, class names, messages) made harmless: one function per place where it is shown."""

import html
import re
import string
from collections.abc import Container

HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
MARKDOWN = set(string.punctuation) - set(" -()/,")  # a backslash before them takes away their meaning


def for_terminal(text: str, kept: Container[str] = "") -> str:
    r"""Return a text with control and direction characters escaped, except those that are kept.

    >>> print(for_terminal("a\x1b[31m\n"))
    a\x1b[31m\n
    """
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def for_html(text: str) -> str:
    """Return a text for HTML, also inside an attribute.

    >>> for_html('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(for_terminal(text))


def for_markdown(text: str) -> str:
    r"""Return a text without meaning to Markdown or the HTML in it, also inside a table.

    >>> print(for_markdown("a_b | <c>"))
    a\_b \| &lt;c&gt;
    """
    return "".join(HTML.get(c, f"\\{c}" if c in MARKDOWN else c) for c in for_terminal(text))


def for_markdown_cell(text: str) -> str:
    r"""Return a text for a cell of a Markdown table that is also read as it is: on one line, no HTML, no new cell.

    >>> print(for_markdown_cell("85.0 [78.5, 89.8] | <c>"))
    85.0 [78.5, 89.8] \| &lt;c&gt;
    """
    line = html.escape(" ".join(text.split()), quote=False).replace("\\", "\\\\")
    return "".join(c for c in line if c.isprintable()).replace("|", "\\|")


def on_one_line(text: str) -> str:
    r"""Return a text on one line and in one cell: control characters, tabs and line ends become spaces.

    >>> on_one_line("a\tb\n")
    'a b '
    """
    return "".join(c if c.isprintable() else " " for c in text)


def for_file_name(text: str, most: int = 60) -> str:
    """Return a text as part of a file name; two texts may give the same.

    >>> for_file_name("../my images/a:b")
    'my-images-a-b'
    """
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:most]
