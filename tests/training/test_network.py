"""The network under training: its head, and what goes through it."""

import copy
from typing import Any

import torch

from tests.tiny import RESNET, VIT
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


def test_a_convolutional_network_learns_the_same_from_images_laid_out_channels_last() -> None:
    torch.manual_seed(0)
    pixels, target = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    module = with_head(**RESNET, architecture=None, regime="full").double().train()
    plain = copy.deepcopy(module.backbone)
    assert module.head is not None
    inputs = module.preprocessing.normalize(pixels).double()
    torch.nn.functional.cross_entropy(module.head(plain(inputs)), target).backward()
    assert module.normalized(pixels).is_contiguous(memory_format=torch.channels_last)
    torch.nn.functional.cross_entropy(module(pixels), target).backward()
    for (name, ours), right in zip(module.backbone.named_parameters(), plain.parameters(), strict=True):
        assert ours.is_contiguous() and ours.grad is not None and right.grad is not None, name
        torch.testing.assert_close(ours.grad, right.grad, msg=name)
    for ours, right in zip(module.backbone.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, right)


def test_a_transformer_learns_from_images_as_they_are() -> None:
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert with_head(regime="full").normalized(pixels).is_contiguous()
