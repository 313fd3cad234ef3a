"""A function as a command: its signature is the schema, its docstring the help."""

from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from transferkit.commands.arguments import find_config
from transferkit.errors import UserError


def call(function: Callable[..., int], arguments: list[str]) -> int:
    """Run a command on the arguments after its verb; the exit status.

    Raises:
        UserError: arguments that do not fit the function's signature.
    """
    verb, *rest = arguments
    parser = ArgumentParser(prog=f"transferkit {verb}", description=function.__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML file with any of these options")
    parser.add_function_arguments(function, as_positional=True)
    try:
        options: dict[str, Any] = parser.parse_args(with_configs(rest)).as_dict()
    except ArgumentError as error:
        message = " ".join(str(error).split())[:400]
        raise UserError(f"{message}; transferkit {verb} --help lists the options") from error
    options.pop("config")
    return function(**options)


def with_configs(arguments: list[str]) -> list[str]:
    """The arguments with every ``--config`` found: here, in ``configs/``, or among those shipped."""
    found = list(arguments)
    for position, argument in enumerate(arguments):
        if argument == "--config" and position + 1 < len(arguments):
            found[position + 1] = str(find_config(arguments[position + 1]))
        elif argument.startswith("--config="):
            found[position] = f"--config={find_config(argument.split('=', 1)[1])}"
    return found
