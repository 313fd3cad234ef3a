"""Files of embeddings: resumed, shared by processes, and whole or absent."""

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable, open_images
from transferkit.embed import describe, embed, shards
from transferkit.embed.shards import Written, write_embeddings
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.extractor.forward import Forward
from transferkit.runtime.ranks import Ranks, Value
from transferkit.search.build import build_index


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BATCHES", 2)


def write(extractor: Extractor, table: ImageTable, out: Path, **options: Any) -> Written:
    """Four images a batch, so eight a shard."""
    return write_embeddings(extractor, table, out, describe(extractor, table), batch_size=4, **options)


@dataclass(frozen=True)
class InTurns(Ranks):
    """One of several processes that this one plays one after the other; none is waited for.

    Attributes:
        after: runs once a process has done its share.
        received: what others hear of the first: nothing was written before, and then what it has joined.
    """

    after: Callable[[], None] = lambda: None
    received: list[Any] = field(default_factory=lambda: [None, (0, {})])

    def run_on_all(self, work: Callable[[], Value]) -> list[Value]:
        done = [work()]
        self.after()
        return done

    def from_first(self, make: Callable[[], Value]) -> Value:
        made: Value = make() if self.rank == 0 else self.received.pop(0)
        return made


@contextmanager
def killed_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> Iterator[list[int]]:
    """Interrupt after some forward passes; gives the size of each batch that was embedded."""
    done: list[int] = []
    run = Forward.__call__

    def counted(self: Forward, pixels: Tensor, stopped: Any = None) -> Tensor:
        if len(done) == batches:
            raise KeyboardInterrupt
        done.append(len(pixels))
        return run(self, pixels, stopped)

    with monkeypatch.context() as patch:
        patch.setattr(Forward, "__call__", counted)
        yield done


@pytest.mark.parametrize("batches", [1, 5, 9])
def test_two_commands_that_write_the_same(
    extractor: Extractor, table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    """The other one writes all of it while this one is at some batch, and removes the shards of both."""
    out, run = tmp_path / "e.parquet", Forward.__call__
    done: list[int] = []

    def overtaken(self: Forward, pixels: Tensor, stopped: Any = None) -> Tensor:
        done.append(len(pixels))
        if len(done) == batches:
            monkeypatch.setattr(Forward, "__call__", run)
            write(extractor, table, out)
        return run(self, pixels, stopped)

    monkeypatch.setattr(Forward, "__call__", overtaken)
    found = write(extractor, table, out, workers=1)
    assert (found.images, found.broken, len(done)) == (41, {}, batches)
    assert torch.equal(Embeddings.load(out).embedding, embed(table, extractor, batch_size=4).embedding)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "e."))] == ["e.parquet"]


def test_what_is_written_is_what_is_embedded(extractor: Extractor, table: ImageTable, tmp_path: Path) -> None:
    assert write(extractor, table, tmp_path / "e.parquet") == Written(41, {}, 41)
    loaded, oracle = Embeddings.load(tmp_path / "e.parquet"), embed(table, extractor, batch_size=4)
    assert torch.equal(loaded.embedding, oracle.embedding)
    assert (tuple(loaded.paths), tuple(loaded.labels), tuple(loaded.splits)) == (
        table.paths, table.labels, table.splits,
    )  # fmt: skip
    assert loaded.metadata == oracle.metadata
    assert {"pooling": "cls", "features": "pooled", "shape": [32], "batch_size": 4}.items() <= loaded.metadata.items()
    assert [path.name for path in tmp_path.iterdir() if path.name != "images"] == ["e.parquet"], "parts are left"


