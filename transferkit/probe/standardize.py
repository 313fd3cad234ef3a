"""Scaling of features for a linear classifier: none, l2 or zscore, without a copy of the features."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["none", "l2", "zscore"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CHUNK, CHUNK_ON_GPU = 2048, 2**16
"""Rows per chunk: a chunk of features and its logits stay in a processor's cache; a GPU is kept busy by more."""


@dataclass(frozen=True)
class Standardization:
    """The map `x -> (row(x) * x - mean) / scale`, with `row(x) = 1 / |x|` for l2 and 1 otherwise.

    Centering does not change a softmax classifier with an unpenalized bias; it makes the fit converge quickly.

    Attributes:
        kind: `none`, `l2` or `zscore`.
        mean: `(D,)` float64, mean of `row(x) * x` over the rows it was fitted on.
        scale: `(D,)` float64; 1 for `none`, `l2` and constant features.
    """

    kind: Kind
    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, features: Tensor, kind: Kind) -> "Standardization":
        """Compute the mean and, for zscore, the population standard deviation of the rows of `features` `(N, D)`."""
        unscaled = cls(
            kind,
            *torch.tensor([[0.0], [1.0]], dtype=torch.float64, device=features.device).expand(2, features.shape[1]),
        )
        mean = sum_rows(unscaled.chunks(features)) / len(features)
        centered = cls(kind, mean, unscaled.scale)
        if kind != "zscore":
            return centered
        deviation = (sum_rows(rows.square() for rows in centered.chunks(features)) / len(features)).sqrt()
        # A layer on raw float32 rows cannot distinguish such a feature from a constant: the rounding error of its
        # products exceeds a thousandth of its deviation.
        flat = deviation <= 1000 * torch.finfo(features.dtype).eps * mean.abs()
        return cls(kind, mean, deviation.masked_fill(flat, 1))

    def row_scale(self, features: Tensor) -> Tensor | None:
        """Return the factor of each row, `(N, 1)`, or None if all are 1; a row of zeros stays zero."""
        if self.kind != "l2":
            return None
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        length[length == 0] = 1
        return torch.reciprocal(length)

    def chunks(self, features: Tensor) -> Iterator[Tensor]:
        """Yield standardized copies of at most `chunk_rows` rows at a time, `(B, D)`."""
        mean, scale = self.mean.to(features.dtype), self.scale.to(features.dtype)
        size = chunk_rows(features)
        for start in range(0, len(features), size):
            rows = features[start : start + size]
            factor = self.row_scale(rows)
            yield ((rows if factor is None else rows * factor) - mean) / scale

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Convert weights on standardized features into weights on raw ones (on unit rows, for l2).

        Args:
            weight: `(..., D, K)` float64.
            bias: `(..., K)` float64.

        Returns:
            The same shapes.
        """
        weight = weight / self.scale[:, None]
        return weight, bias - self.mean @ weight


def chunk_rows(features: Tensor) -> int:
    """Return the number of rows per chunk on the features' device."""
    return CHUNK if features.device.type == "cpu" else CHUNK_ON_GPU


def sum_rows(chunks: Iterator[Tensor]) -> Tensor:
    """Return column sums in float64, `(D,)`."""
    return torch.stack([rows.sum(0, dtype=torch.float64) for rows in chunks]).sum(0)
