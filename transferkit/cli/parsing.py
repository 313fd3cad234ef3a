"""The command line of a verb, read from its function: the signature is the schema, its docstring the help."""

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import docstring_parser

from transferkit.cli import console
from transferkit.cli.arguments import all_options, find_config, read_yaml, without_option
from transferkit.cli.dialect import DIALECT, options_of, sections_of
from transferkit.cli.suggestions import nearest
from transferkit.cli.verb_help import help_text
from transferkit.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

ASKS = ("-h", "--help")


def call(function: Callable[..., int], arguments: list[str]) -> int:
    """Call a function with command-line arguments; return its exit status.

    A parameter without default is positional; one of type ``list[str]`` takes one or more values if it comes
    first, otherwise any number. ``-k 5`` is short for ``--k 5``, a ``bool`` option alone means true, and
    ``--batch-size`` is ``--batch_size``. A dataclass is a section, ``--trainer.devices``, or adds its fields as
    options, see :func:`~transferkit.cli.dialect.sections_of`.

    Args:
        function: the command.
        arguments: the verb and what follows it.

    Raises:
        UserError: options that do not fit the function's signature; a seed that NumPy does not take.
    """
    DIALECT.options = options_of(function)
    verb, *rest = map(normalize_option, arguments)
    if any(argument in ASKS for argument in rest):
        print(help_text(function, verb))
        return 0
    from jsonargparse import ArgumentError  # here, so that the help is quick

    parser, known = make_parser(function, verb)
    files = [find_config(name) for name in all_options(rest, "--config")]
    for file in files:
        check_keys(file, known, verb)
    configs = [argument for file in files if read_yaml(file) for argument in ("--config", str(file))]
    try:
        options: dict[str, Any] = parser.parse_args([*configs, *reorder(function, rest)]).as_dict()
    except ArgumentError as error:
        line = rephrase(str(error), known, verb)
        raise UserError(line if "--help" in line else f"{line}; transferkit {verb} --help lists the options") from error
    options.pop("config")
    if "seed" in options:
        check_seed("seed", options["seed"])
    for name, section in sections_of(function).items():
        values = options.pop(name) if section.prefix else {field: options.pop(field) for field in section.fields}
        options[name] = section.kind(**values)
    return function(**options)


def make_parser(function: Callable[..., int], verb: str) -> tuple["ArgumentParser", list[str]]:
    """Return the parser of a command, and the names of its options and sections."""
    from jsonargparse import ArgumentParser

    doc = docstring_parser.parse(function.__doc__ or "")
    parser = ArgumentParser(
        prog=f"transferkit {verb}", description=doc.description, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of these options")
    texts = {p.arg_name: p.description or "" for p in doc.params}
    positional = required(function)
    for number, (name, kind) in enumerate(positional.items()):
        several: dict[str, Any] = {"nargs": "*" if number else "+"} if kind == list[str] else {"type": kind}
        parser.add_argument(name, help=texts[name], **several)
    sections = sections_of(function)
    flat = {name: section for name, section in sections.items() if not section.prefix}
    for name, section in flat.items():
        parser.add_argument_group(texts[name].rstrip(".")).add_class_arguments(section.kind, as_group=False)
        parser.set_defaults(vars(section.default))
    parser.add_function_arguments(function, skip={*positional, *flat})
    known = [name for name in inspect.signature(function).parameters if name not in flat]
    return parser, known + [f"{section.prefix}{field}" for section in sections.values() for field in section.fields]


def check_seed(option: str, seed: int) -> None:
    """Raise if a seed is not one that NumPy and scikit-learn take, or is ``true``, Lightning's value for a random one.

    Raises:
        UserError: the seed is out of range; the option is named.
    """
    if isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError(f"--{option} is {str(seed)[:40]}; give a number from 0 to {2**32 - 1}")


def check_keys(file: Path, known: Sequence[str], verb: str) -> None:
    """Raise if a config has a key that is not an option of the command: the parser would not name the file.

    Raises:
        UserError: an unknown key; file, key and the nearest option are named.
    """
    for key in read_yaml(file):
        if key.split(".")[0] not in known:
            near = nearest(key, known)
            advice = f"did you mean {near}?" if near else f"transferkit {verb} --help lists them"
            raise UserError(f"config {file}: unknown option {key[:80]!r}; {advice}")


def resumable(function: Callable[..., int], arguments: list[str]) -> int:
    """Call a command as :func:`call` does; when it is interrupted, print how to resume it.

    Args:
        function: the command.
        arguments: the verb and what follows it.
    """
    try:
        return call(function, arguments)
    except KeyboardInterrupt:
        console.note(f"what is done is kept; resume with: {console.command(*arguments)}")
        raise


def normalize_option(argument: str) -> str:
    """Return an option as the parser knows it: ``-k`` becomes ``--k``, ``--batch-size`` becomes ``--batch_size``."""
    name, equals, value = argument.partition("=")
    if re.fullmatch("-[a-gi-z]", name):
        return f"-{argument}"
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else argument


def reorder(function: Callable[..., int], arguments: Sequence[str]) -> list[str]:
    """Return the arguments without ``--config``, positional ones first, with ``true`` after a lone ``bool`` option.

    argparse gives all positional parameters what the first run of values holds, even if that leaves one empty.
    """
    flags = {f"--{name}" for name, kind in get_type_hints(function).items() if kind is bool}
    alone = {*flags, "--print_config"}
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
    """Return name and type of the parameters without default."""
    kinds = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: kinds[p.name] for p in parameters if p.default is p.empty}


