"""A verb's command line read from its function: the signature is the schema, its docstring the help."""

import inspect
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser

from transferkit.commands import report
from transferkit.commands.arguments import all_options, find_config, read_yaml, without_option
from transferkit.commands.suggestions import nearest
from transferkit.errors import UserError


def call(function: Callable[..., int], arguments: list[str]) -> int:
    """Call a function with command-line arguments; what it returns is the exit status.

    A parameter without default is positional; one of type ``list[str]`` takes one or more values where it comes
    first, else any number. ``-k 5`` is short for ``--k 5``, a ``bool`` option alone means true, and
    ``--batch-size`` is ``--batch_size``. A dataclass is a section: ``--trainer.devices``.

    Args:
        function: the command.
        arguments: the verb and what follows it.

    Raises:
        UserError: options that do not fit the function's signature; a seed that NumPy does not take.
    """
    verb, *rest = map(spelled, arguments)
    doc = docstring_parser.parse(function.__doc__ or "")
    parser = ArgumentParser(
        prog=f"transferkit {verb}", description=doc.description, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of these options")
    positional = required(function)
    for number, (name, kind) in enumerate(positional.items()):
        several: dict[str, Any] = {"nargs": "*" if number else "+"} if kind == list[str] else {"type": kind}
        parser.add_argument(name, help=next(p.description for p in doc.params if p.arg_name == name), **several)
    parser.add_function_arguments(function, skip=set(positional))
    files = [find_config(name) for name in all_options(rest, "--config")]
    for file in files:
        check_keys(file, list(inspect.signature(function).parameters), verb)
    configs = [argument for file in files if read_yaml(file) for argument in ("--config", str(file))]
    try:
        options: dict[str, Any] = parser.parse_args([*configs, *arranged(function, rest)]).as_dict()
    except ArgumentError as error:
        line = explain(str(error), list(inspect.signature(function).parameters), verb)
        raise UserError(line if "--help" in line else f"{line}; transferkit {verb} --help lists the options") from error
    options.pop("config")
    if "seed" in options:
        check_seed("seed", options["seed"])
    for name, kind in get_type_hints(function).items():
        if is_dataclass(kind):
            options[name] = kind(**options[name])  # type: ignore[operator]  # a class, not an instance
    try:
        return function(**options)
    except UserError as error:
        raise UserError(own_names(str(error), inspect.signature(function).parameters)) from error


def check_seed(option: str, seed: int) -> None:
    """Refuse a seed that NumPy and scikit-learn do not take, or ``true``, Lightning's word for a random one.

    Raises:
        UserError: naming the option.
    """
    if isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError(f"--{option} is {str(seed)[:40]}; give a number from 0 to {2**32 - 1}")


def check_keys(file: Path, known: Sequence[str], verb: str) -> None:
    """Refuse a config with a key that is no option of the command: the parser would not say in which file.

    Raises:
        UserError: naming file, key and the nearest option.
    """
    for key in read_yaml(file):
        if key.split(".")[0] not in known:
            near = nearest(key, known)
            advice = f"did you mean {near}?" if near else f"transferkit {verb} --help lists them"
            raise UserError(f"config {file}: unknown option {key[:80]!r}; {advice}")


def own_names(message: str, options: Container[str]) -> str:
    """A message about ``fit``'s options in the names that a command has for them.

    Of several remedies those go that name an option which the command lacks.
    """
    names = {f"model.{name}": name for name in ("weights", "pooling", "preprocessing")}
    for theirs, ours in (names | {"model.backbone": "extractor", "data.image_root": "image_root"}).items():
        if ours in options:
            message = re.sub(rf"--{re.escape(theirs)}\b", f"--{ours}", message)
    fault, semicolon, rest = message.rpartition("; ")
    remedies = re.split(r", (?:or )?(?![^{]*\})", rest)
    kept = [remedy for remedy in remedies if not re.search(r"--(model|data)\.", remedy)]
    if len(kept) in (0, len(remedies)):
        return message
    return fault + semicolon + ", or ".join(filter(None, (", ".join(kept[:-1]), kept[-1])))


def resumable(function: Callable[..., int], arguments: list[str]) -> int:
    """As :func:`call`, for a command that goes on where it was interrupted; it says how.

    Args:
        function: the command.
        arguments: the verb and what follows it.
    """
    try:
        return call(function, arguments)
    except KeyboardInterrupt:
        report.note(f"what is done is kept; go on with: {report.command(*arguments)}")
        raise


def spelled(argument: str) -> str:
    """An option as the parser knows it: ``-k`` is ``--k``, ``--batch-size`` is ``--batch_size``."""
    name, equals, value = argument.partition("=")
    if re.fullmatch("-[a-gi-z]", name):
        return f"-{argument}"
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else argument


def arranged(function: Callable[..., int], arguments: Sequence[str]) -> list[str]:
    """The arguments without ``--config``, positional ones first, and ``true`` written behind a lone ``bool`` option.

    argparse gives all positional parameters what the first run of values holds, even if that leaves one empty.
    """
    flags = {f"--{name}" for name, kind in get_type_hints(function).items() if kind is bool}
    alone = {*flags, "-h", "--help", "--print_config"}
    positional, options, rest = [], [], without_option(arguments, "--config")
    while rest:
        argument = rest.pop(0)
        if argument in flags and not (rest and rest[0] in ("true", "false")):
            options.append(f"{argument}=true")
        elif argument.startswith("-"):
            takes = "=" not in argument and (argument not in alone or argument in flags)
            options += [argument, *([rest.pop(0)] if takes and rest and not rest[0].startswith("--") else [])]
        else:
            positional.append(argument)
    return positional + options


def required(function: Callable[..., int]) -> dict[str, Any]:
    """Name and type of the parameters without default."""
    kinds = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: kinds[p.name] for p in parameters if p.default is p.empty}


