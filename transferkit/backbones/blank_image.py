"""What a network puts out for a blank image, found without computing it: shapes alone."""

import copy
from collections.abc import Callable
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
Output = TypeVar("Output")


def run_blank(network: Network, run: Callable[[Network, Tensor], Output], image_size: tuple[int, int]) -> Output:
    """Return what ``run`` makes of a network in eval mode and one blank image (1, 3, H, W).

    A copy runs on PyTorch's meta device, which finds shapes in a tenth of the time and keeps nothing in the network.
    The network itself runs where that is not possible: where a model reads numbers on its way, or refuses the image.

    Args:
        network: any.
        run: of the output only shapes, dtypes and shared memory mean anything.
        image_size: height and width.

    Raises:
        Exception: whatever the network raises for such an image.
    """
    network.eval()
    try:
        with torch.no_grad(), torch.device("meta"):
            return run(without_numbers(network), torch.zeros(1, 3, *image_size))
    except Exception:  # told by the network itself, below
        pass
    with torch.no_grad(), torch.device(next(network.parameters()).device):
        output = run(network, torch.zeros(1, 3, *image_size))
    network.train().eval()  # LeViT forgets what it computed from weights that may be replaced yet
    return output


def without_numbers(network: Network) -> Network:
    """Return a copy of a network on the meta device: its tensors have shapes, but neither numbers nor memory."""
    kept = (value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor))
    blank = {id(tensor): as_meta(tensor) for tensor in chain(network.parameters(), network.buffers(), kept)}
    return copy.deepcopy(network, blank)  # type: ignore[arg-type]  # what a copy looks up before it copies a tensor


def as_meta(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape and kind on the meta device."""
    blank = tensor.detach().to("meta")
    return nn.Parameter(blank, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else blank


def is_view_of(part: Tensor, whole: Tensor) -> bool:
    """Return whether two tensors are the same numbers in the same memory; on the meta device, too."""
    return (
        part.untyped_storage()._cdata == whole.untyped_storage()._cdata
        and part.storage_offset() == whole.storage_offset()
        and (part.shape, part.stride()) == (whole.shape, whole.stride())
    )
