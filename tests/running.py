"""Running a command in this process, and pictures to run it on."""

import io
import re
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from transferkit import cli


class Done(NamedTuple):
    """What a command left."""

    status: int
    out: str
    err: str


def transferkit(*arguments: str) -> Done:
    """Run ``transferkit ARGUMENTS`` here."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = cli.run(list(arguments))
    return Done(status, out.getvalue(), err.getvalue())


def refused(done: Done, pattern: str) -> bool:
    """Whether bad input was answered by one line that says what is wrong."""
    assert done.status == 2, done
    assert done.err.count("\n") == 1 and done.err.startswith("transferkit: error: "), done.err
    assert "Traceback" not in done.err and done.out == ""
    assert re.search(pattern, done.err), done.err
    return True


def write_photos(root: Path, colours: Mapping[str, tuple[int, int, int]], counts: Mapping[str, int]) -> None:
    """Write split/class/number.{jpg,png}, 40 x 32 pixels; a class is a colour under noise."""
    noise = np.random.default_rng(0)
    for split, count in counts.items():
        for label, colour in colours.items():
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(noise.normal(colour, 60, (32, 40, 3)), 0, 255).astype(np.uint8)  # (H, W, 3)
                Image.fromarray(pixels).save(folder / f"{number}.{'png' if number % 2 else 'jpg'}")
