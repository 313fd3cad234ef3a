"""Approximate indexes against exact search."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.runtime.files import file_sha256
from transferkit.search import faiss_index
from transferkit.similarity import top_k, unit_rows

pytest.importorskip("faiss")


def clusters(rows: int, width: int, seed: int = 0) -> Tensor:
    """Unit rows around as many centres as the root of their number."""
    generator = torch.Generator().manual_seed(seed)
    count = round(rows**0.5)
    centres = torch.randn(count, width, generator=generator)
    which = torch.randint(count, (rows,), generator=generator)
    return unit_rows(centres[which] + 0.7 * torch.randn(rows, width, generator=generator))


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF32,Flat", "IVF32,PQ4x4", "PCA16,SQ8"])
def test_measured_recall_is_the_recall(factory: str) -> None:
    unit = clusters(2000, 32)
    index = faiss_index.build(unit, factory)
    everything = torch.arange(len(unit))
    tuned = faiss_index.tune(index, unit, everything)
    assert tuned.sample == 500
    assert tuned.recall == 1 if factory == "Flat" else tuned.recall >= faiss_index.TARGET

    queries = torch.arange(0, 2000, 10)  # other ones than the sample
    found = 0
    for row in queries:
        rows = faiss_index.nearest(index, unit[row], everything, faiss_index.candidates(11))
        cosine, mine = faiss_index.rerank(unit[row], rows, unit[rows], 11)
        assert torch.allclose(cosine, unit[mine] @ unit[row], atol=1e-6)
        exact = (unit @ unit[row]).argsort(descending=True)[:11]
        found += len(set(mine.tolist()) & set(exact.tolist()) - {int(row)})
    assert found / (10 * len(queries)) == pytest.approx(tuned.recall, abs=0.03)


def test_the_search_is_widened_until_it_finds_enough() -> None:
    unit = unit_rows(torch.randn(1000, 32))  # no clusters: the nearest rows are spread over many lists
    index = faiss_index.build(unit, "IVF64,Flat")
    tuned = faiss_index.tune(index, unit, torch.arange(1000))
    assert tuned.settings["nprobe"] > 8 and tuned.recall >= faiss_index.TARGET
    assert index.nprobe == tuned.settings["nprobe"]


def test_removed_rows_are_passed_over() -> None:
    unit = clusters(500, 16)
    index = faiss_index.build(unit, "HNSW32")
    query = unit[0]
    gone = top_k(query[None], unit, 60)[1][0]  # all that is near
    row_of_place = torch.arange(500)
    row_of_place[gone] = -1
    rows = faiss_index.nearest(index, query, row_of_place, 20)
    assert len(rows) == 20 and not set(rows.tolist()) & set(gone.tolist())


def test_choice_by_size() -> None:
    assert faiss_index.choose(1_000, 512) == "exact"
    assert faiss_index.choose(200_000, 512).startswith("HNSW")
    assert faiss_index.choose(1_000_000, 512) == "IVF2048,PQ64"
    assert faiss_index.choose(1_000_000, 1000) == "IVF2048,PQ125"
    assert faiss_index.choose(1_000_000, 7) == "IVF2048,PQ1"


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("nonsense", "for embeddings of width 16; give `index` auto, exact, Flat or HNSW32"),
        ("", "for embeddings of width 16; give"),
        ("PQ5x4", r"for embeddings of width 16 \(the number after PQ must divide it\); give"),
        ("IVF4096,Flat", 'needs at least 4,096 training images, got 100; give `index="auto"` or `index="exact"`'),
        ("IVF1k,Flat", "needs at least 1,024 training images, got 100"),
        ("IVF64,PQ5", "needs at least 256 training images, got 100"),
        ("PQ64x", "needs at least 256 training images, got 100"),
        ("IVF16,PQ4", "needs at least 256 training images, got 100"),
        ("IDMap,Flat", "of 100 x 16 numbers"),
    ],
)
def test_refused_by_faiss(factory: str, says: str) -> None:
    with pytest.raises(UserError, match=f"^(faiss cannot make an )?index '{factory}' {says}"):
        faiss_index.build(clusters(100, 16), factory)


@pytest.mark.parametrize(
    "factory",
    [
        "IVF64,Flat",
        "PQ4x6",
        "OPQ4_8,IVF4,PQ4x4",
        "RQ2x5",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("IVF1k,Flat", "PQ4")),
    ],
)
def test_the_least_number_of_rows_is_faiss_own(factory: str) -> None:
    least = faiss_index.least_rows(factory)
    faiss_index.build(clusters(least, 16), factory)
    with pytest.raises(RuntimeError, match=rf"number of clusters \({least}\)"):
        faiss_index.make(factory, least, 16).train(clusters(least - 1, 16).numpy())


def test_only_the_file_that_was_written_is_read(tmp_path: Path) -> None:
    unit = clusters(100, 16)
    file = tmp_path / "index.faiss"
    digest = faiss_index.write(faiss_index.build(unit, "Flat"), file)
    assert faiss_index.read(file, digest).ntotal == 100
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match=r"does not have the SHA-256 in index\.json"):
        faiss_index.read(file, digest)
    file.write_bytes(b"IxFI" + b"\xff" * 40)
    with pytest.raises(UserError, match="this faiss cannot read"):
        faiss_index.read(file, file_sha256(file))
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        faiss_index.read(file, digest)


def test_without_faiss_the_remedy_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert faiss_index.choose(1_000_000, 512) == "exact"
    with pytest.raises(UserError) as error:
        faiss_index.build(clusters(100, 16), "Flat")
    assert str(error.value) == (
        "an approximate index needs faiss: pip install 'transferkit[faiss]'; exact search does not"
    )
