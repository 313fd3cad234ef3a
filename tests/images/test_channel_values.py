"""A number per channel, whatever the process's default dtype is."""

import torch

from transferkit.images.channel_values import channel_values, make_once


def test_float32_in_the_shape_that_broadcasts() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = channel_values((0.5, 0.25, 1.0), torch.device("cpu"))
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32 and found.shape == (3, 1, 1) and found.flatten().tolist() == [0.5, 0.25, 1.0]


def test_what_is_made_once_may_be_trained_with() -> None:
    with torch.inference_mode():
        kept = make_once((0.5, 0.25, 0.125), torch.device("cpu"))
    assert kept is make_once((0.5, 0.25, 0.125), torch.device("cpu")) and not kept.is_inference()
