"""Options that are read before the parser runs: configs, run and checkpoint."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from transferkit.errors import UserError

SHIPPED = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")  # wheel; source tree

MAX_DEPTH, MAX_VALUES = 30, 100_000  # of a config
FLAGS = ("--json", "--print_config")  # options that need no value


def find_config(name: str) -> Path:
    """Find the file of a ``--config``: as given, in ``configs/``, or among those shipped; ``.yaml`` is optional.

    Raises:
        UserError: the file does not exist (the shipped ones are named), or cannot be used.
    """
    for folder in (Path(), Path("configs"), *SHIPPED):
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                read_yaml(candidate)  # its messages are clearer than the parser's
                return candidate
    names = sorted({path.name for folder in SHIPPED for path in folder.glob("*.yaml")})
    raise UserError(f"no config {name!r} here, in configs/ or shipped; the shipped ones: {', '.join(names)}")


def read_setting(arguments: Sequence[str], files: Sequence[Path], name: str) -> str | None:
    """Return the value of an option: the last on the command line, otherwise that of the last config with it."""
    values = all_options(arguments, f"--{name}")
    for file in reversed(files):
        value = look_up(read_yaml(file), name)
        values = values or ([str(value)] if value is not None else [])
    return values[-1] if values else None


def look_up(content: Any, name: str) -> Any:
    """Return the value of an option in a config, whose keys may contain dots; None if it is not there."""
    if not isinstance(content, dict):
        return None
    if name in content:
        return content[name]
    dots = (position for position, letter in enumerate(name) if letter == ".")
    values = (look_up(content.get(name[:dot]), name[dot + 1 :]) for dot in dots)
    return next((value for value in values if value is not None), None)


def all_options(arguments: Sequence[str], name: str) -> list[str]:
    """Return every value of ``--name VALUE`` or ``--name=VALUE``, in order.

    Raises:
        UserError: the option comes last, without a value.
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
    """Return the arguments without any occurrence of an option and its value."""
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
        UserError: the file is not YAML, not a mapping, too large or too deep, or has a key twice.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        check_repeats(path, node)
        content = loader.construct_document(node) if node else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"config {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"config {path} holds no options (key: value)")
    check_values(path, content)
    check_dots(path, content)
    if "config" in content:
        raise UserError(f"config {path} refers to another one; give both: --config ONE --config OTHER")
    return content


def check_repeats(path: Path, whole: yaml.Node | None) -> None:
    """Raise on a key that a mapping has twice: YAML's loader would keep only the last of them.

    Raises:
        UserError: such a key; it is named, with its lines.
    """
    pending, seen = [whole] if whole else [], set[int]()
    while pending:
        node = pending.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in lines:
                    both = f"lines {lines[key.value]} and {key.start_mark.line + 1}"
                    raise UserError(
                        f"config {path} has {key.value[:80]!r} twice, in {both}; keep one, with all its options"
                    )
                lines[str(key.value)] = key.start_mark.line + 1
                pending.append(value)


def check_values(path: Path, content: dict[str, Any]) -> None:
    """Raise on what YAML's aliases can make of a few lines: values that contain themselves, or millions of values.

    Raises:
        UserError: too many or too deeply nested values, or a key that is not a string.
    """
    pending: list[tuple[Any, int]] = [(content, 0)]
    for count in itertools.count():
        if not pending:
            return
        value, depth = pending.pop()
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise UserError(f"config {path} is nested too deeply, or repeats itself; write it without aliases")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise UserError(f"config {path}: key {str(key)[:80]} is not a string; put it in quotes")
            pending += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list | set | tuple):
            pending += [(inner, depth + 1) for inner in value]


def check_dots(path: Path, content: dict[str, Any]) -> None:
    """Raise on an option with a dot in its key beside its section: the parser would keep only the last of them.

    Raises:
        UserError: such a pair; both are named.
    """
    for key in content:
        parts = key.split(".")
        for section in (".".join(parts[:count]) for count in range(1, len(parts))):
            if section in content:
                inner = key.removeprefix(f"{section}.")
                beside = f"{key[:80]!r} stands beside the section {section[:80]!r}"
                raise UserError(f"config {path}: {beside}; write {inner[:80]!r} into the section")


def as_config(content: dict[str, Any]) -> list[str]:
    """Return options as an inline ``--config``, which later arguments override."""
    return ["--config", json.dumps(content)] if content else []


def check_sections(path: Path) -> None:
    """Raise on a config with a section that is not a mapping: the parser would ignore it silently.

    Raises:
        UserError: such a section; it is named.
    """
    for section in ("model", "data", "trainer"):
        if not isinstance(read_yaml(path).get(section, {}), dict):
            raise UserError(f"config {path}: {section} holds no options (key: value)")


def as_root(verb: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a positional one, as in ``fit photos``, given as ``--data.root``.

    Raises:
        UserError: several positional arguments, one beside ``--data.root``, or a config.
    """
    positional, rest, pending = [], [], list(arguments)
    while pending:
        argument = pending.pop(0)
        if not argument.startswith("-"):
            positional.append(argument)
            continue
        rest.append(argument)
        if "=" not in argument and argument not in FLAGS and pending and not pending[0].startswith("--"):
            rest.append(pending.pop(0))
    if not positional:
        return rest
    root, *more = positional
    if more:
        raise UserError(f"unexpected argument {more[0]!r}; transferkit {verb} takes images once")
    if given := all_options(rest, "--data.root"):
        raise UserError(f"images are given twice: {root!r}, and --data.root {given[-1]!r}; leave one out")
    if Path(root).suffix in (".yaml", ".yml"):
        raise UserError(f"{root} is a config, not images; give it as --config {root}")
    return [*rest, "--data.root", root]
