"""The entry point: runs the command of a verb and reports errors.

Nothing heavy is imported here: ``transferkit --help`` answers without importing torch.
"""

import difflib
import errno
import gc
import importlib
import io
import itertools
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn

import transferkit
from transferkit.cli.dialect import DIALECT, translate
from transferkit.errors import ToldByFirst, UserError
from transferkit.runtime.cores import limit_threads
from transferkit.runtime.files import disk_fault, place_of
from transferkit.runtime.no_memory import is_out_of_memory
from transferkit.runtime.text import for_terminal
from transferkit.runtime.verbosity import showing_progress

VERBS = {
    "fit": ("fit", "train a linear head, or fine-tune, on your images"),
    "validate": ("fit", "metrics of a checkpoint on the validation split"),
    "test": ("fit", "metrics, predictions and embeddings of the test split"),
    "predict": ("predict", "classify images that need no labels"),
    "explain": ("explain", "what a network looked at in images, and the nearest training images"),
    "embed": ("embed", "turn images into a Parquet table of embeddings"),
    "evaluate": ("evaluate", "similarity metrics of embeddings, and figures"),
    "compare": ("compare", "two extractors on the same images: CKA, RSA, shared neighbors"),
    "similarity": ("similarity", "cosine similarity of two or more images"),
    "probe": ("probe", "linear, kNN and few-shot accuracy of an extractor on labeled images"),
    "zeroshot": ("zeroshot", "images classified by the names of the classes, without training"),
    "rank": ("rank", "which extractor suits your images, and whether they can tell"),
    "distill": ("distill", "train a small network to embed images as a large one does, without labels"),
    "benchmark": ("benchmark", "probes over extractors x datasets: a table, resumable"),
    "export": ("export", "write an extractor as a directory that other tools load, and as ONNX"),
    "index": ("index", "build a directory of embeddings to search in"),
    "search": ("search", "the images of an index nearest to a query"),
    "regions": ("regions", "one embedding per box, from boxes in a CSV or COCO file"),
    "duplicates": ("duplicates", "near-duplicates, and those that leak between splits"),
    "scan": ("scan", "find problems in a set of images"),
    "audit": ("audit", "likely label errors, outliers, bursts and bad pictures in labeled images"),
    "models": ("models", "backbones by name: parameters, width, input size, poolings, whether they take words"),
    "report": ("report", "one HTML file of a run, probe or benchmark, or of two side by side"),
    "cache": ("cache", "list or clear the cached features of images"),
    "doctor": ("doctor", "versions, devices, caches, network, and what is missing"),
    "completion": ("completion", "a script for bash or zsh that completes commands, options and files"),
    "quickstart": ("quickstart", "transfer learning on built-in digits, start to end, no network"),
}

BATCH_SIZE = dict.fromkeys(("fit", "validate", "test", "predict"), "--data.batch_size") | {"embed": "--batch_size"}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 internal error (please report it), 2 bad input, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for letters that the terminal's encoding lacks
    status = run(list(sys.argv[1:] if arguments is None else arguments))
    try:
        sys.stdout.flush()
    except OSError as error:
        status = unwritable(error)
    gc.freeze()  # otherwise the interpreter spends a second collecting garbage in torch's modules
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run one command; return its exit status."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    logging.basicConfig(stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(DIALECT)
    logging.getLogger("transferkit").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, interrupt)
    threading.excepthook = of_thread
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
    except SystemExit as done:  # after --help and --print_config
        return done.code if isinstance(done.code, int) else 0
    except KeyboardInterrupt:
        print("transferkit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError as error:
        return unwritable(error)
    except OSError as error:  # of any option that takes a path: opening it is enough
        if error.errno == errno.ENAMETOOLONG:
            return complain(f"the file name {str(error.filename)[:80]!r}... is too long; give a shorter one")
        if error.errno == errno.ENOSPC and not place_of(error):
            return unwritable(error)
        if fault := disk_fault(error):
            return complain(str(fault))
        if error.errno in (errno.EACCES, errno.EPERM) and error.filename:
            return complain(f"{error.filename}: {error.strerror}; change its permissions, or those of its folders")
        if error.errno == errno.ENOMEM:
            return complain(out_of_memory(error, arguments[0]))
        raise
    except (MemoryError, RuntimeError) as error:
        if "determine home directory" in str(error):  # Path.expanduser, wherever it is called
            return complain("a path begins with ~ and the name of no user here; write it out")
        if debug or not is_out_of_memory(error):
            raise
        return complain(out_of_memory(error, arguments[0]))


def of_thread(failure: threading.ExceptHookArgs) -> None:
    """Leave the faults of a disk to the one who waits for the thread, and raises them again."""
    if not (failure.exc_value and disk_fault(failure.exc_value)):
        threading.__excepthook__(failure)


def execute(arguments: list[str]) -> int:
    """Run the command of the verb, or print the help or the version; return the exit status.

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
    with showing_progress():
        return int(command.main(arguments))


def out_of_memory(error: Exception, verb: str) -> str:
    """Return one line for a lack of memory on any device, with the verb's options that need less."""
    device = next((name for name in ("CUDA", "HIP", "XPU", "MPS") if name in str(error)), None)
    remedies = []
    if batch := BATCH_SIZE.get(verb):
        remedies.append(f"give a smaller {batch}")
    if device:
        accelerator = "--trainer.accelerator" if verb in BATCH_SIZE else "--accelerator"
        remedies.append(f"compute on the CPU with {accelerator} cpu")
    return f"out of memory ({device or 'CPU'}); {', or '.join(remedies or ['free some, or use fewer images'])}"


def interrupt(signum: int, frame: Any) -> NoReturn:
    """Handle SIGTERM like Ctrl-C."""
    raise KeyboardInterrupt


@cache  # once per process
def acknowledge_signals() -> None:
    """Answer the first SIGINT or SIGTERM at once, from a thread: the main one may be in a long torch operation."""
    if not hasattr(os, "register_at_fork"):  # Windows, which has other signals
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # signals to a child are not for this process

    def answer() -> None:
        while os.read(reader, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
            pass
        print("\ntransferkit: stopping after this step", file=sys.stderr, flush=True)

    threading.Thread(target=answer, name="signals", daemon=True).start()


def complain(message: str) -> int:
    """Print one line for bad input; return the exit status."""
    message = translate(" ".join(message.split()), DIALECT.options)
    print(f"transferkit: error: {for_terminal(message)}", file=sys.stderr)
    return 2


def unwritable(error: OSError) -> int:
    """Report that the output could not be written, unless its reader has closed it (`| head`); return the status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the rest of the output
    return 0 if isinstance(error, BrokenPipeError) else complain(f"cannot write the output: {error.strerror}")


def usage() -> str:
    """Return the text of ``transferkit --help``."""
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
