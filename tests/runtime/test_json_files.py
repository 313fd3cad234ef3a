"""JSON files: whole or absent, read as objects, and any fault is an OSError or a ValueError."""

import json
import math
from pathlib import Path

import pytest

from transferkit.errors import UserError
from transferkit.runtime.files import atomic_path
from transferkit.runtime.json_files import read_json, write_json


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = {"b": [1, 2.5, None], "a": "木"}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content == json.loads((tmp_path / "x.json").read_text())
    assert (tmp_path / "x.json").read_text().splitlines()[1].startswith('  "a"')
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_what_json_has_no_word_for_is_null(tmp_path: Path) -> None:
    """RFC 8259 has no NaN, and other readers than Python's refuse it."""
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [1.5, -math.inf, (math.inf, {"c": math.nan})], "d": "nan"})
    text = (tmp_path / "x.json").read_text()
    read = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert read == {"a": None, "b": [1.5, None, [None, {"c": None}]], "d": "nan"}


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_faults(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(ValueError):  # noqa: PT011  # the texts are Python's
        read_json(tmp_path / "x.json")
    with pytest.raises(OSError, match="No such file"):
        read_json(tmp_path / "absent.json")


def test_inside_of_a_directory_that_is_being_written_its_name_is_reported(tmp_path: Path) -> None:
    def export() -> None:
        with atomic_path(tmp_path / "export", folder=True) as folder:
            (folder / "file").touch()
            write_json(folder / "file" / "x.json", {})

    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/export: "):
        export()
    assert list(tmp_path.iterdir()) == []
