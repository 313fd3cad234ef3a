"""Options of ``fit`` that ask for several fits."""

from collections.abc import Callable, Sequence

from transferkit.cli.fit_folds import fit_folds, plan_folds
from transferkit.cli.fit_soup import fit_soup, plan_soup
from transferkit.errors import UserError


def fit_several(arguments: Sequence[str], fit: Callable[[list[str]], int]) -> int | None:
    """Run several fits if the arguments ask for them; return the exit status, or None for a single fit.

    Args:
        arguments: of ``fit``.
        fit: runs one command.

    Raises:
        UserError: see :func:`~transferkit.cli.fit_series.plan_series`; or folds and a soup are asked for at once.
    """
    folds, soup = plan_folds(arguments), plan_soup(arguments)
    if folds and soup:
        raise UserError("--data.folds and --soup each run several fits; give one, or a soup of --data.fold 0")
    if folds:
        return fit_folds(folds, fit)
    return fit_soup(soup, fit) if soup else None
