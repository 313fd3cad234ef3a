"""Trainer options: checked before training, and errors of the libraries turned into one line."""

import re
from collections.abc import Collection, Iterator, Mapping
from types import NoneType, TracebackType
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, LearningRateMonitor
from lightning.pytorch.loggers import Logger

from transferkit.errors import UserError
from transferkit.runtime.files import disk_fault
from transferkit.runtime.processes import check_devices, check_nodes
from transferkit.training.regimes import check_unfreezing

# Errors of libraries that the user can remedy: pattern of the message -> message of the UserError.
REMEDIES = {
    r"Expected more than 1 value per channel": "BatchNorm cannot train on a single value per channel; "
    "give a `batch_size` of 2 or more, or larger images",
    r"SyncBatchNorm.* GPU|sync.*on GPU": "SyncBatchNorm works on GPUs only; leave out `sync_batchnorm`",
    r"^No supported gpu backend|Accelerator` can not run on your system": "`accelerator` names a device that "
    "this machine does not have; leave it out",
    r"out of memory": "the device has no memory left; give a smaller `batch_size`",
    r"does not have a deterministic implementation": "a layer has no deterministic implementation on this device; "
    'give `deterministic="warn"`',
}
LIBRARIES = ("lightning", "lightning_utilities", "torch", "jsonargparse", "rich", "tensorboard", "tqdm")
LEARNING_WHOLLY = ("full", "scratch", "lp-ft")  # regimes with nothing frozen, whose output would be cached
REFUSALS = (ValueError, TypeError, RuntimeError, ImportError, NotImplementedError, KeyError, AttributeError, OSError)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise for options that Lightning's Trainer accepts and then fails on.

    Args:
        options: all arguments of the Trainer.

    Raises:
        UserError: naming the argument.
    """
    for name in ("check_val_every_n_epoch", "accumulate_grad_batches"):
        if options[name] is not None and options[name] < 1:
            raise UserError(f"`{name}` is {options[name]}; give 1 or more")
    clip = options["gradient_clip_val"]
    if clip is not None and not 0 <= clip < float("inf"):  # a negative one would turn every gradient around
        raise UserError(f"`gradient_clip_val` is {clip}; give a number from 0 up, or leave it out")
    if options["val_check_interval"] == 0:
        raise UserError("`val_check_interval` is 0; give a share of an epoch, or a number of batches")
    if str(options["devices"]).isdecimal():  # otherwise a list of GPUs, or auto
        check_devices(int(options["devices"]))
    check_nodes(options["num_nodes"])
    if options["overfit_batches"]:
        raise UserError("`overfit_batches` replaces the shuffling of transferkit; give `n_per_class` instead")
    gpus = torch.cuda.is_available() and options["accelerator"] != "cpu"
    if options["sync_batchnorm"] and not gpus and str(options["devices"]) not in ("1", "auto"):
        raise UserError("`sync_batchnorm` works on GPUs only; leave it out")
    strategy = options["strategy"]
    if isinstance(strategy, str) and re.search("spawn|fork|notebook", strategy):
        raise UserError(f'`strategy="{strategy}"` cannot start the processes of a command; give `strategy="ddp"`')


def check_loggers(loggers: Any) -> None:
    """Raise for a ``logger`` that is not one of Lightning's.

    Args:
        loggers: argument of the Trainer: a bool, None, a logger or several.

    Raises:
        UserError: naming the argument.
    """
    for each in loggers if isinstance(loggers, list | tuple) else [loggers]:
        if not isinstance(each, Logger | bool | NoneType):
            raise UserError(f"`logger` is {each!r}; give an instance of lightning.pytorch.loggers.Logger, or a bool")


def automatic_precision(accelerator: Any, regime: str | None = None) -> str:
    """Return ``bf16-mixed`` where the device computes in bfloat16, ``32-true`` elsewhere.

    A CPU computes in bfloat16 by AVX512-BF16 or AMX. What frozen stages give is cached in float32, which saves more.

    Args:
        accelerator: argument of the Trainer.
        regime: of the TransferModule; by default that of one without.
    """
    if accelerator in (None, "auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    on_cpu = accelerator in (None, "auto", "cpu") and not torch.backends.mps.is_available()
    return "bf16-mixed" if on_cpu and regime in LEARNING_WHOLLY and computes_in_bf16() else "32-true"


def computes_in_bf16() -> bool:
    """Return whether the CPU has instructions for bfloat16; others emulate it, which is slow."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def check_callbacks(callbacks: Collection[Callback], logged: Collection[str]) -> None:
    """Raise for callbacks that cannot work with a TransferModule.

    Args:
        callbacks: those that the user gives.
        logged: names that the module logs.

    Raises:
        UserError: naming the callback.
    """
    if other := [callback for callback in callbacks if not isinstance(callback, Callback)]:
        raise UserError(f"`callbacks` has {other[0]!r}; give instances of lightning.pytorch.Callback")
    check_unfreezing(callbacks)
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, LearningRateFinder | BatchSizeFinder):
            raise UserError(
                f"the callback {name} searches for one learning rate or batch size; compare short fits "
                "with `lr_head`, `lr_backbone` and `batch_size`"
            )
    others = [callback for callback in callbacks if type(callback).__module__.split(".")[0] != "lightning"]
    if others or any(isinstance(callback, LearningRateMonitor) for callback in callbacks):
        return  # they may log names of their own
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor not in logged:
            name = type(callback).__name__
            raise UserError(f"the callback {name} monitors {monitor!r}; logged are {', '.join(sorted(logged))}")


