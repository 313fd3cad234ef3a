"""Libraries that may be missing: one line with the command that installs them."""

import sys
from pathlib import Path

import pytest

from transferkit.errors import UserError
from transferkit.runtime.optional import optional


def test_a_library_is_imported_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert optional("json.decoder") is sys.modules["json.decoder"]
    with pytest.raises(UserError, match=r"^no_such_library is not installed; pip install its-package$"):
        optional("no_such_library.part", "its-package")
    with pytest.raises(UserError, match=r"^a fit needs no_such_library, which is not installed; pip install its$"):
        optional("no_such_library", "its", "a fit")
    (tmp_path / "broken_library.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="broken_library cannot be imported: No module named 'no_such_dependency'"):
        optional("broken_library")
