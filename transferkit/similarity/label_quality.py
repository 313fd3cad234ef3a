"""How likely labels are wrong, given probabilities or neighbors that did not see them. Pure functions on tensors."""

import torch
from torch import Tensor

from transferkit.similarity.retrieval import TEMPERATURE


def self_confidence(probability: Tensor, target: Tensor) -> Tensor:
    """Return the probability of each row's own label (Northcutt et al. 2021, arXiv:1911.00068; Kuan and Mueller 2022).

    Args:
        probability: `(N, K)` of a classifier that was not fitted on the row.
        target: `(N,)` int64.

    Returns:
        `(N,)`; low where the label is likely wrong.
    """
    return probability.gather(1, target[:, None]).squeeze(1)


def confident_classes(probability: Tensor, target: Tensor) -> Tensor:
    """Return the class that each row confidently belongs to, by confident learning (arXiv:1911.00068, section 3.1).

    A row belongs to a class if its probability reaches the mean probability that rows with that label have of it; of
    several such classes to the most probable one.

    Args:
        probability: `(N, K)` of a classifier that was not fitted on the row.
        target: `(N,)` int64.

    Returns:
        `(N,)` int64; -1 where no class is reached.
    """
    classes = probability.shape[1]
    own = self_confidence(probability, target).double()
    counts = target.bincount(minlength=classes)
    means = torch.zeros(classes, dtype=torch.float64).index_add_(0, target, own) / counts.clamp(min=1)
    means[counts == 0] = torch.inf
    reached = probability >= means.to(probability.dtype)
    best = probability.masked_fill(~reached, -1).argmax(1)
    return torch.where(reached.any(1), best, -1)


def neighbor_share(cosine: Tensor, neighbor: Tensor, target: Tensor, together: Tensor) -> Tensor:
    """Return what share of its neighbors' votes each row's label gets.

    A vote weighs exp(cosine / 0.07). Near-duplicates of a row, and rows of its group, do not vote: a copy would only
    repeat the label, right or wrong. Nor do rows without label.

    Args:
        cosine: `(N, k)` of the k nearest other rows, descending.
        neighbor: `(N, k)` int64, their row numbers.
        target: `(N,)` int64 class numbers, -1 for a row without label.
        together: `(N, k)` bool, which neighbors do not vote.

    Returns:
        `(N,)` float64 in [0, 1]; NaN where nobody votes.
    """
    votes = ((cosine - cosine[:, :1]).double() / TEMPERATURE).exp()
    label = target[neighbor]  # (N, k)
    votes = votes.masked_fill(together | (label < 0), 0)
    return (votes * (label == target[:, None])).sum(1) / votes.sum(1)


def robust_z(values: Tensor) -> Tensor:
    """Return how many robust standard deviations values lie above their median; NaN is passed over and stays.

    The deviation is 1.4826 times the median absolute one, which is that of a normal distribution.

    Args:
        values: `(N,)`.
    """
    known = values[~values.isnan()]
    if len(known) == 0:
        return values.clone()
    center = known.quantile(0.5) if len(known) < 2**24 else known.median()
    spread = 1.4826 * (known - center).abs().median()
    return (values - center) / spread.clamp(min=1e-9)
