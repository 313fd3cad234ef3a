"""Where the patches are in what a transformer puts out, and its table of their positions at another image size."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Tables of positions: one row per patch, with rows for class tokens before them.
POSITIONS = ("position_embeddings", "position_embedding", "pos_embed")
# Tables of relative positions (BEiT): one row per distance of two patches, and three rows for the class token's.
DISTANCES = "relative_position_bias_table"


def count_prefix(tokens: int, height: int, width: int, patch: int | None) -> int:
    """Return how many tokens precede the patches: class, distillation and register tokens.

    A transformer of one resolution has one token per patch; one that merges patches has one token for each
    2, 4, 8 ... x as many pixels, and at most one before them.

    Raises:
        ValueError: the rest are not the patches of an image of this size.
    """
    if patch and tokens >= (grid := (height // patch) * (width // patch)):
        return tokens - grid
    strides = (4, 8, 16, 32, 64)
    grids = [math.ceil(height / stride) * math.ceil(width / stride) for stride in strides]
    grids += [(height // stride) * (width // stride) for stride in strides]  # DINOv3's ConvNeXt cuts off the rest
    for prefix in (0, 1):
        if tokens - prefix in grids:
            return prefix
    raise ValueError(f"{tokens} tokens of {height} x {width} pixels are not a grid of patches")


def as_grid(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return patch tokens (B, T, C) as a map (B, C, h, w), in the grid nearest to the image's aspect ratio.

    Args:
        tokens: of the patches alone, in row-major order.
        height: of the pixels.
        width: of the pixels.
    """
    count = tokens.shape[1]
    rows = min(
        (rows for rows in range(1, count + 1) if count % rows == 0),
        key=lambda rows: abs(math.log(rows * rows * width / (count * height))),
    )
    return tokens.transpose(1, 2).reshape(len(tokens), -1, rows, count // rows)


def check_channels(shape: Sequence[int], height: int, width: int, config: Mapping[str, Any]) -> None:
    """Refuse a map whose channels come last, as SAM 2's do: its mean would be over the wrong axes.

    Args:
        shape: of the map, without the batch.
        height: of the image.
        width: of the image.
        config: of the model; its widths decide where the shape alone does not.

    Raises:
        ValueError: the channels come last.
    """

    def shrunk(rows: int, columns: int) -> bool:  # are these the axes of the image?
        return abs(rows / height - columns / width) < 1 / min(height, width)

    named = [value for key, value in config.items() if "hidden_size" in key or "dim" in key or "channel" in key]
    widths = {side for value in named for side in (value if isinstance(value, list | tuple) else [value])}
    told = shape[2] in widths and shape[0] not in widths
    if shrunk(shape[0], shape[1]) and (told or not shrunk(shape[1], shape[2])):
        raise ValueError(f"it puts out {' x '.join(map(str, shape))}, the channels last")


def copy_resampled(source: nn.Module, target: nn.Module) -> bool:
    """Copy the weights of a model into the same model made for another image size.

    Tables are resampled as transformers does on each forward pass: positions bicubic, distances bilinear.

    Returns:
        Whether everything fitted; else ``target`` is of no use.
    """
    state, own = source.state_dict(), target.state_dict()
    for name, tensor in state.items():
        if tensor.shape == own[name].shape:
            continue
        resampled = None
        if any(part in POSITIONS for part in name.split(".")):
            resampled = resample(tensor, own[name].shape, "bicubic", before=(0, 1, 2), after=0)
        elif name.endswith(DISTANCES):
            resampled = resample(tensor, own[name].shape, "bilinear", before=(0,), after=3)
        if resampled is None:
            return False
        state[name] = resampled
    target.load_state_dict(state)
    return True


def resample(table: Tensor, shape: torch.Size, mode: str, before: tuple[int, ...], after: int) -> Tensor | None:
    """Resample a table of square grids, (P + n * n + Q, D), or the same with a batch of 1 before it.

    Args:
        table: the table.
        shape: shape of the result.
        mode: kind of interpolation.
        before: how many rows P may precede the grid; they stay.
        after: number of rows Q that follow the grid; they stay.

    Returns:
        A table of that shape; None where one of them is not a square grid with the same rows around it.
    """
    count, wanted = table.shape[-2] - after, shape[-2] - after
    for prefix in before:
        old, new = math.isqrt(max(0, count - prefix)), math.isqrt(max(0, wanted - prefix))
        if old and new and (old * old, new * new) == (count - prefix, wanted - prefix):
            break
    else:
        return None
    rows = table.reshape(count + after, -1)
    grid = rows[prefix:count].reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, D, n, n)
    grid = F.interpolate(grid, size=(new, new), mode=mode, align_corners=False)
    patches = grid.permute(0, 2, 3, 1).reshape(new * new, -1)
    return torch.cat([rows[:prefix], patches, rows[count:]]).reshape(shape)