def explain(message: str, known: Sequence[str], verb: str) -> str:
    """A parser's message as one line: the nearest name for an unknown option, the types that a value may have.

    Args:
        message: of the parser.
        known: names of the options, with their sections.
        verb: whose help lists them.
    """
    line = " ".join(message.split())
    said = r"(?:nrecognized arguments?:|does not accept option|No action for key)"
    unknown = re.search(said + r" ['\"]?(\S+?)['\"]?(?=\s|$)", line)
    unknown = unknown or re.search(r"Option '(\S+)' is not accepted", line)
    if unknown and "nrecognized" in unknown[0] and not unknown[1].startswith("-"):
        return f"an argument too many: {unknown[1]!r}; transferkit {verb} --help lists those it takes"
    if unknown:
        near = nearest(unknown[1].removeprefix("--").split("=")[0], known)
        advice = f"did you mean --{near}?" if near else f"transferkit {verb} --help lists them"
        return f"unknown option {unknown[1]}; {advice}"
    section = re.search(r"Parser key \"(\w+)\": Unable to load config ('.*?')", line)
    if section:
        name = {"model": "backbone", "data": "root"}.get(section[1], "NAME")
        return f"--{section[1]} {section[2]} is no config file; give its options one by one, as --{section[1]}.{name}"
    wrong = re.search(r"Parser key \"([\w.]+)\":(.*)(?:Given value:) (.*)", line) or re.search(
        r"Parser key \"([\w.]+)\":(.*?)(?:Got value:) (.*)", line
    )
    if wrong:
        option, expected, value = wrong.groups()
        kinds = re.findall(r"Literal\[(.*?)\]", expected) or re.findall(r"Expected an? <class '(\w+)'>", expected)
        kinds += [f"a list of {kind}" for kind in re.findall(r"list\[(\w+)\]", expected)]
        ordered = sorted(dict.fromkeys(kinds), key="NoneType".__eq__)  # last, in whatever order they were tried
        wanted = " or ".join(ordered).replace("NoneType", "null")
        return f"--{option} is {value[:80]!r}; give {wanted or 'a value of another type'}"
    return line[:400]
