"""A forward pass over many batches of one shape, recorded once as a CUDA graph."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UP = 2  # passes in which cuDNN and cuBLAS set themselves up, which cannot be recorded


class Recorded:
    """The kernels of a pass, started by one call, so that they do not wait for threads that decode images.

    They are the kernels of the pass itself, and so are the bits of the result.

    Args:
        run: the pass, without any transfer to the CPU.
        pixels: a batch on the GPU.

    Raises:
        RuntimeError: the pass waits for a value on the CPU, or CUDA cannot record it.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], pixels: Tensor) -> None:
        self.pixels, device = pixels.clone(), pixels.device
        current, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                run(self.pixels)
            with refusing_to_wait():  # a recording that fails would leave CUDA in a state of its own
                run(self.pixels)
        current.wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads may use CUDA meanwhile
            self.result = run(self.pixels)

    def fits(self, pixels: Tensor) -> bool:
        """Return whether a batch has the shape and type of the one that was recorded."""
        return pixels.shape == self.pixels.shape and pixels.dtype == self.pixels.dtype

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the result for another batch of the same shape."""
        self.pixels.copy_(pixels, non_blocking=True)
        self.graph.replay()
        return self.result.clone()


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Let CUDA raise, while the block runs, where the CPU would wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    set_mode("error")
    try:
        yield
    finally:
        set_mode(before)


def set_mode(mode: int | str) -> None:
    """Set CUDA's mode without its warning that the setting is a prototype: nothing depends on it here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)
