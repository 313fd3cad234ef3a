"""Files with false headers, and small files that unpack into gigabytes: one line, quickly, with little memory."""

import json
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save

from tests.hostile.entrances import SMALL
from tests.running import transferkit
from transferkit.backbones.weights import read_state_dict
from transferkit.data.embeddings import KEY, Embeddings
from transferkit.errors import UserError
from transferkit.runtime import parquet


def safetensors(header: object, data: bytes = bytes(64), length: int | None = None) -> bytes:
    """Build a file by hand: length of the header, the header as JSON, data (safetensors' README, format)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, stop: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [4] if shape is None else shape, "data_offsets": [start, stop]}


LIES = {
    "nothing": b"",
    "a length alone": struct.pack("<Q", 2**63),
    "a header longer than the file": safetensors({"a": tensor(0, 16)}, length=2**40),
    "a header of 4 GB, said by no such file": safetensors({}, length=2**32),
    "no JSON": safetensors(b"\xff\xfe{]"),
    "a list": safetensors([1, 2]),
    "nested a thousand times": safetensors(b"[" * 100_000),
    "beyond the end": safetensors({"a": tensor(0, 2**50, [2**48])}),
    "before the start": safetensors(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[-16,0]}}'),
    "stop before start": safetensors({"a": tensor(32, 16)}),
    "overlapping": safetensors({"a": tensor(0, 16), "b": tensor(8, 24)}, bytes(24)),
    "the same bytes twice": safetensors({"a": tensor(0, 16), "b": tensor(0, 16)}, bytes(16)),
    "a gap": safetensors({"a": tensor(0, 16), "b": tensor(32, 48)}, bytes(48)),
    "bytes left over": safetensors({"a": tensor(0, 16)}),
    "a shape larger than its bytes": safetensors({"a": tensor(0, 16, [2**40])}, bytes(16)),
    "a shape that overflows": safetensors({"a": tensor(0, 16, [2**62, 2**62])}, bytes(16)),
    "a negative shape": safetensors({"a": tensor(0, 16, [-4])}, bytes(16)),
    "an unknown dtype": safetensors({"a": tensor(0, 16, dtype="F99")}, bytes(16)),
    "another dtype than its bytes": safetensors({"a": tensor(0, 16, dtype="F64")}, bytes(16)),
    "a name twice": safetensors(b'{"a":' + json.dumps(tensor(0, 16)).encode() + b',"a":3}', bytes(16)),
    "a good one cut short": save({"a": torch.zeros(100)})[:-1],
}


@pytest.mark.parametrize("lie", LIES)
def test_safetensors_headers_that_lie(here: Path, lie: str) -> None:
    (here / "w.safetensors").write_bytes(LIES[lie])
    started = time.thread_time()
    with pytest.raises(UserError, match=r"w\.safetensors is not a weights file"):
        read_state_dict(here / "w.safetensors")
    assert time.thread_time() - started < 1


def test_mutated_safetensors_are_read_or_refused(here: Path) -> None:
    whole, draw, refused = save({"a": torch.arange(12.0), "b": torch.ones(2, 3)}), random.Random(0), 0
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(150)] = draw.randrange(256)
        (here / "w.safetensors").write_bytes(data)
        try:
            state = read_state_dict(here / "w.safetensors")
        except UserError:
            refused += 1
        else:
            assert all(tensor.numel() <= 12 for tensor in state.values())
    assert refused > 100


def test_names_of_tensors_do_not_steer_the_terminal(here: Path, photos: Path) -> None:
    header = {"\x1b[31mred\n\ttwo": tensor(0, 16)}
    (here / "w.safetensors").write_bytes(safetensors(header, bytes(16)))
    done = transferkit("fit", "--data.root", str(photos), *SMALL, "--model.weights", str(here / "w.safetensors"))
    assert done.status == 2
    assert "\x1b" not in done.err and "\t" not in done.err
    assert done.err.splitlines()[-1].startswith("transferkit: error: ")


def embeddings_file(path: Path, embedding: pa.Array, texts: pa.Array | None = None, **options: object) -> Path:
    rows = len(embedding)
    plain = pa.array(["a"] * rows, pa.string())
    columns = {"path": plain if texts is None else texts, "label": plain, "split": plain, "embedding": embedding}
    table = pa.table(columns).replace_schema_metadata({KEY: b"{}"})
    pq.write_table(table, path, **options)
    return path


def zeros(path: Path) -> Path:
    """Write 6.5 million equal floats, which take a few kilobytes."""
    width = 2**16
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(torch.zeros(100 * width).numpy()), width)
    return embeddings_file(path, vectors, compression="zstd")


def long_text(path: Path) -> Path:
    """Write a text of a megabyte in each of twenty rows, which zstd compresses well."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * 40, pa.float32()), 2)
    texts = pa.array(["a" * 2**20] * 20, pa.string())
    return embeddings_file(path, vectors, texts, compression="zstd", use_dictionary=False)


@pytest.mark.parametrize("make", [zeros, long_text])
def test_a_small_table_that_unpacks_far_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]
) -> None:
    monkeypatch.setattr(parquet, "MAX_BYTES", 2**24)  # gigabytes take half a minute to write
    path = make(here / "bomb.parquet")
    assert path.stat().st_size < 2**17
    with pytest.raises(
        UserError, match=r"bomb\.parquet is not a readable Parquet file: its \d+ bytes unpack into \d{8}"
    ):
        Embeddings.load(path)
    monkeypatch.setattr(parquet, "MAX_BYTES", 2**30)
    assert len(Embeddings.load(path)) in (20, 100)


def test_a_text_that_a_dictionary_repeats_is_counted_for_each_row(here: Path) -> None:
    rows = 20_000
    names = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * 2**18]))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * rows, pa.float32()), 1)
    with pytest.raises(UserError, match=r"its \d+ bytes unpack into 52429\d{5}"):
        Embeddings.load(embeddings_file(here / "e.parquet", vectors, names))


@pytest.mark.parametrize("kind", ["numbers", "lists", "nulls"])
def test_paths_that_are_none(here: Path, kind: str) -> None:
    column = {"numbers": pa.array([1, 2]), "lists": pa.array([["a"], ["b"]]), "nulls": pa.array([None, "a"])}[kind]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * 4, pa.float32()), 2)
    path = embeddings_file(here / "e.parquet", vectors, column)
    with pytest.raises(UserError, match=r"e\.parquet"):
        Embeddings.load(path)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_text_as_other_tools_write_it(here: Path, kind: pa.DataType) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * 6, pa.float32()), 2)
    table = Embeddings.load(embeddings_file(here / "e.parquet", vectors, pa.array(["a", "c", "b"]).cast(kind)))
    assert table.paths == ["a", "c", "b"]


@pytest.mark.parametrize("text", [b"[1]", b"null", b"3", b"[" * 100_000, b"\xff", b""])
def test_metadata_that_is_no_object(here: Path, text: bytes) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * 4, pa.float32()), 2)
    path = embeddings_file(here / "e.parquet", vectors)
    pq.write_table(pq.read_table(path).replace_schema_metadata({KEY: text}), path)
    with pytest.raises(UserError, match=r"e\.parquet: its transferkit metadata is not a JSON object"):
        Embeddings.load(path)
