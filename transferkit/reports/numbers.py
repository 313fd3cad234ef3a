"""Numbers of a report: the exact value beside the rounded text, so that a test can compare both with the files."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """A value as it stands in a file, and as it is shown.

    Attributes:
        value: exact.
        text: rounded, with its unit.
        source: file and key that it was read from, such as ``metrics.json test/acc``; empty where it was computed.
    """

    value: float
    text: str
    source: str = ""


def percent(value: float, source: str = "", signed: bool = False) -> Number:
    """Return a share in [0, 1] as percent with one decimal; a signed one in percentage points."""
    return Number(value, f"{100 * value:+.1f} pp" if signed else f"{100 * value:.1f}%", source)


def count(value: int, source: str = "") -> Number:
    """Return a whole number with thousands separated by commas."""
    return Number(value, f"{value:,}", source)


def decimal(value: float, source: str = "") -> Number:
    """Return a number with four significant digits, small ones in powers of ten."""
    if float(value).is_integer() and abs(value) < 1e6:
        return Number(value, f"{int(value):,}", source)
    return Number(value, f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.2e}", source)


def p_value(value: float, source: str = "") -> Number:
    """Return a p-value with two significant digits."""
    return Number(value, f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}", source)


def counted(number: int, one: str, more: str = "") -> str:
    """Return a number with its noun.

    Args:
        number: how many.
        one: the noun of one.
        more: of others; by default with an s.

    >>> counted(1, "image"), counted(2, "image"), counted(1200, "class", "classes")
    ('1 image', '2 images', '1,200 classes')
    """
    return f"{number:,} {one if number == 1 else more or one + 's'}"
