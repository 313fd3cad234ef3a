"""The exception for bad input, described in one line with its remedy; and helpers to write such lines."""

import pickle
from collections.abc import Sequence


class UserError(Exception):
    """Input that cannot be used; the command line prints it as one line and exits with status 2.

    The message names the file or argument, what is wrong with it, and the remedy. Arguments are named as in Python,
    in backticks: ``give `weights="none"` for random weights``. The command line shows its own option instead
    (``--model.weights none``), see :mod:`transferkit.cli.dialect`.
    """


class ToldByFirst(UserError):
    """A UserError in a process other than the first, which shows it to the user; this one ends silently.

    Its exit status is 0: if it failed, Lightning would kill the first process, perhaps before its message is shown.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, with the next where it ends in a colon, at most 160 characters.

    >>> first_line(OSError("no such file\\ndetails"))
    'no such file'
    >>> first_line(RuntimeError("Error in loading:\\n\\tMissing key: a"))
    'Error in loading: Missing key: a'
    """
    if isinstance(error, pickle.UnpicklingError):  # torch's text advises to run the code in the file
        return "broken, or more than plain tensors in it"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    more = 2 if lines[0].rstrip().endswith(":") else 1
    return " ".join(line.strip() for line in lines[:more])[:160]


def listed(names: Sequence[str], most: int = 5, quote: bool = True, separator: str = ", ") -> str:
    """Return the first few names and how many more there are.

    >>> listed(["a", "b", "c", "d"], most=2)
    "'a', 'b' and 2 more"

    Args:
        names: any number of them.
        most: how many are named.
        quote: whether each is put in quotes, with control characters escaped.
        separator: what stands between two names.
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return separator.join(repr(name) if quote else name for name in names[:most]) + more
