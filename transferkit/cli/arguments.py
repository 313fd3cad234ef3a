"""Reading a few options before the parser does: which configs, which run, which checkpoint."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from transferkit.errors import UserError

SHIPPED = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")  # wheel; source tree

MAX_DEPTH, MAX_VALUES = 30, 100_000  # of a config


def find_config(name: str) -> Path:
    """The file a ``--config`` means: as given, in ``configs/``, or among those shipped; ``.yaml`` may be left out.

    Raises:
        UserError: there is none (the shipped ones are named), or it cannot be used.
    """
    for folder in (Path(), Path("configs"), *SHIPPED):
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                read_yaml(candidate)  # says more clearly than the parser what is wrong with it
                return candidate
    names = sorted({path.name for folder in SHIPPED for path in folder.glob("*.yaml")})
    raise UserError(f"no config {name!r} here, in configs/ or shipped; the shipped ones: {', '.join(names)}")


def read_setting(arguments: Sequence[str], files: Sequence[Path], name: str) -> str | None:
    """The value of an option: its last on the command line, else that of the last config that has it."""
    values = all_options(arguments, f"--{name}")
    for file in reversed(files):
        found = look_up(read_yaml(file), name)
        values = values or ([str(found)] if found is not None else [])
    return values[-1] if values else None


def look_up(content: Any, name: str) -> Any:
    """The value of an option in a config, whose keys may hold dots; None if it is not there."""
    if not isinstance(content, dict):
        return None
    if name in content:
        return content[name]
    places = (place for place, letter in enumerate(name) if letter == ".")
    return next(
        (found for at in places if (found := look_up(content.get(name[:at]), name[at + 1 :])) is not None), None
    )


def all_options(arguments: Sequence[str], name: str) -> list[str]:
    """Every value of ``--name VALUE`` or ``--name=VALUE``, in order.

    Raises:
        UserError: the option stands last, without a value.
    """
    values = []
    for position, argument in enumerate(arguments):
        if argument == name:
            if position + 1 == len(arguments):
                raise UserError(f"{name} needs a value")
            values.append(arguments[position + 1])
        elif argument.startswith(f"{name}="):
            values.append(argument.split("=", 1)[1])
    return values


def without_option(arguments: Sequence[str], name: str) -> list[str]:
    """The arguments with every occurrence of an option and its value taken out."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == name:
            skip = True
        elif not argument.startswith(f"{name}="):
            kept.append(argument)
    return kept


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a config file.

    Raises:
        UserError: it is not YAML, no mapping, or more than a config can be.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"config {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"config {path} holds no options (key: value)")
    check_values(path, content)
    check_dots(path, content)
    if "config" in content:
        raise UserError(f"config {path} names another one; give both: --config ONE --config OTHER")
    return content


def check_values(path: Path, content: dict[str, Any]) -> None:
    """Refuse what YAML's aliases can make of a few lines: values that hold themselves, or millions of them.

    Raises:
        UserError: so many or so deep values, or a key that is no text.
    """
    pending: list[tuple[Any, int]] = [(content, 0)]
    for count in itertools.count():
        if not pending:
            return
        value, depth = pending.pop()
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise UserError(f"config {path} is nested too deep, or repeats itself; write it without aliases")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise UserError(f"config {path}: the key {str(key)[:80]!r} is no text; put quotes around it")
            pending += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list | set | tuple):
            pending += [(inner, depth + 1) for inner in value]


def check_dots(path: Path, content: dict[str, Any]) -> None:
    """Refuse an option with a dot in its key beside its section: the parser would keep whichever comes last.

    Raises:
        UserError: naming both.
    """
    for key in content:
        parts = key.split(".")
        for section in (".".join(parts[:count]) for count in range(1, len(parts))):
            if section in content:
                inner = key.removeprefix(f"{section}.")
                beside = f"{key[:80]!r} stands beside the section {section[:80]!r}"
                raise UserError(f"config {path}: {beside}; write {inner[:80]!r} into it")


def as_config(content: dict[str, Any]) -> list[str]:
    """Options as an inline ``--config``, which later arguments override."""
    return ["--config", json.dumps(content)] if content else []


def check_sections(path: Path) -> None:
    """Refuse a config whose sections hold no options: the parser would pass over them in silence.

    Raises:
        UserError: naming the section.
    """
    for section in ("model", "data", "trainer"):
        if not isinstance(read_yaml(path).get(section, {}), dict):
            raise UserError(f"config {path}: {section} holds no options (key: value)")
