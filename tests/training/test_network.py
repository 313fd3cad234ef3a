"""The network under training: its head, and what goes through it."""

from typing import Any

import torch

from tests.tiny import VIT
from transferkit.training.module import TransferModule
from transferkit.training.trainer import seed_everything


def with_head(**options: Any) -> TransferModule:
    module = TransferModule(**{**VIT, **options})
    module.set_classes(["a", "b", "c"])
    return module


def test_head_depends_on_the_seed_alone() -> None:
    heads = []
    for seed, waste in ((1, 0), (1, 5), (2, 0)):
        seed_everything(waste)
        head = with_head(seed=seed).head
        assert head is not None
        heads.append(head.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_dropout_is_for_training() -> None:
    module = with_head(dropout=0.5)
    embedding = torch.randn(4, 32)
    assert module.head is not None
    module.eval()
    assert torch.equal(module.classify(embedding), module.head(embedding))
    module.train()
    assert not torch.equal(module.classify(embedding), module.head(embedding))


def test_l2_normalised_head_input() -> None:
    module = with_head(l2_normalize=True).eval()
    embedding = torch.randn(4, 32)
    assert module.head is not None
    wanted = module.head(embedding / embedding.norm(dim=1, keepdim=True))
    torch.testing.assert_close(module.classify(embedding), wanted)
    torch.testing.assert_close(module.classify(embedding * 7), wanted)


def test_forward_is_preprocessing_backbone_and_head() -> None:
    module = with_head().eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert module.head is not None
    wanted = module.head(module.backbone((pixels / 255 - 0.5) / 0.5))
    torch.testing.assert_close(module(pixels), wanted)
