"""Messages of the library in the options of a command: it says `weights="none"`, and a user types --weights none."""

import inspect
import logging
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, get_type_hints

ARGUMENT = re.compile(r"`(\w+)(?:=([^`]*))?`")
PLAIN = re.compile(r"[\w./:,=-]*")  # needs no quotes in a shell
# Names in the library -> the name that most commands have for the same thing.
SYNONYMS = {"source": "extractor", "backbone": "extractor", "path": "out", "folder": "out"}


class Flat:
    """Base of a dataclass whose fields are options without a section: ``--weights``, not ``--network.weights``."""


class Section(NamedTuple):
    """A parameter of a command that is a dataclass.

    Attributes:
        kind: the dataclass.
        prefix: what precedes the names of its fields on the command line: ``trainer.``, or nothing.
        fields: names of its fields.
        default: what the command uses if no option is given.
    """

    kind: Callable[..., Any]
    prefix: str
    fields: list[str]
    default: Any


def sections_of(function: Callable[..., Any]) -> dict[str, Section]:
    """Return the parameters of a function that are dataclasses: sections, or :class:`Flat`."""
    parameters = inspect.signature(function).parameters
    return {
        name: Section(
            kind,
            "" if issubclass(kind, Flat) else f"{name}.",
            [field.name for field in fields(kind)],
            parameters[name].default,
        )
        for name, kind in get_type_hints(function).items()
        if is_dataclass(kind) and isinstance(kind, type)
    }


def options_of(function: Callable[..., Any]) -> dict[str, str]:
    """Return argument -> option of a command that is a function; for a positional argument, its name in the help.

    A dataclass among the parameters is a section: ``devices`` is ``--trainer.devices``.
    """
    sections = sections_of(function)
    options: dict[str, str] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in sections:
            options |= {field: f"--{sections[name].prefix}{field}" for field in sections[name].fields}
        else:
            options[name] = name.upper() if parameter.default is parameter.empty else f"--{name}"
    return {theirs: options[ours] for theirs, ours in SYNONYMS.items() if ours in options} | options


def translate(message: str, options: Mapping[str, str]) -> str:
    """Replace every argument in a message by the command's option for it.

    Args:
        message: arguments in backticks, with or without a value.
        options: argument -> option; others keep their Python name, without the backticks.
    """

    def replace(match: re.Match[str]) -> str:
        name, value = match.groups()
        option = options.get(name)
        if option is None:
            return match[0].strip("`")
        if value is None or value == "True":  # an option in a section of fit is not a flag
            return f"{option} true" if value and "." in option else option
        plain = value.strip("\"'")
        return f"{option} {plain if PLAIN.fullmatch(plain) else shlex.quote(value)}"

    return ARGUMENT.sub(replace, possible(message, options))


def possible(message: str, options: Mapping[str, str]) -> str:
    """Return a message without those of its remedies that name an argument which the command does not have."""
    fault, semicolon, rest = message.rpartition("; ")
    remedies = re.split(r", (?:or )?(?![^{`]*[}`])", rest)
    kept = [each for each in remedies if all(name in options for name, _ in ARGUMENT.findall(each))]
    if not semicolon or len(kept) in (0, len(remedies)):
        return message
    return fault + semicolon + ", or ".join(filter(None, (", ".join(kept[:-1]), kept[-1])))


class Dialect(logging.Formatter):
    """Formatter of log messages that shows the options of the command; a process runs one command.

    Attributes:
        options: argument -> option of the running command, see :func:`options_of`.
    """

    def __init__(self) -> None:
        super().__init__("%(message)s")
        self.options: Mapping[str, str] = {}

    def format(self, record: logging.LogRecord) -> str:
        """Return the message in the command's options."""
        return translate(super().format(record), self.options)


DIALECT = Dialect()
