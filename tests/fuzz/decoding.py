"""A process that decodes and preprocesses mutants: ``python -m tests.fuzz.decoding START STOP FOLDER``.

Before each mutant its number is written to ``FOLDER/START.at``, so that it is known if the process dies. Faults that
leave the process alive are written to ``FOLDER/START.faults``, one per line.
"""

import faulthandler
import os
import re
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import torch

from tests.fuzz.mutants import mutant
from transferkit.data.scan.file_findings import oddities
from transferkit.images.decoding import ImageError, decode, inspect
from transferkit.images.preprocessing import Preprocessing

SECONDS = 5.0  # of processor time per image
HANG = 60.0  # of wall time, since the machine may be busy
KILOBYTES = 2**20  # more than before the first one
SCHEMES = (Preprocessing.imagenet(), Preprocessing.vit())


def try_one(data: bytes) -> bool:
    """Inspect, decode and preprocess; return whether it was accepted. Any exception except ImageError is a fault."""
    with suppress(ImageError):
        oddities("a.png", inspect(data))
    try:
        pixels = decode(data)
    except ImageError as error:
        if not 0 < len(str(error)) < 100 or not str(error).isprintable():
            raise AssertionError(f"no short reason: {str(error)!r}") from error
        return False
    assert sorted(inspect(data).size) == sorted(pixels.shape[1:])
    assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.is_contiguous()
    for scheme in SCHEMES:
        tensor = scheme(pixels)
        assert tensor.shape == (3, 224, 224) and bool(tensor.isfinite().all())
    return True


def main(start: int, stop: int, folder: Path) -> None:
    """Try the mutants ``start`` to ``stop`` - 1, and print how many were accepted."""
    torch.set_num_threads(1)
    accepted, slowest = 0, (0.0, start)
    with (folder / f"{start}.at").open("wb", buffering=0) as at, (folder / f"{start}.faults").open("w") as faults:
        before = peak()
        for number in range(start, stop):
            os.pwrite(at.fileno(), f"{number:012d}".encode(), 0)
            data = mutant(number)
            faulthandler.dump_traceback_later(HANG, exit=True)
            began = time.thread_time()
            try:
                accepted += try_one(data)
            except BaseException:
                faults.write(f"{number}: {traceback.format_exc()!r}\n")
            seconds, grown = time.thread_time() - began, peak() - before
            faulthandler.cancel_dump_traceback_later()
            slowest = max(slowest, (seconds, number))
            if seconds > SECONDS:
                faults.write(f"{number}: took {seconds:.1f} s\n")
            if grown > KILOBYTES:
                faults.write(f"{number}: took {grown // 1024} MiB\n")
                before += grown  # reported once
    print(f"accepted {accepted} of {stop - start}; slowest {slowest[1]}: {slowest[0]:.2f} s; {grown // 1024} MiB")


def peak() -> int:
    """Return the peak memory of this process, in kilobytes (``ru_maxrss`` would count its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
