"""Libraries that transferkit works with but does not need."""

import importlib
from typing import Any

from transferkit.errors import UserError


def optional(name: str, package: str = "", needed_by: str = "") -> Any:
    """Import a library that may not be installed.

    Args:
        name: of the module.
        package: its name for pip, if that differs.
        needed_by: what needs it, for the message.

    Raises:
        UserError: it is not installed; with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        top = name.split(".")[0]
        if error.name and error.name.split(".")[0] != top:  # it is there, but something that it needs is not
            raise UserError(f"{top} cannot be imported: {error}; pip install -U {package or top}") from error
        missing = f"{needed_by} needs {top}, which" if needed_by else top
        raise UserError(f"{missing} is not installed; pip install {package or top}") from error
