"""Packed linear layers against PyTorch's own, and where they are used."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import MLP
from transformers.activations import GELUTanh

from tests.extractor.examples import resnet18, transformer
from transferkit.extractor import fast_modules
from transferkit.extractor.fast_modules import PackedLinear, followed, for_inference, gelu_of, pack_linear, packs_linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is not in this PyTorch")


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack on any processor."""
    monkeypatch.setattr(fast_modules, "packs_linear", lambda: True)


class Block(nn.Module):
    """An MLP whose parts are used in various ways."""

    def __init__(self, activation: nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.first, self.act, self.last, self.twice = nn.Linear(24, 48), activation, nn.Linear(48, 24, False), twice

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        found: Tensor = self.last(self.act(hidden) + (hidden if self.twice else 0))
        return found


@torch.no_grad()
@pytest.mark.parametrize(
    ("block", "fused"),
    [
        (Block(nn.GELU()), "none"),
        (Block(nn.GELU("tanh")), "tanh"),
        (Block(GELUTanh()), "tanh"),
        (Block(nn.ReLU()), None),
        (Block(nn.GELU(), twice=True), None),
        (MLP(24, [48, 24], activation_layer=nn.GELU, inplace=None), "none"),
    ],
)
@pytest.mark.parametrize("rows", [(5, 24), (2, 7, 24), (3, 4, 5, 24)])
def test_packed_layers_equal_plain_ones(block: nn.Module, fused: str | None, rows: tuple[int, ...]) -> None:
    block = nn.Sequential(block).eval()
    x = torch.randn(rows, generator=torch.Generator().manual_seed(0))
    right = block(x)
    before = [name for name, _ in block.named_parameters()]
    packed = copy.deepcopy(block)
    pack_linear(packed)
    layers = [module for module in packed.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 2 and all(type(layer) is PackedLinear for layer in layers)
    assert layers[0].operation == (("none", "") if fused is None else ("gelu", fused))  # type: ignore[union-attr]
    found = packed(x)
    assert float((found - right).norm() / right.norm()) < 1e-6 and torch.equal(packed(x), found)
    assert [name for name, _ in packed.named_parameters()] == before


@torch.no_grad()
@pytest.mark.parametrize("family", ["vit", "dinov2_with_registers", "swin"])
def test_a_packed_network_equals_the_librarys_to_1e_5(family: str, packing: None) -> None:
    extractor = transformer(family, "mean")
    generator = torch.Generator().manual_seed(0)
    size = (3, 3, *extractor.preprocessing.image_size)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    right, before = extractor(pixels), extractor.weights_sha256()
    for precision, tolerance in (("32", 1e-5), ("bf16", 0.045)):  # a cosine of 0.999
        forward = extractor.forward(precision)  # type: ignore[arg-type]
        assert any(type(module) is PackedLinear for module in forward.backbone.modules())
        found = forward(pixels)
        assert float(((found - right).norm(dim=1) / right.norm(dim=1)).max()) < tolerance
        assert torch.equal(forward(pixels), found)
    assert extractor.weights_sha256() == before, "the extractor's own weights were touched"
    assert not any(type(module) is PackedLinear for module in extractor.backbone.modules())


def test_only_what_changes_is_copied(packing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = transformer("vit", "cls").backbone
    own = {id(parameter) for parameter in backbone.parameters()}
    assert {id(parameter) for parameter in for_inference(backbone, torch.float32).parameters()} == own
    monkeypatch.setattr(fast_modules, "packs_linear", lambda: False)
    assert for_inference(backbone, torch.float32) is backbone
    assert for_inference(resnet18().backbone, torch.float32, pack=False) is not backbone


@pytest.mark.parametrize("given", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_in_training_keeps_its_dtype(given: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for packs in (True, False):
        monkeypatch.setattr(fast_modules, "packs_linear", lambda packs=packs: packs)
        for backbone in (transformer("vit", "cls").backbone, resnet18().backbone):
            backbone.to(given)
            fast = for_inference(backbone, torch.float32)
            assert {p.dtype for p in backbone.parameters()} == {given}
            assert {p.dtype for p in fast.parameters()} == {torch.float32}


def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packs_linear() is packs_linear.__wrapped__()  # no measurement that may come out differently
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert packs_linear.__wrapped__() is False


def test_what_follows_what() -> None:
    assert list(followed(Block(nn.ReLU()))) == [("first", "act")]
    assert list(followed(nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.ReLU()))) == [("0", "1"), ("1", "2")]
    assert [gelu_of(each) for each in (nn.GELU(), GELUTanh(), nn.ReLU(), nn.Linear(2, 2))] == [
        "none",
        "tanh",
        None,
        None,
    ]
