"""Messages of the library in the options of a command: it says `weights="none"`, and a user types --weights none."""

import inspect
import logging
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

ARGUMENT = re.compile(r"`(\w+)(?:=([^`]*))?`")
PLAIN = re.compile(r"[\w./:,=-]*")  # needs no quotes in a shell
# Names of the library -> the name under which most commands have the same thing.
SYNONYMS = {"source": "extractor", "backbone": "extractor", "path": "out", "folder": "out"}


def options_of(function: Callable[..., Any]) -> dict[str, str]:
    """Argument -> option of a command that is a function; of a positional argument, the words of its help.

    A dataclass among the parameters is a section: ``devices`` is ``--trainer.devices``.
    """
    kinds = get_type_hints(function)
    options: dict[str, str] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if is_dataclass(kinds[name]):
            options |= {field.name: f"--{name}.{field.name}" for field in fields(kinds[name])}
        else:
            options[name] = name.upper() if parameter.default is parameter.empty else f"--{name}"
    return {theirs: options[ours] for theirs, ours in SYNONYMS.items() if ours in options} | options


def translate(message: str, options: Mapping[str, str]) -> str:
    """Return a message with every argument that a command has an option for under the option's name.

    Args:
        message: arguments in backticks, with a value or without.
        options: argument -> option; others keep their Python name, without the backticks.
    """

    def replaced(match: re.Match[str]) -> str:
        name, value = match.groups()
        option = options.get(name)
        if option is None:
            return match[0].strip("`")
        if value is None or value == "True":
            return option
        plain = value.strip("\"'")
        return f"{option} {plain if PLAIN.fullmatch(plain) else shlex.quote(value)}"

    return ARGUMENT.sub(replaced, possible(message, options))


def possible(message: str, options: Mapping[str, str]) -> str:
    """Return a message without those of its remedies that name an argument which the command does not have."""
    fault, semicolon, rest = message.rpartition("; ")
    remedies = re.split(r", (?:or )?(?![^{`]*[}`])", rest)
    kept = [each for each in remedies if all(name in options for name, _ in ARGUMENT.findall(each))]
    if len(kept) in (0, len(remedies)):
        return message
    return fault + semicolon + ", or ".join(filter(None, (", ".join(kept[:-1]), kept[-1])))


class Dialect(logging.Formatter):
    """Log messages as a command's user knows its options; a process runs one command.

    Attributes:
        options: argument -> option of the command that runs, see :func:`options_of`.
    """

    def __init__(self) -> None:
        super().__init__("%(message)s")
        self.options: Mapping[str, str] = {}

    def format(self, record: logging.LogRecord) -> str:
        """Return the message in the command's options."""
        return translate(super().format(record), self.options)


DIALECT = Dialect()
