"""Which tokens are patches, and which axis of a map holds the channels; sizes are in test_sizes.py."""

from typing import Any

import pytest

from transferkit.backbones.token_grid import check_channels, count_prefix


@pytest.mark.parametrize(
    ("tokens", "height", "width", "patch", "prefix"),
    [
        (197, 224, 224, 16, 1),
        (198, 224, 224, 16, 2),
        (261, 224, 224, 14, 5),
        (196, 224, 224, 16, 0),
        (16 * 32 + 1, 230, 460, 14, 1),  # an image that is no whole number of patches
        (49, 224, 224, 4, 0),  # Swin merges its patches
        (50, 224, 224, None, 1),
        (101, 336, 336, None, 1),  # DINOv3's ConvNeXt cuts off half a patch
        (7 * 14, 224, 448, 4, 0),
    ],
)
def test_count_prefix(tokens: int, height: int, width: int, patch: int | None, prefix: int) -> None:
    assert count_prefix(tokens, height, width, patch) == prefix


def test_tokens_that_are_no_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="55 tokens of 224 x 224 pixels are not a grid"):
        count_prefix(55, 224, 224, None)


@pytest.mark.parametrize(
    ("shape", "size", "config", "first"),
    [
        ((64, 7, 7), (224, 224), {"hidden_sizes": [32, 64]}, True),
        ((7, 7, 64), (224, 224), {"hidden_sizes": [32, 64]}, False),
        ((1024, 7, 7), (224, 224), {}, True),  # MobileNet computes its width
        ((64, 7, 14), (224, 448), {}, True),
        ((7, 14, 64), (224, 448), {}, False),
        ((8, 8, 8), (64, 64), {"hidden_size": 8}, True),
        ((7, 7, 7), (224, 224), {"embed_dim": 7}, True),
        ((64, 8, 15), (230, 460), {}, True),
    ],
)
def test_check_channels(shape: tuple[int, ...], size: tuple[int, int], config: dict[str, Any], first: bool) -> None:
    if first:
        check_channels(shape, *size, config)
    else:
        with pytest.raises(ValueError, match="the channels last"):
            check_channels(shape, *size, config)