@pytest.mark.parametrize("batches", [0, 1, 3, 8])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    extractor: Extractor, table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    write(extractor, table, tmp_path / "whole.parquet")
    out = tmp_path / "e.parquet"
    with killed_after(monkeypatch, batches), pytest.raises(KeyboardInterrupt):
        write(extractor, table, out, workers=1)
    assert not out.exists()
    with killed_after(monkeypatch, -1) as done:
        write(extractor, table, out, workers=1)
    assert len(done) <= 11 - batches // 2 * 2 + 2, "done again although its shard was there"
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_what_is_there_is_not_done_again(
    extractor: Extractor, table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "e.parquet"
    write(extractor, table, out)
    with killed_after(monkeypatch, 0):
        assert write(extractor, table, out) == Written(41, {}, 0)
    relabelled = replace(table, labels=("kiwis", *table.labels[1:]))
    write(extractor, relabelled, out)
    assert Embeddings.load(out).labels[0] == "kiwis", "the labels were stale"
    Path(table.root, table.paths[0]).write_bytes(Path(table.root, table.paths[1]).read_bytes())
    write(extractor, table, out)
    first, second = Embeddings.load(out).embedding[:2]
    torch.testing.assert_close(first, second)


def test_a_changed_extractor_takes_up_no_stale_shard(
    extractor: Extractor, table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "e.parquet"
    with killed_after(monkeypatch, 6), pytest.raises(KeyboardInterrupt):
        write(extractor, table, out)
    with torch.no_grad():
        next(extractor.backbone.parameters()).add_(1)
    write(extractor, table, out)
    assert torch.equal(Embeddings.load(out).embedding, embed(table, extractor, batch_size=4).embedding)


@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_processes_that_share_the_work_write_the_same_bytes(
    extractor: Extractor, table: ImageTable, tmp_path: Path, world_size: int
) -> None:
    write(extractor, table, tmp_path / "one.parquet")
    for rank in reversed(range(world_size)):  # rank 0 joins what the others have left
        write(extractor, table, tmp_path / "many.parquet", ranks=InTurns(rank, world_size))
    assert (tmp_path / "many.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


@pytest.mark.parametrize("fault", ["missing", "twice", "foreign"])
def test_every_row_is_there_exactly_once_or_nothing_is_written(
    extractor: Extractor, table: ImageTable, tmp_path: Path, fault: str
) -> None:
    def meddle() -> None:
        """What goes wrong between filling the shards and joining them."""
        for parts in tmp_path.glob(".e.parquet.*.parts"):
            first, second = sorted(parts.iterdir())[:2]
            if fault == "missing":
                second.write_bytes(first.read_bytes())
            elif fault == "twice":
                whole = Embeddings.load(second)
                whole.select([0, *range(len(whole))]).save(second)
            else:
                renamed = Embeddings.load(second)
                replace(renamed, paths=[f"z{path}" for path in renamed.paths]).save(second)

    with pytest.raises(UserError, match=r"does not hold every row exactly once; delete it and start again"):
        write(extractor, table, tmp_path / "e.parquet", ranks=InTurns(after=meddle))
    assert not (tmp_path / "e.parquet").exists()


def test_a_directory_of_shards_is_one_table(extractor: Extractor, table: ImageTable, tmp_path: Path) -> None:
    Path(table.root, table.paths[5]).write_bytes(b"")
    out = tmp_path / "shards"
    done = write(extractor, table, out, as_folder=True, on_error="skip")
    assert done == Written(40, {table.paths[5]: "empty file"}, 41)
    assert [path.name for path in sorted(out.iterdir())] == [f"{number:06d}.parquet" for number in range(6)]
    loaded, oracle = Embeddings.load(out), embed(table, extractor, batch_size=4, on_error="skip")
    assert torch.equal(loaded.embedding, oracle.embedding) and loaded.metadata == oracle.metadata
    for frame in (pd.read_parquet(out), ds.dataset(out).to_table().to_pandas()):
        assert frame["path"].tolist() == list(loaded.paths)
        np.testing.assert_array_equal(np.stack(frame["embedding"]), loaded.embedding.numpy())
    assert write(extractor, table, out, as_folder=True, on_error="skip").embedded == 0
    next(iter(sorted(out.iterdir()))).unlink()
    assert len(Embeddings.load(out)) == 33
    write(extractor, table, out, as_folder=True, on_error="skip")
    assert len(Embeddings.load(out)) == 40


def test_shards_of_two_tables_are_not_one(extractor: Extractor, table: ImageTable, tmp_path: Path) -> None:
    write(extractor, table, tmp_path / "d" / "0.parquet")
    other = extractor.forward("bf16")
    write_embeddings(extractor, table, tmp_path / "d/1.parquet", describe(extractor, table, forward=other), other)
    with pytest.raises(UserError, match=r"1.parquet differs from 0.parquet in batch_size: they are shards of two"):
        Embeddings.load(tmp_path / "d")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"is a folder without \.parquet files"):
        Embeddings.load(tmp_path / "empty")


def test_maps_and_tokens_keep_their_shape(extractor: Extractor, table: ImageTable, tmp_path: Path) -> None:
    tokens = extractor.forward(features="tokens")
    write_embeddings(extractor, table, tmp_path / "t.parquet", describe(extractor, table, forward=tokens), tokens)
    loaded = Embeddings.load(tmp_path / "t.parquet")
    assert loaded.metadata["shape"] == [16, 32] and loaded.embedding.shape == (41, 512)
    pixels = extractor.preprocessing.normalize(extractor.preprocessing.resize_crop(table.read(7)))[None]
    with torch.inference_mode():
        oracle = extractor.backbone.model(pixel_values=pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(loaded.embedding[7].reshape(16, 32), oracle[0], atol=1e-5, rtol=0)


def test_wide_features_make_small_shards() -> None:
    table = ImageTable("/", tuple(f"{row:04d}" for row in range(1000)), (None,) * 1000, (None,) * 1000)
    narrow = shards.plan(Path("e"), table, {"embed_dim": 512}, 32)
    wide = shards.plan(Path("e"), table, {"embed_dim": 2 * 197 * 768}, 32)
    assert [len(narrow.batches), len(wide.batches)] == [16, 32]
    assert [rows for shard in wide.batches for rows in shard] == [rows for shard in narrow.batches for rows in shard]


def test_unreadable_images_are_all_named_and_what_is_done_is_kept(
    extractor: Extractor, table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in (3, 30):
        Path(table.root, table.paths[row]).write_bytes(b"no picture")
    named = rf"2 broken images: '{table.paths[3]}': .*'{table.paths[30]}': .*or leave them out with `on_error=\"skip\"`"
    with pytest.raises(UserError, match=named):
        write(extractor, table, tmp_path / "e.parquet", on_error="fail")
    assert not (tmp_path / "e.parquet").exists()
    with killed_after(monkeypatch, 0):
        assert write(extractor, table, tmp_path / "e.parquet", on_error="skip").images == 39
    with killed_after(monkeypatch, 0), pytest.raises(UserError, match=named):
        write(extractor, table, tmp_path / "e.parquet", on_error="fail")


def test_nothing_readable_is_no_table(extractor: Extractor, table: ImageTable, tmp_path: Path) -> None:
    for path in table.paths:
        Path(table.root, path).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"none of the 41 images can be read; scan .* to see why"):
        write(extractor, table, tmp_path / "e.parquet", on_error="skip")
    assert write(extractor, table, tmp_path / "e.parquet").images == 0
    assert len(Embeddings.load(tmp_path / "e.parquet")) == 0


def test_a_full_disk_leaves_no_half_file_and_what_is_done(
    extractor: Extractor, table: ImageTable, tmp_path: Path
) -> None:
    out = tmp_path / "e.parquet"
    write(extractor, table, tmp_path / "whole.parquet")
    extractor.forward()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))  # shards fit, the whole does not
    try:
        with pytest.raises(UserError, match=r"cannot write .*e\.parquet: .*choose another path or free disk space"):
            write(extractor, table, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not out.exists() and not list(tmp_path.glob("*.tmp"))
    write(extractor, table, out)
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_places_that_hold_something_else(extractor: Extractor, table: ImageTable, tmp_path: Path) -> None:
    photo = Path(table.root, table.paths[0])
    for out, folder, message in (
        (photo, False, r"holds something else than embeddings \(not a table of embeddings\); choose another place"),
        (Path(table.root), True, r"images holds something else than embeddings"),
        (Path(table.root), False, r"images is a folder; end `out` in a slash"),
        (photo, True, r"png is a file; give another name for a directory"),
        (photo / "e.parquet", False, r"cannot write .*e\.parquet: Not a directory"),
        (Path("/proc/nowhere/e.parquet"), False, r"cannot write /proc/nowhere/e\.parquet"),
    ):
        before = photo.read_bytes()
        with pytest.raises(UserError, match=message):
            write(extractor, table, out, as_folder=folder)
        assert photo.read_bytes() == before


def test_a_search_index_is_not_embeddings(extractor: Extractor, table: ImageTable, tmp_path: Path) -> None:
    index = build_index(open_images(table.root), tmp_path / "index", extractor, {"source": "a", "weights": "b"})[0]
    before = {path.name: path.read_bytes() for path in index.folder.iterdir()}
    for out, folder, what in (
        (index.folder, True, r"'embeddings\.parquet'"),
        (index.folder / "embeddings.parquet", False, "a column 'mtime_ns'"),
    ):
        with pytest.raises(UserError, match=rf"holds something else than embeddings \({what}\); choose another place"):
            write(extractor, table, out, as_folder=folder)
    assert {path.name: path.read_bytes() for path in index.folder.iterdir()} == before


def test_only_shards_are_replaced(extractor: Extractor, table: ImageTable, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    out.mkdir()
    write(extractor, table, out, as_folder=True)
    (out / ".000000.parquet.0123456789abcdef.tmp").touch()
    write_embeddings(extractor, table, out, describe(extractor, table), batch_size=8, as_folder=True)
    assert len(list(out.iterdir())) == 3
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"something else than embeddings \('notes\.txt'\)"):
        write(extractor, table, out, as_folder=True)
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_link_to_a_larger_disk_stays_one(
    extractor: Extractor, table: ImageTable, tmp_path: Path, as_folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards, too, lie beside what it leads to: from one disk to another nothing can be renamed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "link").symlink_to(disk / "real")
    if as_folder:
        (disk / "real").mkdir()
    make, made = shards.make_folder, []

    def noted(planned: shards.Shards) -> None:
        made.append(planned.folder)
        make(planned)

    monkeypatch.setattr(shards, "make_folder", noted)
    write(extractor, table, tmp_path / "link", as_folder=as_folder)
    assert [folder.parent for folder in made] == [disk]
    assert (tmp_path / "link").readlink() == disk / "real" and [path.name for path in disk.iterdir()] == ["real"]
    assert len(Embeddings.load(tmp_path / "link")) == len(table)


def test_the_metadata_stand_in_the_file(extractor: Extractor, table: ImageTable, tmp_path: Path) -> None:
    write(extractor, table, tmp_path / "e.parquet")
    schema = pq.read_schema(tmp_path / "e.parquet")
    assert json.loads(schema.metadata[b"transferkit"])["embed_dim"] == 32
    assert schema.field("embedding").type.list_size == 32


def test_fewer_images_than_processes(extractor: Extractor, table: ImageTable, tmp_path: Path) -> None:
    """Those without a share have nothing to do, and the file is the one that a single process writes."""
    one = table.select([0])
    shared = tmp_path / "shared.parquet"
    for rank in (2, 1, 0):
        done = write(extractor, one, shared, ranks=InTurns(rank, 3))
        assert done.images == (rank == 0)
    write(extractor, one, tmp_path / "alone.parquet")
    assert shared.read_bytes() == (tmp_path / "alone.parquet").read_bytes()
