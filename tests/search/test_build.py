"""An index follows its folder: what is new is embedded, nothing else."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.extractor.examples import transformer
from tests.search.conftest import SOURCE
from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import open_images
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.search.build import Change, absolute_source, build_index
from transferkit.search.index import ImageIndex, open_index
from transferkit.search.query import find, mean_direction


def test_what_is_in_it(build: Callable[..., tuple[ImageIndex, Change]], pictures: Path, extractor: Extractor) -> None:
    index, change = build()
    assert change == Change(added=12, removed=0, refreshed=0, kept=0, broken={}, zero_rows=0)
    table = Embeddings.load(index.folder / "embeddings.parquet")
    assert list(table.paths) == [f"even/{n:02d}.png" for n in range(0, 12, 2)] + [
        f"odd/{n:02d}.png" for n in range(1, 12, 2)
    ]
    assert list(table.labels) == ["even"] * 6 + ["odd"] * 6
    expected = extractor.embed([pictures / path for path in table.paths])
    torch.testing.assert_close(table.embedding, expected, rtol=0, atol=1e-5)
    some = torch.tensor([7, 0, 7])
    assert torch.equal(index.embedding(some), table.embedding[some])
    record = json.loads((index.folder / "index.json").read_text())
    assert record["extractor"]["weights_sha256"] == extractor.weights_sha256()
    assert (record["images"], record["index"], record["rows"]) == (str(pictures), "exact", 12)


@pytest.mark.parametrize("kind", ["exact", "Flat", "HNSW8"])
def test_add_remove_refresh(
    build: Callable[..., tuple[ImageIndex, Change]],
    pictures: Path,
    draw: Callable[..., Path],
    passes: list[int],
    extractor: Extractor,
    kind: str,
) -> None:
    if kind != "exact":
        pytest.importorskip("faiss")
    build(index=kind)
    passes.clear()
    assert build()[1] == Change(0, 0, 0, 12, {}, 0)
    assert passes == []  # nothing has changed

    draw(pictures / "even" / "12.png", 12)
    draw(pictures / "odd" / "03.png", 333)
    (pictures / "even" / "00.png").unlink()
    index, change = build()
    assert change == Change(added=1, removed=1, refreshed=1, kept=10, broken={}, zero_rows=0)
    assert passes == [2]  # the new and the changed one
    assert index.kind == kind

    fresh = extractor.embed([pictures / path for path in index.images.paths])
    torch.testing.assert_close(index.embedding(), fresh, rtol=0, atol=1e-5)
    for row, path in enumerate(index.images.paths):  # each image finds itself, in the old and the new part
        assert find(index, mean_direction(fresh[row : row + 1]), 1)[0].path == path
    found = {hit.path for hit in find(index, mean_direction(fresh), 100)}
    assert found == set(index.images.paths)  # and what is gone is found no more


def test_a_new_label_needs_no_forward_pass(tmp_path: Path, draw: Callable[..., Path], passes: list[int]) -> None:
    draw(tmp_path / "a.png", 1)
    manifest, extractor = tmp_path / "m.csv", transformer("vit", "cls")
    for label in ("cat", "dog"):
        manifest.write_text(f"path,label\na.png,{label}\n")
        index, _ = build_index(open_images(manifest), tmp_path / "index", extractor, SOURCE)
        assert index.images.labels == (label,)
    assert passes == [1]


def test_another_kind_from_the_same_embeddings(
    build: Callable[..., tuple[ImageIndex, Change]], passes: list[int]
) -> None:
    pytest.importorskip("faiss")
    build()
    passes.clear()
    index, change = build(index="Flat")
    assert (index.kind, change.kept, passes) == ("Flat", 12, [])
    assert index.record["faiss"]["recall@10"] == 1
    assert build(index="exact")[0].record["faiss"] is None
    assert not (index.folder / "index.faiss").exists()


def test_unreadable_images_are_left_out_and_named(
    build: Callable[..., tuple[ImageIndex, Change]], pictures: Path, draw: Callable[..., Path]
) -> None:
    (pictures / "odd" / "bad.png").write_bytes(b"no picture")
    (pictures / "odd" / "gone.png").symlink_to("nowhere")
    for kept, added in ((0, 12), (12, 0)):
        change = build()[1]
        assert (change.kept, change.added) == (kept, added)
        assert set(change.broken) == {"odd/bad.png", "odd/gone.png"}
    draw(pictures / "odd" / "bad.png", 5)
    assert build()[1].added == 1


def test_refused(
    build: Callable[..., tuple[ImageIndex, Change]], pictures: Path, tmp_path: Path, draw: Callable[..., Path]
) -> None:
    index, _ = build()
    before = {path.name: path.read_bytes() for path in index.folder.iterdir()}
    other = transformer("vit", "mean")
    with pytest.raises(UserError, match=r"built with somewhere \(cls\); .* \(mean\) has other pooling"):
        build_index(open_images(pictures), index.folder, other, SOURCE)
    elsewhere = draw(tmp_path / "elsewhere" / "a.png", 1).parent
    with pytest.raises(UserError, match=r"indexes .*pictures, not .*elsewhere"):
        build_index(open_images(elsewhere), index.folder, transformer("vit", "cls"), SOURCE)
    with pytest.raises(UserError, match=r"holds something else than an index \(no index.json\)"):
        build_index(open_images(pictures), pictures, other, SOURCE, overwrite=True)
    with pytest.raises(UserError, match=r"cannot write into .*index\.json: .*index\.json is not a folder"):
        build_index(open_images(pictures), index.folder / "index.json" / "new", other, SOURCE)
    assert {path.name: path.read_bytes() for path in index.folder.iterdir()} == before

    assert build_index(open_images(pictures), index.folder, other, SOURCE, overwrite=True)[1].added == 12
    index = open_index(index.folder)
    index.check_extractor(other)
    torch.nn.init.normal_(other.backbone.model.layernorm.bias)
    with pytest.raises(UserError, match="has other weights"):
        index.check_extractor(other)


@pytest.mark.parametrize("kind", ["nonsense", "IVF1024,PQ64"])
def test_a_kind_that_cannot_be_is_refused_before_any_work(
    build: Callable[..., tuple[ImageIndex, Change]], passes: list[int], kind: str
) -> None:
    pytest.importorskip("faiss")
    with pytest.raises(UserError, match=f"(faiss cannot make an )?index {kind!r}"):
        build(index=kind)
    assert not passes


def test_embeddings_without_direction_are_counted(pictures: Path, tmp_path: Path) -> None:
    extractor = transformer("vit", "cls")
    for parameter in extractor.backbone.model.layernorm.parameters():  # type: ignore[union-attr]
        torch.nn.init.zeros_(parameter)
    index, change = build_index(open_images(pictures), tmp_path / "index", extractor, SOURCE)
    assert change.zero_rows == 12
    hits = find(index, torch.eye(extractor.embed_dim)[0], 3)
    assert [(hit.path, hit.cosine) for hit in hits] == [(f"even/{n:02d}.png", 0) for n in (0, 2, 4)]


def test_a_source_is_found_again_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best.ckpt").touch()
    monkeypatch.chdir(tmp_path)
    assert absolute_source("best.ckpt", "DEFAULT") == {"source": f"{tmp_path}{os.sep}best.ckpt", "weights": "DEFAULT"}
    assert absolute_source("resnet18", "DEFAULT")["source"] == "resnet18"
    with pytest.raises(UserError, match="random weights"):
        absolute_source("resnet18", "none")
