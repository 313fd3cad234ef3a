"""Shapes for a blank image: found without computing, for every family, and nothing stays in the network."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.backbones.families import CONFIGS, make
from transferkit.backbones.blank_image import is_view_of, run_blank

QUICK = ("vit", "levit", "dinov3_vit", "swin", "resnet", "beit")
FAMILIES = [pytest.param(family, marks=() if family in QUICK else pytest.mark.slow) for family in CONFIGS]


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors that an object holds, and those in its dicts and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in tensors_in(each)]
    return [value] if isinstance(value, Tensor) else []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_without_computing(family: str) -> None:
    network, ran = make(family), []
    size = getattr(network.config, "image_size", None) or 32
    size = size if isinstance(size, int) else size[0]

    def run(it: nn.Module, pixels: Tensor) -> Any:
        ran.append(pixels.device.type)
        return it(pixel_values=pixels)

    held = [[id(tensor) for tensor in tensors_in(vars(module))] for module in network.modules()]
    found = run_blank(network, run, (size, size)).last_hidden_state
    with torch.no_grad():
        oracle = network(pixel_values=torch.zeros(1, 3, size, size)).last_hidden_state
    assert ran == ["meta"] and found.shape == oracle.shape and found.dtype == oracle.dtype
    network.train().eval()
    assert held == [[id(tensor) for tensor in tensors_in(vars(module))] for module in network.modules()]


class ReadsNumbers(nn.Module):
    """A network whose shapes depend on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.layer(pixels)
        return features if float(pixels.sum()) == 0 else features[:, :2]


def test_a_network_that_reads_numbers_runs_itself() -> None:
    network = ReadsNumbers().train()
    assert run_blank(network, lambda it, pixels: it(pixels), (2, 3)).shape == (1, 4, 2, 3)
    assert not network.training
    with pytest.raises(RuntimeError, match="expected input"):
        run_blank(network, lambda it, pixels: it(pixels[:, :2]), (2, 3))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_views_share_memory(device: str) -> None:
    whole = torch.zeros(2, 3, 4, device=device)
    assert is_view_of(whole[:, 0], whole[:, 0])
    assert not is_view_of(whole[:, 0], whole[:, 1])
    assert not is_view_of(whole[:, 0].clone(), whole[:, 0])
