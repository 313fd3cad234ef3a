"""Commands in children of a process that has imported the libraries: no start of Python per kill."""

import io
import multiprocessing
import os
import resource
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tests.running import Done
from transferkit import cli

MODULES = ("benchmark", "embed", "export", "fit", "index", "probe")
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "open")  # audit events; os.replace is os.rename
LIBRARIES = [f"transferkit.cli.commands.{name}" for name in MODULES]
LIBRARIES += [
    "transferkit.search.build",
    "transferkit.probe",
    "transferkit.extractor.onnx",
    "transferkit.probe.benchmark.grid",
]
forks: Any = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload([__name__, *LIBRARIES])


def start(arguments: list[str], folder: Path, **limits: Any) -> BaseProcess:
    """Start a command in a folder, which also holds its cache; see :func:`work` for the limits."""
    child: BaseProcess = forks.Process(target=work, args=(arguments, folder), kwargs=limits)
    child.start()
    return child


def finish(arguments: list[str], folder: Path, **limits: Any) -> Done:
    """Run a command to its end."""
    child = start(arguments, folder, **limits)
    child.join(300)
    assert child.exitcode is not None, f"{arguments} hangs"
    assert child.exitcode >= 0, f"{arguments} died of signal {-child.exitcode}"
    return Done(child.exitcode, *((folder.parent / f"{folder.name}.{name}").read_text() for name in ("out", "err")))


def work(
    arguments: list[str], folder: Path, change: int | None = None, file_size: int | None = None, live: bool = False
) -> None:
    """Run a command in a child.

    Args:
        arguments: verb and options.
        folder: working directory.
        change: index, from 0, of the file change in the folder before which SIGKILL ends it.
        file_size: limit in bytes; a larger file fails as on a full disk.
        live: write stderr as it comes.
    """
    os.setpgid(0, 0)  # a terminal signals the whole group
    os.chdir(folder)
    os.environ["TRANSFERKIT_CACHE"] = str(folder / "cache")
    torch.set_num_threads(1)
    out, err = io.StringIO(), io.StringIO()
    changes = watch(folder, change)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, hard))
    said = folder.parent / f"{folder.name}.err"
    if live:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    with redirect_stdout(out), redirect_stderr(sys.stderr if live else err):
        status = cli.run(arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (folder.parent / f"{folder.name}.out").write_text(out.getvalue())
    (folder.parent / f"{folder.name}.changes").write_text(str(changes["seen"]))
    if not live:
        said.write_text(err.getvalue())
    sys.exit(status)


def watch(folder: Path, last: int | None) -> dict[str, int]:
    """Count the file changes in a folder, and die before one of them."""
    count, here = {"seen": 0}, f"{folder}{os.sep}"

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or (event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            return
        place = arguments[0]
        if isinstance(place, int) or not str(Path(os.fsdecode(place)).absolute()).startswith(here):
            return
        if count["seen"] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        count["seen"] += 1

    sys.addaudithook(look)
    return count
