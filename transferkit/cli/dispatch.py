"""The front door: a verb, its command, and what a user reads when something is wrong.

Nothing heavy is imported here: ``transferkit --help`` answers before torch is.
"""

import difflib
import errno
import gc
import importlib
import io
import itertools
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn

import transferkit
from transferkit.cli.console import harmless
from transferkit.cli.dialect import DIALECT, translate
from transferkit.errors import ToldByFirst, UserError
from transferkit.runtime.cores import limit_threads

VERBS = {
    "fit": ("fit", "train a linear head, or fine-tune, on your images"),
    "validate": ("fit", "metrics of a checkpoint on the validation split"),
    "test": ("fit", "metrics, predictions and embeddings of the test split"),
    "predict": ("fit", "classify images that need no labels"),
    "embed": ("embed", "turn images into a Parquet table of embeddings"),
    "evaluate": ("evaluate", "similarity metrics of embeddings, and pictures"),
    "compare": ("compare", "two extractors on the same images: CKA, RSA, shared neighbours"),
    "similarity": ("similarity", "cosine similarity of two or more images"),
    "probe": ("probe", "linear, kNN and few-shot accuracy of an extractor on labelled images"),
    "benchmark": ("benchmark", "probes over extractors x datasets: a table, resumable"),
    "export": ("export", "hand an extractor over: a directory that other tools load, and ONNX"),
    "index": ("index", "a directory of embeddings to search in"),
    "search": ("search", "the images of an index nearest to a query"),
    "regions": ("regions", "one embedding a box, from boxes in a CSV or COCO file"),
    "duplicates": ("duplicates", "near-duplicates, and those that leak between splits"),
    "scan": ("scan", "what is wrong with a set of images"),
    "audit": ("audit", "what to mend in labeled images: likely label errors, outliers, bursts, bad pictures"),
    "report": ("report", "one HTML file of a run, probe or benchmark, or of two side by side"),
    "cache": ("cache", "list or clear the cached features of images"),
    "quickstart": ("quickstart", "transfer learning on built-in digits, start to end, no network"),
}

BATCH_SIZE = dict.fromkeys(("fit", "validate", "test", "predict"), "--data.batch_size") | {"embed": "--batch_size"}
# What allocators say: CUDA's, MPS's, the CPU's, those of cuBLAS and cuDNN, and ONNX Runtime's.
NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|failed to allocate memory", re.IGNORECASE
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 a fault of ours, 2 bad input, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # where the terminal does not know a letter
    status = run(list(sys.argv[1:] if arguments is None else arguments))
    try:
        sys.stdout.flush()
    except OSError as error:
        status = unwritable(error)
    gc.freeze()  # else the interpreter spends a second on looking for garbage among torch's modules
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run one command; its exit status."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    logging.basicConfig(stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(DIALECT)
    logging.getLogger("transferkit").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, interrupt)
    acknowledge_signals()
    limit_threads()
    try:
        return execute(arguments)
    except ToldByFirst:
        return 0
    except UserError as error:
        if debug:
            traceback.print_exc()
        return complain(str(error))
    except SystemExit as done:  # --help and --print_config have been answered
        return done.code if isinstance(done.code, int) else 0
    except KeyboardInterrupt:
        print("transferkit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError as error:
        return unwritable(error)
    except OSError as error:  # whatever option held the name: asking for it is all it takes
        if error.errno == errno.ENAMETOOLONG:
            return complain(f"no file or folder can have the name {str(error.filename)[:80]!r}...; give a shorter one")
        if error.errno == errno.ENOSPC and not error.filename:
            return unwritable(error)
        if error.errno in (errno.EACCES, errno.EPERM) and error.filename:
            return complain(f"{error.filename}: {error.strerror}; change its rights, or those of the folders it is in")
        if error.errno == errno.ENOMEM:
            return complain(out_of_memory(error, arguments[0]))
        raise
    except (MemoryError, RuntimeError) as error:  # torch's are of the latter type, or say so in words only
        if debug or not (isinstance(error, MemoryError) or NO_MEMORY.search(str(error))):
            raise
        return complain(out_of_memory(error, arguments[0]))


def execute(arguments: list[str]) -> int:
    """Hand the arguments to the command of their verb, or answer without one.

    Raises:
        UserError: no such verb (the nearest is named), or bad input of any kind.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"transferkit {transferkit.__version__}")
        return 0
    verb = arguments[0]
    for before, argument in itertools.pairwise(arguments):
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            where = argument or f"the argument after {before}"
            raise UserError(f"{where} is empty (a shell variable that is not set?); leave it out or give a value")
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.0)[0]
        raise UserError(f"no command {verb!r}; did you mean {near!r}? transferkit --help lists them")
    command: Any = importlib.import_module(f"transferkit.cli.commands.{VERBS[verb][0]}")
    return int(command.main(arguments))


def out_of_memory(error: Exception, verb: str) -> str:
    """One line for memory that ran out, of whatever device, with the options of the verb that need less."""
    device = next((name for name in ("CUDA", "HIP", "XPU", "MPS") if name in str(error)), None)
    remedies = []
    if batch := BATCH_SIZE.get(verb):
        remedies.append(f"give a smaller {batch}")
    if device:
        accelerator = "--trainer.accelerator" if verb in BATCH_SIZE else "--accelerator"
        remedies.append(f"compute on the processor with {accelerator} cpu")
    return f"out of memory ({device or 'CPU'}); {', or '.join(remedies or ['free some, or use fewer images'])}"


def interrupt(signum: int, frame: Any) -> NoReturn:
    """SIGTERM ends work as Ctrl-C does."""
    raise KeyboardInterrupt


@cache  # once a process
def acknowledge_signals() -> None:
    """Answer the first SIGINT or SIGTERM at once, from a thread: the main one may be in a long step of torch's."""
    if not hasattr(os, "register_at_fork"):  # Windows, whose signals are others
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # what is sent to it is not sent to us

    def answer() -> None:
        while os.read(reader, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
            pass
        print("\ntransferkit: stopping after this step", file=sys.stderr, flush=True)

    threading.Thread(target=answer, name="signals", daemon=True).start()


def complain(message: str) -> int:
    """Print one line for bad input; the exit status."""
    message = translate(" ".join(message.split()), DIALECT.options)
    print(f"transferkit: error: {harmless(message)}", file=sys.stderr)
    return 2


def unwritable(error: OSError) -> int:
    """Say that our output could not be written, unless its reader left, as `| head` does; the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left of it
    return 0 if isinstance(error, BrokenPipeError) else complain(f"cannot write the output: {error.strerror}")


def usage() -> str:
    """The text of ``transferkit --help``."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        [
            "usage: transferkit COMMAND [options]",
            "",
            transferkit.__doc__ or "",
            "",
            *lines,
            "",
            "transferkit COMMAND --help lists the options of a command; --version, --debug (show tracebacks).",
        ]
    )
