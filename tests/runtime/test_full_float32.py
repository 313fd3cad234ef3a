"""float32 is float32 while an extractor runs, and the process's own settings are back afterwards."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.extractor.examples import transformer
from transferkit.data.image_table import open_images
from transferkit.embed.regions.align import embed_aligned
from transferkit.embed.regions.boxes import Box
from transferkit.extractor import Extractor
from transferkit.images.preprocessing import Preprocessing
from transferkit.runtime.full_float32 import full_float32

PIXELS = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)


def settings() -> list[str]:
    """What PyTorch says of each operation that could round its inputs."""
    cudnn, matmul, mkldnn = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mkldnn
    parts = (cudnn.conv, cudnn.rnn, matmul, mkldnn.conv, mkldnn.matmul)
    return [part.fp32_precision for part in parts]


@pytest.fixture
def extractor() -> Iterator[tuple[Extractor, list[list[str]]]]:
    """An extractor, and the settings seen inside of each of its forward passes; TF32 is on everywhere outside."""
    before, seen = settings(), []
    opened = transformer("vit", "cls")
    handle = opened.backbone.model.register_forward_pre_hook(lambda module, inputs: seen.append(settings()))
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "tf32"
    yield opened, seen
    handle.remove()
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.rnn.fp32_precision = before[:2]
    torch.backends.cuda.matmul.fp32_precision = before[2]
    torch.backends.mkldnn.conv.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = before[3:]


@pytest.mark.parametrize("way", ["call", "forward", "layer", "embed", "regions"])
def test_no_way_through_an_extractor_uses_tf32(
    way: str, extractor: tuple[Extractor, list[list[str]]], photo_folder: Path
) -> None:
    opened, seen = extractor
    outside = settings()
    assert "tf32" in outside, "the test itself"
    if way == "call":
        opened(PIXELS)
    elif way == "embed":
        opened.embed([PIXELS[0]] * 3, batch_size=1)
    elif way == "regions":
        box = Box(1, "train/apples/0.jpg", 2, 3, 20, 20)
        assert len(list(embed_aligned(opened, open_images(photo_folder), [box], {}))) == 1
        seen[:] = seen[-1:]  # those before only look for the shape
    else:
        run = opened.forward(layer="block 0" if way == "layer" else None)
        seen.clear()
        run(PIXELS)
    assert seen and all(inside == ["ieee"] * 5 for inside in seen)
    assert settings() == outside


def test_bf16_leaves_the_settings_alone(extractor: tuple[Extractor, list[list[str]]]) -> None:
    opened, seen = extractor
    outside = settings()
    opened.forward("bf16")(PIXELS)
    assert seen == [outside]


def test_the_settings_are_restored_after_an_error() -> None:
    before = settings()

    def fails() -> None:
        with full_float32():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert settings() == before


def test_threads_that_overlap_restore_what_was_before_all_of_them() -> None:
    before, first_inside, second_inside = settings(), threading.Event(), threading.Event()
    found: list[list[str]] = []

    def first() -> None:
        with full_float32():
            first_inside.set()
            second_inside.wait(10)

    def second() -> None:
        first_inside.wait(10)
        with full_float32():
            second_inside.set()
            one.join(10)  # the first has left
            found.append(settings())

    one, other = threading.Thread(target=first), threading.Thread(target=second)
    for thread in (one, other):
        thread.start()
    other.join(20)
    assert found == [["ieee"] * 5] and settings() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_numbers_of_a_cpu() -> None:
    torch.manual_seed(0)
    sizes = {"resize": [64, 64], "crop": [64, 64]}
    opened = Extractor.from_pretrained("resnet18", "none", preprocessing=sizes)
    assert opened.preprocessing == Preprocessing.imagenet().replace(resize=(64, 64), crop=(64, 64))
    pixels = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8)
    expected = opened.forward()(pixels)
    scale = expected.abs().max().item()
    opened.to("cuda")
    for run in (opened, opened.forward()):
        torch.testing.assert_close(run(pixels).cpu(), expected, atol=2e-5 * scale, rtol=0)
