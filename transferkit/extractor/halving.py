"""A forward pass that goes on with smaller batches if a device has no memory for a whole one."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from transferkit.runtime.no_memory import is_out_of_memory

log = logging.getLogger(__name__)


class Halving:
    """Run a forward pass over a batch, in halves where memory does not suffice, and say so once.

    Several threads may call it at once.

    Args:
        forward: (B, ...) -> (B, ...), each row by itself; further arguments are handed on.

    Attributes:
        most: images per pass so far; None while whole batches fit.
    """

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self.forward = forward
        self.most: int | None = None

    def __call__(self, pixels: Tensor, *more: Any) -> Tensor:
        """Return the result of all rows.

        Raises:
            RuntimeError: there is no memory for a single one, or another error of the pass.
        """
        while True:
            size = min(len(pixels), self.most or len(pixels))
            if (result := self.attempt(pixels, size, *more)) is not None:
                return result
            torch.cuda.empty_cache()  # nothing happens without CUDA
            if self.most is None or size // 2 < self.most:
                self.most = size // 2
                log.warning("out of memory with %d images per forward pass; going on with %d", size, self.most)

    def attempt(self, pixels: Tensor, size: int, *more: Any) -> Tensor | None:
        """Run passes of at most ``size`` rows; return None if memory does not suffice for more than one."""
        try:
            parts = [self.forward(part, *more) for part in torch.split(pixels, max(size, 1))]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        except (RuntimeError, MemoryError) as error:
            if size < 2 or not is_out_of_memory(error):
                raise
            return None  # its tensors are freed with the error, before the next attempt
