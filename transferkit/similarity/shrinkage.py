"""Shrinking a covariance toward a multiple of the identity."""

from torch import Tensor


def ledoit_wolf(centered: Tensor, covariance: Tensor) -> float:
    """Return the share of the identity that makes a covariance most accurate, in [0, 1] (Ledoit and Wolf 2004).

    Args:
        centered: `(N, D)` float64, of mean 0.
        covariance: `(D, D)`, their products over N.
    """
    count, width = centered.shape
    squares = covariance.square().sum()
    spread = (centered.square().sum(1).square().sum() / count - squares) / count  # of the N products around their mean
    distance = squares - covariance.trace().square() / width
    return float((spread / distance).clamp(0, 1)) if distance > 0 else 1.0
