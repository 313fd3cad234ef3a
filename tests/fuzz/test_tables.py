"""Tables of other programs: any manifest or embeddings table is read, or refused in one line."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import open_images
from transferkit.data.scan import scan
from transferkit.errors import UserError

Result = TypeVar("Result")

# One folder for all examples of a test: each overwrites its file.
quick = settings(max_examples=50, deadline=5000, derandomize=True, suppress_health_check=list(HealthCheck))

names = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    [
        "a.png",
        "../a.png",
        "/etc/passwd",
        "./a.png",
        "b//c.png",
        "a/../../b",
        "\0",
        "=1+1",
        "\x1b[2J",
        "x" * 300,
        ".",
        "",
    ]
)
words = st.sampled_from(["train", "val", "TEST", " valid ", "dev", ""]) | names
headers = st.lists(st.sampled_from(["path", "label", "split", "Path", "file", "", "path ", "x"]), max_size=4)


def read_or_refused(path: Path) -> None:
    """Assert that a manifest gives paths inside its folder, or one line; a scan agrees."""
    line, table = attempt(lambda: open_images(path))
    found, report = attempt(lambda: scan(path))
    if table is None:
        assert "\n" not in line and 10 < len(line) < 2000
        assert found or (report and report.errors), line
    else:
        assert all(not name.startswith(("/", "../")) and name != ".." for name in table.paths)
        assert set(table.splits) <= {"train", "val", "test", None}
        assert report and report.table == table


def load_or_refused(path: Path) -> None:
    """Assert that an embeddings table is complete, or refused in one line."""
    line, table = attempt(lambda: Embeddings.load(path))
    if table is None:
        assert len(line.splitlines()) == 1
    else:
        assert table.embedding.dtype == torch.float32 and table.embedding.shape[0] == len(table.paths)
        assert len(table.labels) == len(table.splits) == len(table)
        assert isinstance(dict(table.metadata), dict) and all(isinstance(path, str) for path in table.paths)


def attempt(work: Callable[[], Result]) -> tuple[str, Result | None]:
    """Return the line of a refusal, or the result."""
    try:
        return "", work()
    except UserError as error:
        return str(error), None


@quick
@given(
    header=headers, rows=st.lists(st.lists(words, max_size=4), max_size=6), dialect=st.sampled_from([",", ";", "\t"])
)
def test_csv_tables(
    tmp_path_factory: pytest.TempPathFactory, header: list[str], rows: list[list[str]], dialect: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "m.csv"
    path.write_bytes("\n".join(dialect.join(cells) for cells in [header, *rows]).encode())
    read_or_refused(path)


@quick
@given(text=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: f"path,label\n{text}".encode()))
def test_csv_text(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "m.csv"
    path.write_bytes(text)
    read_or_refused(path)


def columns(rows: int) -> st.SearchStrategy[pa.Array]:
    """Draw a column of any type."""
    exactly = {"min_size": rows, "max_size": rows}
    floats = st.lists(st.floats(width=32) | st.none(), min_size=2, max_size=2)
    return st.one_of(
        st.lists(words | st.none(), **exactly).map(lambda v: pa.array(v, pa.string())),
        st.lists(words | st.none(), **exactly).map(lambda v: pa.array(v, pa.string()).dictionary_encode()),
        st.lists(st.binary(max_size=9), **exactly).map(lambda v: pa.array(v, pa.binary())),
        st.lists(st.integers(-9, 9) | st.none(), **exactly).map(lambda v: pa.array(v, pa.int64())),
        st.lists(st.floats(), **exactly).map(lambda v: pa.array(v, pa.float64())),
        st.lists(st.booleans(), **exactly).map(lambda v: pa.array(v, pa.bool_())),
        st.lists(st.dates(), **exactly).map(lambda v: pa.array(v, pa.date32())),
        st.lists(floats, **exactly).map(lambda v: pa.array(v, pa.list_(pa.float32(), 2))),
        st.lists(floats | st.none(), **exactly).map(lambda v: pa.array(v, pa.list_(pa.float32()))),
        st.just(pa.nulls(rows)),
        st.just(pa.array([{"a": 1}] * rows, pa.struct([("a", pa.int64())]))),
    )


@st.composite
def tables(draw: Any) -> pa.Table:
    rows = draw(st.integers(0, 4))
    wanted = draw(st.lists(st.sampled_from(["path", "label", "split", "embedding", "x"]), unique=True, max_size=5))
    metadata = draw(st.sampled_from([None, b"{}", b"{", b"[1]", b"\xff", b"null"]))
    table = pa.table({name: draw(columns(rows)) for name in wanted})
    return table.replace_schema_metadata({b"transferkit": metadata} if metadata else None)


@quick
@given(table=tables())
def test_parquet_tables(tmp_path_factory: pytest.TempPathFactory, table: pa.Table) -> None:
    path = tmp_path_factory.getbasetemp() / "m.parquet"
    pq.write_table(table, path)
    read_or_refused(path)
    load_or_refused(path)


def mutated(whole: bytes, number: int) -> bytes:
    """Return the ``number``-th mutation of a Parquet file; half of them in its last bytes, the metadata."""
    draw, data = random.Random(number), bytearray(whole)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(data)) if draw.random() < 0.5 else len(data) - 1 - draw.randrange(len(data) // 3)
        data[at] = draw.choice((draw.randrange(256), 0, 0xFF, data[at] ^ 1 << draw.randrange(8)))
    return bytes(data[: draw.choice((len(data), len(data), len(data), draw.randrange(len(data))))])


def try_mutants(start: int, stop: int, folder: Path) -> None:
    """Read mutated tables in this process; ``folder/at`` has the number of the current one."""
    rows = 30
    texts = [f"{row:03d}.png" for row in range(rows)]
    values = Embeddings(torch.randn(rows, 4, generator=torch.Generator().manual_seed(0)), texts, texts, texts, {})
    values.save(folder / "whole.parquet")
    whole, path = (folder / "whole.parquet").read_bytes(), folder / "m.parquet"
    for number in range(start, stop):
        (folder / "at").write_text(str(number))
        path.write_bytes(mutated(whole, number))
        load_or_refused(path)
        read_or_refused(path)


def test_a_share_of_mutated_parquet_files(tmp_path: Path) -> None:
    try_mutants(5000, 5100, tmp_path)


@pytest.mark.fuzz
def test_mutated_parquet_files_in_a_process_of_their_own(tmp_path: Path) -> None:
    code = "from pathlib import Path; from tests.fuzz.decoding import peak\n" \
           "from tests.fuzz.test_tables import try_mutants\n" \
           "try_mutants(0, 5000, Path.cwd())\n" \
           "print(peak() // 1024)"  # fmt: skip
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "TRANSFERKIT_CACHE": "cache"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200
    )
    number = int((tmp_path / "at").read_text())
    assert done.returncode == 0, f"mutant {number}: {done.stderr[-2000:]}"
    assert int(done.stdout) < 2048, "MiB, those of the libraries included"