def rephrase(message: str, known: Sequence[str], verb: str) -> str:
    """Rephrase a parser's message as one line: the nearest option for an unknown one, the types a value may have.

    Args:
        message: the parser's message.
        known: names of the options, with their sections.
        verb: the command whose help lists them.
    """
    line = " ".join(message.split())
    refusal = r"(?:nrecognized arguments?:|does not accept option|No action for key)"
    unknown = re.search(refusal + r" ['\"]?(\S+?)['\"]?(?=\s|$)", line)
    unknown = unknown or re.search(r"Option '(\S+)' is not accepted", line)
    if unknown and "nrecognized" in unknown[0] and not unknown[1].startswith("-"):
        return f"unexpected argument {unknown[1]!r}; transferkit {verb} --help lists those it takes"
    if unknown:
        near = nearest(unknown[1].removeprefix("--").split("=")[0], known)
        advice = f"did you mean --{near}?" if near else f"transferkit {verb} --help lists them"
        return f"unknown option {unknown[1]}; {advice}"
    section = re.search(r"Parser key \"(\w+)\": Unable to load config ('.*?')", line)
    if section:
        name = {"model": "backbone", "data": "root"}.get(section[1], "NAME")
        return f"--{section[1]} {section[2]} is not a config file; give its options one by one: --{section[1]}.{name}"
    wrong = re.search(r"Parser key \"([\w.]+)\":(.*)(?:Given value:) (.*)", line) or re.search(
        r"Parser key \"([\w.]+)\":(.*?)(?:Got value:) (.*)", line
    )
    if wrong:
        option, expected, value = wrong.groups()
        if inner := re.match(r"(?:Namespace\(|NestedArg\(key=')(\w+)", value):  # of a key with a dot
            return f"unknown option --{option}.{inner[1]}; --{option} takes one value"
        kinds = re.findall(r"Literal\[(.*?)\]", expected) or re.findall(r"Expected an? <class '(\w+)'>", expected)
        kinds += [f"a list of {kind}" for kind in re.findall(r"list\[(\w+)\]", expected)]
        ordered = sorted(dict.fromkeys(kinds), key="NoneType".__eq__)  # last, in whatever order they were tried
        wanted = " or ".join(ordered).replace("NoneType", "null")
        return f"--{option} is {value[:80]!r}; give {wanted or 'a value of another type'}"
    return line[:400]
