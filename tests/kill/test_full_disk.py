"""A full disk: one line of error, existing files stay, and with space again the result is complete."""

import shutil
from pathlib import Path

import pytest

from tests.kill.children import finish
from tests.kill.test_killed import WORKS, go_on, place, prepare
from tests.kill.traces import check_whole, traces

__all__ = ["place"]  # the fixture

SHARES = (0.0, 0.02, 0.2, 0.6, 0.98)  # of the largest file that is written
NAMES = ("fit frozen", "fit full", "embed", "embed shards", "benchmark", "index", "index again", "export again")


@pytest.mark.kill
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk(name: str, share: float, place: Path, tmp_path: Path) -> None:
    work, before, whole, folder = WORKS[name].at(place), tmp_path / "before", tmp_path / "whole", tmp_path / "full"
    prepare(before, work)
    shutil.copytree(before, whole)
    assert finish(work.arguments, whole).status == 0
    largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    shutil.copytree(before, folder)
    earlier = traces(folder)
    done = finish(work.arguments, folder, file_size=int(share * largest))
    if name == "benchmark" and done.status == 0:  # it lists the cells that it could not write
        assert "could not be measured" in done.err
    else:
        assert done.status == 2 and done.out == "", done.err
        assert done.err.splitlines()[-1].startswith("transferkit: error: cannot write "), done.err
        assert "Traceback" not in done.err
    check_whole(folder)
    left = traces(folder)
    assert {path: left.get(path) for path in earlier} == earlier
    assert not [path for path in left if path.endswith(".tmp")]
    again = finish(go_on(folder, work.arguments), folder)
    assert again.status == 0, again.err
    assert traces(folder) == traces(whole)
