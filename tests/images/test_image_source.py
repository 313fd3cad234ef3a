"""What ``embed`` and ``similarity`` take: forms in any mix, iterators, datasets; all with the pixels of the files."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from tests.extractor.examples import transformer
from transferkit.data.memory_table import table_of_images
from transferkit.errors import UserError
from transferkit.extractor import Extractor


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return transformer("vit", "cls")


@pytest.fixture
def paths(photo_folder: Path) -> list[Path]:
    return sorted((photo_folder / "val").rglob("*.*"))


@pytest.fixture
def expected(extractor: Extractor, paths: list[Path]) -> Tensor:
    """By plain torch, of Pillow's pixels."""
    pixels = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in paths]
    inputs = torch.stack([extractor.preprocessing(image) for image in pixels])
    with torch.no_grad():
        return extractor.backbone(inputs)  # type: ignore[no-any-return]


class Own(Dataset[tuple[Any, int]]):
    """A dataset of the least that torch asks for; it raises no IndexError at its end."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return Image.open(self.paths[row % len(self)]), row


def array_of(values: list[Any]) -> np.ndarray:
    """An array of objects, which NumPy does not look into."""
    array = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        array[row] = value
    return array


def forms(paths: list[Path]) -> dict[str, Any]:
    """The images in every form that has several."""
    root = paths[0].parents[1]
    kinds = [
        str,
        Path,
        Path.read_bytes,
        lambda p: BytesIO(p.read_bytes()),
        Image.open,
        lambda p: np.array(Image.open(p)),
    ]
    table = datasets.Dataset.from_dict({"label": [0] * len(paths), "image": list(map(str, paths))})
    return {
        "mixed": [kinds[row % len(kinds)](path) for row, path in enumerate(paths)],
        "tuple": tuple(paths),
        "array of text": np.array(list(map(str, paths))),
        "array of paths": np.array(paths, dtype=object),
        "array of bytes": array_of([path.read_bytes() for path in paths]),
        "array of Pillow's images": array_of([Image.open(path) for path in paths]),
        "iterator": (np.array(Image.open(path)) for path in paths),
        "generator of pairs": ((path, "label") for path in paths),
        "torch": Own(paths),
        "torchvision": ImageFolder(root),
        "torchvision with tensors": ImageFolder(root, ToTensor()),
        "hugging face": table.cast_column("image", datasets.Image()),
        "hugging face rows": [{"image": Image.open(path), "label": 0} for path in paths],
        "hugging face decoded": list(table.cast_column("image", datasets.Image())),
        "hugging face stream": table.cast_column("image", datasets.Image()).to_iterable_dataset(),
        "batch": torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths]),
        "tensors": TensorDataset(
            torch.stack([ToTensor()(Image.open(path)) for path in paths]), torch.arange(len(paths))
        ),
    }


def test_every_form_has_the_embeddings_of_the_files(extractor: Extractor, paths: list[Path], expected: Tensor) -> None:
    for name, form in forms(paths).items():
        found = extractor.embed(form, batch_size=5)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_an_iterator_is_read_in_batches(extractor: Extractor, paths: list[Path]) -> None:
    read, most = 0, 0

    def images() -> Iterator[Path]:
        nonlocal read
        for path in paths * 3:
            read += 1
            yield path

    inner = extractor.forward()

    def forward(pixels: Tensor) -> Tensor:
        nonlocal most
        most = max(most, len(pixels))
        return inner(pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "forward", lambda: forward)
        assert extractor.embed(images(), batch_size=4).shape == (36, extractor.embed_dim)
    assert (read, most) == (36, 4)
    assert extractor.embed(iter([])).shape == (0, extractor.embed_dim)


def test_similarity_is_the_cosine(extractor: Extractor, paths: list[Path], expected: Tensor) -> None:
    found = extractor.similarity(paths[:3], [np.array(Image.open(path)) for path in paths])
    assert np.allclose(found, cosine_similarity(expected[:3], expected), atol=1e-5)
    assert torch.equal(extractor.similarity(paths[:3]).diagonal(), torch.ones(3))


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ("photos", "embed takes a list of images, not 'photos'; for a folder use transferkit.embed.embed"),
        (Image.new("L", (4, 4)), "embed takes a list of images, not one Image"),
        (torch.zeros(3, 4, 4), "not one Tensor"),
        (b"bytes", "not one bytes"),
        (np.zeros(4, np.uint8), "not one ndarray"),
        (np.array([["a.png"]]), "not one ndarray"),
        (3, "`images` is of type int; give a list of images"),
        ({"a": "b"}, "`images` is of type dict; give a list of images"),
        ([np.zeros((4, 4, 3), np.uint8), None], "`images`: item 1 cannot be read as an image: NoneType is not"),
        ([torch.full((3, 4, 4), 9.0)], "`images`: item 0 cannot be read .* outside 0..1; give pixels before they are"),
        (["nothing.png"], "nothing.png cannot be read as an image: no such file"),
        (datasets.Dataset.from_dict({"text": ["a"]}), "`images` has no column of images, only text; cast one"),
    ],
)
def test_what_is_not_images_is_refused(extractor: Extractor, images: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        extractor.embed(images)
    with pytest.raises(UserError, match="`batch_size` is '4'; give a whole number"):
        extractor.embed([], batch_size="4")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="`batch_size` is 0; give 1 or more"):
        extractor.embed([], batch_size=0)


def test_a_bar_is_shown_only_when_asked_for(
    extractor: Extractor, paths: list[Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal to rich
    extractor.embed(paths)
    assert capfd.readouterr() == ("", "")
    extractor.embed(iter(paths), progress=True)
    out, error = capfd.readouterr()
    assert out == "" and "embedding with" in error and "12" in error


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_a_table_of_columns_is_not_taken_for_their_names(extractor: Extractor, paths: list[Path], kind: str) -> None:
    tables = {"pandas": "DataFrame", "polars": "DataFrame", "pyarrow": "table"}
    table = getattr(pytest.importorskip(kind), tables[kind])({"path": [str(path) for path in paths]})
    told = r"^`images` is a whole (DataFrame|Table); give its column of images: table\['path'\]$"
    for take in (extractor.embed, table_of_images):
        with pytest.raises(UserError, match=told):
            take(table)
