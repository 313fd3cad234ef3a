"""Reading a few options before the parser does: which configs, which run, which checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from transferkit.errors import UserError

SHIPPED = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")  # wheel; source tree


def find_config(name: str) -> Path:
    """The file a ``--config`` means: as given, in ``configs/``, or among those shipped; ``.yaml`` may be left out.

    Raises:
        UserError: there is none; the shipped ones are named.
    """
    for folder in (Path(), Path("configs"), *SHIPPED):
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    names = sorted({path.name for folder in SHIPPED for path in folder.glob("*.yaml")})
    raise UserError(f"no config {name!r} here, in configs/ or shipped; the shipped ones: {', '.join(names)}")


def setting(arguments: Sequence[str], files: Sequence[Path], name: str) -> str | None:
    """The value of an option: its last on the command line, else that of the last config that has it."""
    values = all_options(arguments, f"--{name}")
    for file in reversed(files):
        found: Any = read_yaml(file)
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        values = values or ([str(found)] if found is not None else [])
    return values[-1] if values else None


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
        UserError: it is not YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"config {path} holds no options (key: value)")
    return content


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
