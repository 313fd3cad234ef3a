import errno
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tensorboard.summary.writer.event_file_writer import EventFileWriter

import transferkit
from transferkit.cli import dispatch
from transferkit.errors import UserError
from transferkit.runtime.files import DISK_FAULTS

HEAVY = ("torch", "lightning", "jsonargparse", "transformers", "numpy", "rich", "yaml")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | int], None]:
    """Installs a verb ``do`` that raises something or returns a status."""

    def install(outcome: BaseException | int) -> None:
        def main(arguments: list[str]) -> int:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        module = ModuleType("transferkit.cli.commands.do")
        module.main = main  # type: ignore[attr-defined]
        monkeypatch.setitem(dispatch.VERBS, "do", ("do", "a command"))
        monkeypatch.setitem(sys.modules, "transferkit.cli.commands.do", module)

    return install


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], []])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch.run(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in dispatch.VERBS)


@pytest.mark.parametrize("arguments", [["--version"], ["-V"]])
def test_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch.run(arguments) == 0
    assert capsys.readouterr().out == f"transferkit {transferkit.__version__}\n"


@pytest.mark.parametrize("option", ["--help", "--version", "unknown-verb"])
def test_the_front_door_imports_nothing_heavy(option: str) -> None:
    code = (
        "import sys; from transferkit.cli.dispatch import run; run([sys.argv[1]]); "
        f"print('heavy:', *set(sys.modules) & set({HEAVY}))"
    )
    done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, timeout=20)
    assert done.stdout.splitlines()[-1] == "heavy:", done


def test_module_is_a_command() -> None:
    command = [sys.executable, "-m", "transferkit", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, f"transferkit {transferkit.__version__}\n")


def test_every_verb_has_its_command() -> None:
    from importlib.util import find_spec

    assert all(find_spec(f"transferkit.cli.commands.{module}") for module, _ in dispatch.VERBS.values())


def test_a_misspelt_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch.run(["fti"]) == 2
    error = capsys.readouterr().err
    assert error == "transferkit: error: no command 'fti'; did you mean 'fit'? transferkit --help lists them\n"


def test_bad_input_is_one_line(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    command(UserError("what\n  where \x1b[31mred\x00"))
    assert dispatch.run(["do"]) == 2
    assert capsys.readouterr().err == "transferkit: error: what where \\x1b[31mred\\x00\n"


def test_debug_shows_the_traceback(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    command(UserError("what"))
    assert dispatch.run(["do", "--debug"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1] == "transferkit: error: what"


@pytest.mark.parametrize(
    ("error", "device"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ..."), "CUDA"),
        (RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` ..."), "CUDA"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "CUDA"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.13 GB, other allocations: ...)"), "MPS"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: ..."
            ),
            "CPU",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: not enough memory: you tried ..."),
            "CPU",
        ),
        (MemoryError(), "CPU"),
        (MemoryError("Unable to allocate 8.00 EiB for an array with shape ..."), "CPU"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "CPU"),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "embed", "probe"])
def test_out_of_memory_is_one_line_with_the_remedy(
    verb: str, error: Exception, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(dispatch, "execute", run_out)
    assert dispatch.run([verb]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"transferkit: error: out of memory ({device}); ")
    smaller = {"fit": "--data.batch_size", "embed": "--batch_size"}.get(verb, "")
    processor = {"fit": "--trainer.accelerator cpu", "embed": "--trainer.accelerator cpu"}.get(
        verb, "--accelerator cpu"
    )
    assert smaller in line and (processor in line) == (device != "CPU")


@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(2**55), lambda: np.empty(2**55), lambda: pa.allocate_buffer(2**55)]
)
def test_what_libraries_really_say(
    allocate: Callable[[], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dispatch, "execute", lambda _: allocate() and 0)
    assert dispatch.run(["probe"]) == 2
    assert capsys.readouterr().err == "transferkit: error: out of memory (CPU); free some, or use fewer images\n"


@pytest.mark.parametrize(
    ("error", "options"), [(torch.OutOfMemoryError("CUDA out of memory"), ["--debug"]), (RuntimeError("shapes"), [])]
)
def test_other_errors_of_torch_are_not_taken_for_it(
    error: Exception, options: list[str], command: Callable[..., None]
) -> None:
    command(error)
    with pytest.raises(type(error)):
        dispatch.run(["do", *options])


def test_interruption(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    command(KeyboardInterrupt())
    assert dispatch.run(["do"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(("outcome", "status"), [(0, 0), (2, 2), (SystemExit(0), 0), (SystemExit(3), 3)])
def test_exit_status(command: Callable[..., None], outcome: BaseException | int, status: int) -> None:
    command(outcome)
    with pytest.raises(SystemExit) as done:
        dispatch.main(["do"])
    assert done.value.code == status


def test_an_internal_error_is_not_hidden(command: Callable[..., None]) -> None:
    command(ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        dispatch.run(["do"])


class Failing(io.RawIOBase):
    """An open file that a disk fails under: neither reading nor writing says which it is."""

    def __init__(self, number: int) -> None:
        self.name, self.number = "/place/of/file.bin", number

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        raise OSError(self.number, os.strerror(self.number))


def failing(number: int) -> OSError:
    """What reading from such a file raises, its traceback and all."""
    file = Failing(number)
    try:
        io.BufferedReader(file).read()
    except OSError as error:
        return error
    raise AssertionError("it has to fail")


@pytest.mark.parametrize("number", sorted(DISK_FAULTS))
@pytest.mark.parametrize("names_it", [True, False])
def test_a_fault_of_the_disk_is_one_line_that_names_the_file(
    command: Callable[..., None], number: int, names_it: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    command(OSError(number, os.strerror(number), "/place/of/file.bin") if names_it else failing(number))
    assert dispatch.run(["do"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"transferkit: error: /place/of/file.bin: {os.strerror(number)}; ")


def test_a_fault_of_the_disk_in_a_thread_is_left_to_the_one_who_waits(
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """TensorBoard's writer raises in its thread, and again where it is flushed."""

    def write(*_: object) -> None:
        raise failing(errno.ENOSPC)

    def fill(arguments: list[str]) -> int:
        return EventFileWriter(str(tmp_path)).flush() or 0

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", write)
    command(0)
    monkeypatch.setattr(sys.modules["transferkit.cli.commands.do"], "main", fill)
    assert dispatch.run(["do"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("transferkit: error: /place/of/file.bin: No space left on device; free disk space")


def test_a_home_that_nobody_has(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError) as caught:
        Path("~nobody-of-this-name/x").expanduser()
    command(caught.value)
    assert dispatch.run(["do"]) == 2
    assert capsys.readouterr().err.startswith("transferkit: error: a path begins with ~ and the name of no user here")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
@pytest.mark.parametrize(
    "arguments", ["--help", "--version", pytest.param("similarity {} {} --weights none --json", marks=pytest.mark.slow)]
)
def test_a_full_disk_under_the_output(arguments: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "transferkit", *arguments.replace("{}", str(tmp_path / "a.png")).split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("transferkit: error: cannot write the output: No space left on device\n")


@pytest.mark.slow
def test_letters_that_the_terminal_does_not_know(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "é.png")
    command = [sys.executable, "-m", "transferkit", "similarity", *["é.png"] * 3, "--weights", "none"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0 and b"\\xe9.png" in done.stdout, done


def test_sigterm_ends_as_ctrl_c_does() -> None:
    with pytest.raises(KeyboardInterrupt):
        dispatch.interrupt(15, None)
