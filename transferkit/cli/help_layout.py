"""The layout of ``--help``: options in groups, two columns, with the values they take and their defaults."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

INDENT = 27


class Option(NamedTuple):
    """A line of the help.

    Attributes:
        name: with its section, without dashes; in capitals for a positional argument.
        text: what it does.
        choices: the words it takes, if it takes only a few.
        default: as it is written in a config; empty if there is none, or none worth a word.
    """

    name: str
    text: str
    choices: Sequence[str] = ()
    default: str = ""

    @property
    def values(self) -> str:
        """The words it takes and its default."""
        default = f"default: {self.default}" if self.default else ""
        return "; ".join(filter(None, ("|".join(self.choices), default)))


def words(hint: Any) -> list[str]:
    """Return the words of a Literal type, without null; none if the type allows anything else."""
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    parts = [part for part in get_args(hint) if part is not type(None)]
    return words(parts[0]) if len(parts) == 1 and get_origin(hint) in (Union, UnionType) else []


def written(value: Any) -> str:
    """Return a default as it is written in a config; nothing for null and an empty string."""
    if value in (None, ""):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def width() -> int:
    """Return the columns of the terminal, between 60 and 120; 100 if there is none."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)


def page(usage: str, description: str, groups: Mapping[str, Iterable[Option]], end: str = "") -> str:
    """Return a help.

    Args:
        usage: what follows ``usage: transferkit``.
        description: paragraphs, separated by empty lines.
        groups: title -> options; groups without options are left out.
        end: last line.
    """
    paragraphs = (textwrap.fill(" ".join(text.split()), width()) for text in description.split("\n\n"))
    parts = [f"usage: transferkit {usage}", *paragraphs]
    parts += ["\n".join([title, *shown]) for title, options in groups.items() if (shown := list(lines(options)))]
    return "\n\n".join([*parts, end] if end else parts)


def lines(options: Iterable[Option]) -> Iterator[str]:
    """Yield options in two columns."""
    for option in options:
        text = f"{option.text} ({option.values})" if option.values else option.text
        filled = textwrap.wrap(text.replace("``", ""), width() - INDENT, break_on_hyphens=False)
        name = f"  {option.name}" if option.name.isupper() else f"  --{option.name}"
        if len(name) < INDENT - 1 and filled:
            yield name.ljust(INDENT) + filled.pop(0)
        else:
            yield name
        yield from (" " * INDENT + line for line in filled)
