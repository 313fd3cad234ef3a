"""Confidence interval of a proportion."""

import math
from statistics import NormalDist


def wilson(right: int, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927; Brown, Cai and DasGupta 2001).

    >>> [round(end, 3) for end in wilson(90, 100)]
    [0.826, 0.945]

    Args:
        right: successes.
        total: trials, at least 1.
        level: confidence level.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = right / total
    center = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    width = 1 + z * z / total
    return max(0.0, (center - half) / width), min(1.0, (center + half) / width)