def refusal(error: BaseException, before_training: bool) -> UserError | None:
    """Return a library's error as one line; None for an internal error, or one of an unknown kind.

    Args:
        error: the exception.
        before_training: whether no step has been taken yet: then any error from a library is about its options.
    """
    message = " ".join(str(error).split()) or type(error).__name__
    if "DataLoader worker" in message:
        return None  # a process that loads images was killed
    for pattern, remedy in REMEDIES.items():
        if isinstance(error, RuntimeError | ValueError | MisconfigurationException) and re.search(pattern, message):
            return UserError(remedy)
    if fault := disk_fault(error):
        return fault
    if told := class_fault(message):
        return UserError(told)
    callback = failed_callback(error.__traceback__)
    if callback and isinstance(error, REFUSALS):
        return UserError(f"the callback {callback} fails: {message[:300]}; change its options, or leave it out")
    known = isinstance(error, MisconfigurationException) or "conditioned on metric" in message
    raised = isinstance(error, REFUSALS) and before_training and raised_by(error.__traceback__).startswith(LIBRARIES)
    if not (known or raised):
        return None
    kind = "" if known or isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: "
    return UserError(f"`trainer`: {kind}{message[:400]}")


def class_fault(message: str) -> str | None:
    """Return the fault of one class (of a logger, a callback) among all the types that jsonargparse tried.

    Args:
        message: of jsonargparse.
    """
    line = " ".join(message.split())
    wrong = re.search(r"Problem with given class_path '([\w.]+)': (.*?)(?= - (?:Expected|Problem|Not a valid)|$)", line)
    if wrong:
        return f"`trainer`: {wrong[1].rpartition('.')[2]}: {wrong[2][:300]}"
    refused = re.search(r"Errors: - (?!Expected|Not a valid|Problem)(.*?) - (?:Expected|Not a valid)", line)
    if refused:
        return f"`trainer`: {refused[1][:300]}"
    unknown = re.search(r"Parser key \"(trainer\.\w+)\":.*Expected a dot import path string: (\S+)", line)
    return (
        unknown
        and f"`{unknown[1].partition('.')[2]}={unknown[2]}`: no class of that name is known; give its whole import path"
    )


def failed_callback(trace: TracebackType | None) -> str | None:
    """Return the Lightning callback in which a library raised an exception; None if it called transferkit's code."""
    inner: list[TracebackType] = []
    for step in walk(trace):
        inner = [] if module_of(step).startswith("transferkit") else [*inner, step]
    within = [step for step in inner if module_of(step).startswith("lightning.pytorch.callbacks")]
    known = within and module_of(inner[-1]).startswith(LIBRARIES)
    return type(within[0].tb_frame.f_locals.get("self")).__name__ if known else None


def module_of(step: TracebackType) -> str:
    """Return the name of the module that a step of a traceback is in."""
    return str(step.tb_frame.f_globals.get("__name__", ""))


def raised_by(trace: TracebackType | None) -> str:
    """Return the name of the module whose code raised an exception."""
    frames = list(walk(trace))
    return module_of(frames[-1]) if frames else ""


def walk(trace: TracebackType | None) -> Iterator[TracebackType]:
    """Yield the entries of a traceback, the innermost last."""
    while trace:
        yield trace
        trace = trace.tb_next
