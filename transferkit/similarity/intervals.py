"""The confidence interval of a proportion."""

import math
from statistics import NormalDist


def wilson(right: int, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927; Brown, Cai and DasGupta 2001).

    Args:
        right: successes.
        total: trials, at least 1.
        level: of confidence.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = right / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    width = 1 + z * z / total
    return max(0.0, (centre - half) / width), min(1.0, (centre + half) / width)
