"""Published accuracies: those of torchvision's pages, and none where nobody has published one."""

import pytest

from transferkit.backbones.published import imagenet_accuracy


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("resnet18", "DEFAULT", 0.69758),
        ("resnet50", "DEFAULT", 0.80858),
        ("resnet50", "IMAGENET1K_V1", 0.7613),
        ("resnet18", "none", None),
        ("facebook/dinov2-small", "DEFAULT", None),
    ],
)
def test_imagenet_accuracy(name: str, weights: str, expected: float | None) -> None:
    assert imagenet_accuracy(name, weights) == pytest.approx(expected)
