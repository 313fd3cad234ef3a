"""``transferkit similarity`` against scikit-learn on the plain libraries' features."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity
from torchvision import models

from tests.backbones.families import save
from tests.running import transferkit

NAMES = ["photos/train/apples/0.jpg", "photos/train/apples/1.png", "photos/val/limes/0.jpg"]


@pytest.fixture(autouse=True)
def here(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photo_folder.parent)


def pixels(name: str) -> np.ndarray:
    """uint8 (3, H, W); torchvision resizes tensors, as we do, a grey level apart from Pillow's images."""
    return np.array(Image.open(name).convert("RGB")).transpose(2, 0, 1).copy()


def of_torchvision() -> tuple[list[str], np.ndarray]:
    """Options for a ResNet18, and torchvision's own features of the three images."""
    model = models.resnet18().eval()
    torch.save(model.state_dict(), "weights.pt")
    model.fc = torch.nn.Identity()
    transforms = models.ResNet18_Weights.DEFAULT.transforms()
    with torch.inference_mode():
        features = model(torch.stack([transforms(torch.from_numpy(pixels(name))) for name in NAMES]))
    return ["--weights", "weights.pt"], features.numpy()


def of_transformers() -> tuple[list[str], np.ndarray]:
    """Options for a ViT, and transformers' own features of the three images."""
    model = save("vit", Path("vit")).eval()
    processor = transformers.AutoImageProcessor.from_pretrained("vit")
    with torch.inference_mode():
        hidden = model(**processor([Image.open(name) for name in NAMES], return_tensors="pt")).last_hidden_state
    return ["--extractor", "vit"], hidden[:, 0].numpy()


Library = Callable[[], tuple[list[str], np.ndarray]]


@pytest.mark.parametrize("library", [of_torchvision, of_transformers])
def test_cosines_equal_scikit_learns_on_the_plain_librarys_features(
    library: Callable[[], tuple[list[str], np.ndarray]],
) -> None:
    options, features = library()
    oracle = cosine_similarity(features)
    two = transferkit("similarity", *NAMES[::2], *options)
    assert two.status == 0, two.err
    assert float(two.out) == pytest.approx(oracle[0, 2], abs=1e-5)
    three = transferkit("similarity", *NAMES, *options, "--json")
    result = json.loads(three.out)
    assert result["images"] == NAMES
    np.testing.assert_allclose(result["cosine"], oracle, atol=1e-5)
    shown = transferkit("similarity", *NAMES, *options).out
    for number, name in enumerate(NAMES):
        (line,) = [line for line in shown.splitlines() if name in line]
        cells = [float(cell) for cell in re.findall(r"-?\d\.\d{4}", line)]
        np.testing.assert_allclose(cells, oracle[number], atol=1e-4)


def test_bad_input_gets_one_line() -> None:
    save("vit", Path("vit"))
    for names, message in (
        ([NAMES[0]], "similarity compares two or more images, got 1; give another one"),
        ([NAMES[0], "no.jpg"], "no.jpg cannot be read as an image: no such file"),
        ([NAMES[0], "photos"], "photos cannot be read as an image: not a regular file"),
    ):
        done = transferkit("similarity", *names, "--extractor", "vit")
        assert done.status == 2 and message in done.err and done.out == ""
        assert len(done.err.splitlines()) == 1
