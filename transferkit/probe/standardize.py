"""How features are scaled before a linear classifier: none, l2 or zscore, without a copy of the features."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["none", "l2", "zscore"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CHUNK = 2048
"""Rows worked on at once: a chunk of features and its logits stay in the processor's cache."""


@dataclass(frozen=True)
class Standardisation:
    """The map `x -> (row(x) * x - mean) / scale`, with `row(x) = 1 / |x|` for l2 and 1 otherwise.

    Centring does not change a softmax classifier with an unpenalised bias; it is what makes the fit quick.

    Attributes:
        kind: `none`, `l2` or `zscore`.
        mean: `(D,)` float64, of `row(x) * x` over the rows it was fitted on.
        scale: `(D,)` float64; 1 unless `zscore`, and there where a feature is constant.
    """

    kind: Kind
    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, features: Tensor, kind: Kind) -> "Standardisation":
        """Mean and, for zscore, population standard deviation of the rows of `features` `(N, D)`."""
        unscaled = cls(kind, *torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, features.shape[1]))
        mean = sum_rows(unscaled.chunks(features)) / len(features)
        centred = cls(kind, mean, unscaled.scale)
        if kind != "zscore":
            return centred
        deviation = (sum_rows(rows.square() for rows in centred.chunks(features)) / len(features)).sqrt()
        # A layer on raw float32 rows cannot tell such a feature from a constant: its products are rounded by more
        # than a thousandth of its deviation.
        flat = deviation <= 1000 * torch.finfo(features.dtype).eps * mean.abs()
        return cls(kind, mean, deviation.masked_fill(flat, 1))

    def row_scale(self, features: Tensor) -> Tensor | None:
        """The factor of each row, `(N, 1)`, or None where it is 1; a row of zeros stays zero."""
        if self.kind != "l2":
            return None
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        length[length == 0] = 1
        return torch.reciprocal(length)

    def chunks(self, features: Tensor) -> Iterator[Tensor]:
        """Standardised copies of a few thousand rows at a time, `(<= CHUNK, D)`."""
        mean, scale = self.mean.to(features.dtype), self.scale.to(features.dtype)
        for start in range(0, len(features), CHUNK):
            rows = features[start : start + CHUNK]
            factor = self.row_scale(rows)
            yield ((rows if factor is None else rows * factor) - mean) / scale

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weights on standardised features as weights on raw ones (on unit rows, for l2).

        Args:
            weight: `(..., D, K)` float64.
            bias: `(..., K)` float64.

        Returns:
            The same shapes.
        """
        weight = weight / self.scale[:, None]
        return weight, bias - self.mean @ weight

    def unfold(self, weight: Tensor, bias: Tensor) -> Tensor:
        """The inverse of `fold`, as the solver holds it: `(D, K)` and `(K,)` float64 -> `(D + 1, K)`."""
        return torch.cat([weight * self.scale[:, None], (bias + self.mean @ weight)[None]])


def sum_rows(chunks: Iterator[Tensor]) -> Tensor:
    """Column sums in float64, `(D,)`."""
    return torch.stack([rows.sum(0, dtype=torch.float64) for rows in chunks]).sum(0)
