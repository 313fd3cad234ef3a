"""Near-duplicates and leaks against all pairs."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import open_images
from transferkit.errors import UserError
from transferkit.search import duplicates
from transferkit.search.duplicates import find_duplicates, open_embeddings


def table(embedding: torch.Tensor, splits: list[str | None]) -> Embeddings:
    return Embeddings(embedding, [f"{n:03d}.png" for n in range(len(splits))], [None] * len(splits), splits, {})


def test_leaks_are_the_pairs_in_different_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(20, 8)[torch.randint(20, (200,))] + 0.1 * torch.randn(200, 8)
    rows[13] = 0
    names = ["train", "val", "test", None]
    splits = [names[n] for n in torch.randint(4, (200,)).tolist()]
    found = find_duplicates(table(rows, splits), 0.97)
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    pairs = [(a, b) for a, b in itertools.combinations(range(200), 2) if float(unit[a] @ unit[b]) >= 0.97]
    across = {(a, b) for a, b in pairs if splits[a] and splits[b] and splits[a] != splits[b]}
    assert across and {(leak.first, leak.second) for leak in found.leaks} == across
    assert found.leak_count == len(across) and found.zero_rows == 1
    assert {(pair.first, pair.second) for pair in found.pairs} == set(pairs) and found.pair_count == len(pairs)
    assert {row for group in found.groups for row in group} <= {row for pair in pairs for row in pair}
    assert {pair for group in found.groups for pair in itertools.combinations(group, 2)} <= set(pairs)
    cosines = [leak.cosine for leak in found.leaks]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] == pytest.approx(max(float(unit[a] @ unit[b]) for a, b in across), abs=1e-6)

    monkeypatch.setattr(duplicates, "MOST_PAIRS", 7)
    few = find_duplicates(table(rows, splits), 0.97)
    assert few.leaks == found.leaks[:7] and few.leak_count == found.leak_count


def test_nothing_to_find() -> None:
    found = find_duplicates(table(torch.eye(4), ["train", "val", "test", None]))
    assert (found.groups, found.leaks, found.leak_count) == ([], [], 0)
    with pytest.raises(UserError, match="empty"):
        find_duplicates(table(torch.empty(0, 4), []))
    with pytest.raises(UserError, match="`threshold` is "):
        find_duplicates(table(torch.eye(4), [None] * 4), 1.5)


def test_what_is_an_embeddings_table(tmp_path: Path, pictures: Path) -> None:
    table(torch.eye(3), [None] * 3).save(tmp_path / "table.parquet")
    opened = open_embeddings(tmp_path / "table.parquet")
    assert opened is not None and len(opened) == 3
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"path": ["even/00.png"]}), pictures / "manifest.parquet")
    assert open_embeddings(pictures / "manifest.parquet") is None and open_embeddings(pictures) is None
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        open_embeddings(tmp_path / "broken.parquet")
    table(torch.tensor([[1.0], [torch.nan]]), [None] * 2).save(tmp_path / "nan.parquet")
    with pytest.raises(UserError, match=r"nan\.parquet: row 1, '001\.png', holds NaN or infinity"):
        open_embeddings(tmp_path / "nan.parquet")


def test_the_same_bytes(pictures: Path) -> None:
    (pictures / "even" / "copy.png").write_bytes((pictures / "odd" / "01.png").read_bytes())
    found = open_images(pictures).content_hashes(["even/copy.png", "odd/01.png", "odd/03.png"])
    assert found["even/copy.png"] == found["odd/01.png"] != found["odd/03.png"]


def test_pairs_in_two_groups_may_be_parted_by_a_draw() -> None:
    """Counted where no split is given; those in one group stay together, and an image by itself is a group."""
    base = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    grouped = replace(
        table(torch.cat([base, base]), [None] * 12),
        groups=["p", "p", "q", None, "r", "r", "p", "q", "q", None, "r", "s"],
    )
    found = find_duplicates(grouped, 0.99)
    assert {(pair.first, pair.second) for pair in found.loose} == {(1, 7), (3, 9), (5, 11)} and found.loose_count == 3
    assert found.leaks == [] and find_duplicates(replace(grouped, groups=None), 0.99).loose == []
    given = find_duplicates(replace(grouped, splits=["train"] * 6 + ["val"] * 6), 0.99)
    assert given.loose == [] and given.leak_count == 6
