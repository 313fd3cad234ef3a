"""What a student's features lack of being those of its teacher: pure functions, 0 where they are the same."""

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07
"""Of the similarities between images: at 0.07, an image with cosine 0.2 more has 17 times the weight."""


def direction_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return one minus the cosine of each pair of vectors, in [0, 2].

    Args:
        student: (B, ..., D).
        teacher: (B, ..., D).

    Returns:
        (B,), the mean over the dimensions between the first and the last.

    >>> direction_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]))
    tensor([0.0400])
    """
    losses = 1 - F.cosine_similarity(student, teacher, dim=-1)
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def relation_loss(student: Tensor, teacher: Tensor, others: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return how differently student and teacher relate an image to other images.

    The relation is a softmax over cosines with the teacher's embeddings of the others; the loss is the Kullback-Leibler
    divergence of the student's from the teacher's, as in CompRess and SEED (arXiv:2010.14713, arXiv:2101.04731).

    Args:
        student: (B, D).
        teacher: (B, D).
        others: (Q, D), of the teacher.
        temperature: of the softmax.

    Returns:
        (B,), from 0 up.
    """
    known = F.normalize(others, dim=1).T
    theirs, own = (F.normalize(rows, dim=1) @ known / temperature for rows in (teacher, student))
    return F.kl_div(own.log_softmax(1), theirs.log_softmax(1), reduction="none", log_target=True).sum(1)


def on_grid(features: Tensor, cells: tuple[int, int]) -> Tensor:
    """Average a map over the cells of a coarser grid: (B, C, h, w) -> (B, rows * columns, C)."""
    return F.adaptive_avg_pool2d(features, cells).flatten(2).transpose(1, 2)


def center_of(embeddings: Tensor) -> Tensor:
    """Return the mean of embeddings (N, D), which relations and directions are measured from: (D,).

    Embeddings of one kind of picture share most of their direction, in which nothing is to be learned.
    """
    return embeddings.double().mean(0).to(embeddings.dtype) if len(embeddings) else torch.zeros(embeddings.shape[1])
