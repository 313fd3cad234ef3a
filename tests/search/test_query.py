"""Searching against a brute-force loop."""

from pathlib import Path

import numpy as np
import pytest
import torch

from transferkit.data.image_table import open_images
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.search.build import build_index
from transferkit.search.index import ImageIndex
from transferkit.search.query import find, find_row, mean_direction


@pytest.fixture
def index(pictures: Path, tmp_path: Path, extractor: Extractor) -> ImageIndex:
    source = {"source": "somewhere", "weights": "DEFAULT"}
    return build_index(open_images(pictures), tmp_path / "index", extractor, source)[0]


def test_against_all_pairs_in_float64(index: ImageIndex) -> None:
    rows = index.embedding().double().numpy()
    query = index.embedding(torch.tensor([3, 8, 9]))
    unit = query.double().numpy() / np.linalg.norm(query.double().numpy(), axis=1, keepdims=True)
    cosine = rows @ unit.mean(0) / np.linalg.norm(rows, axis=1) / np.linalg.norm(unit.mean(0))
    hits = find(index, mean_direction(query), 5)
    assert [hit.row for hit in hits] == np.argsort(-cosine)[:5].tolist()
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert [hit.cosine for hit in hits] == pytest.approx(np.sort(-cosine)[:5] * -1, abs=1e-6)
    assert all((hit.path, hit.label) == (index.images.paths[hit.row], index.images.labels[hit.row]) for hit in hits)


def test_a_row_is_not_its_own_neighbour(index: ImageIndex) -> None:
    direction = mean_direction(index.embedding(torch.tensor([4])))
    everything = find(index, direction, 99)
    others = find(index, direction, 99, leave_out=4)
    assert [hit.row for hit in everything if hit.row != 4] == [hit.row for hit in others]
    assert everything[0].row == 4 and len(others) == 11


def test_find_row(index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_row(index, "odd/03.png") == 7
    assert find_row(index, "7") == 7
    assert find_row(index, f"{index.images.root}/odd/03.png") == 7
    monkeypatch.chdir(Path(index.images.root, "odd"))
    assert find_row(index, "03.png") == 7
    for name in ("12", "-1", "nothing.png", "", "1.5"):
        with pytest.raises(UserError, match="rows 0 to 11"):
            find_row(index, name)


def test_bad_queries(index: ImageIndex) -> None:
    with pytest.raises(UserError, match="all zeros"):
        mean_direction(torch.zeros(1, 4))
    with pytest.raises(UserError, match="all zeros"):
        mean_direction(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))
    with pytest.raises(UserError, match="NaN"):
        mean_direction(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(UserError, match="`k` is 0; give 1 or more"):
        find(index, mean_direction(index.embedding()), 0)
