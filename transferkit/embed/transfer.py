"""Pixels to a device and results back, while it computes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Transfer:
    """The way to one device and back; on a GPU both directions overlap with its computation.

    Pixels are stacked in page-locked memory, which PyTorch keeps for the next batch, and sent on a stream of their own.
    Results come back behind the computation, and nothing waits for them until they are taken.

    Args:
        device: where the network is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, images: Sequence[Tensor]) -> Tensor:
        """Return images of one shape (3, h, w) as a batch (B, 3, h, w) on a GPU; elsewhere on the CPU."""
        if self.stream is None:
            return torch.stack(list(images))
        host = torch.empty((len(images), *images[0].shape), dtype=images[0].dtype, pin_memory=True)
        torch.stack(list(images), out=host)
        with torch.cuda.stream(self.stream):
            pixels = host.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        pixels.record_stream(current)
        return pixels

    def fetch(self, result: Tensor) -> Callable[[], Tensor]:
        """Begin to copy a result to the CPU; return the function that waits for it."""
        if self.stream is None or not result.is_cuda:
            copied = result.cpu()
            return lambda: copied
        host = result.to("cpu", non_blocking=True)  # page-locked
        # blocking: a thread that waits leaves its core to the decoding
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))

        def take() -> Tensor:
            done.synchronize()
            return host.clone()

        return take
