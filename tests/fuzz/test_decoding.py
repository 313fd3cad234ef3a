"""Mutated images: decoding and preprocessing raise only ImageError, within 5 s and 1 GiB."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fuzz import decoding
from tests.fuzz.mutants import mutant, originals
from transferkit.runtime.cores import cores

MUTANTS = 100_000  # about two minutes on one core
CHUNK = 10_000  # mutants per process


def test_a_share_of_the_mutants() -> None:
    accepted = 0
    for number in range(MUTANTS, MUTANTS + 600):
        began = time.thread_time()
        accepted += decoding.try_one(mutant(number))
        assert time.thread_time() - began < decoding.SECONDS, number
    assert 50 < accepted < 300, "mutants must be broken, but not all of them at the first byte"


def test_a_mutant_is_always_the_same() -> None:
    assert [mutant(number) for number in range(50)] == [mutant(number) for number in range(50)]
    assert len({mutant(number) for number in range(50)}) > 45
    assert sum(mutant(number) in originals() for number in range(500)) < 50


@pytest.mark.fuzz
def test_all_mutants_in_processes_of_their_own(tmp_path: Path) -> None:
    """A process that dies or hangs is detected, and the mutant that it died of is kept."""
    starts = range(0, MUTANTS, CHUNK)
    with ThreadPoolExecutor(cores()) as pool:
        said = list(pool.map(lambda start: try_chunk(start, start + CHUNK, tmp_path), starts))
    faults = [line for faults, _ in said for line in faults]
    print(*(summary for _, summary in said), sep="\n")
    assert faults == []


@pytest.mark.fuzz
def test_a_process_that_dies_names_its_mutant(tmp_path: Path) -> None:
    faults, _ = try_chunk(3, 9, tmp_path, "import os; decoding.try_one = lambda data: os.abort()")
    assert faults == [f"3: the process died with status -6; see {tmp_path}/3.bin"]
    assert (tmp_path / "3.bin").read_bytes() == mutant(3)


@pytest.mark.fuzz
def test_what_is_wrong_with_a_mutant_is_said(tmp_path: Path) -> None:
    spoil = "decoding.try_one = lambda data: 1 / 0; decoding.SECONDS = -1"
    faults, _ = try_chunk(3, 5, tmp_path, spoil)
    said = [fault.split()[:2] for fault in faults]
    assert said == [["3:", "'Traceback"], ["3:", "took"], ["4:", "'Traceback"], ["4:", "took"]]


def try_chunk(start: int, stop: int, folder: Path, spoil: str = "") -> tuple[list[str], str]:
    """Return the faults of some mutants, one per line, and the summary of the process that tried them."""
    code = f"from pathlib import Path; from tests.fuzz import decoding; {spoil}\n"
    code += f"decoding.main({start}, {stop}, Path.cwd())"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    faults = (folder / f"{start}.faults").read_text().splitlines()
    if done.returncode != 0:
        number = int((folder / f"{start}.at").read_text())
        (folder / f"{number}.bin").write_bytes(mutant(number))
        faults.append(f"{number}: the process died with status {done.returncode}; see {folder}/{number}.bin")
    return faults, done.stdout.strip()
