"""Several processes or machines, through Lightning's own strategies; one process needs none of it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

from transferkit.errors import UserError
from transferkit.runtime.cores import cores

MOST_PROCESSES = 8  # a core: more is a slip of the keyboard that would bring the machine down


@dataclass(frozen=True)
class Member:
    """One of the processes.

    Attributes:
        device: where its network runs.
        workers: threads it should use on a CPU.
        rank: its number.
    """

    device: torch.device
    workers: int
    rank: int = 0


def check_devices(devices: int) -> None:
    """Refuse more processes than a machine can bear.

    Raises:
        UserError: saying how many cores there are.
    """
    if devices > MOST_PROCESSES * cores():
        raise UserError(f"--trainer.devices is {devices}, this machine has {cores()} cores; give no more")


def find_device(accelerator: str, option: str) -> torch.device:
    """Where a network is to run.

    Args:
        accelerator: ``auto`` is a GPU if there is one, else the CPU; ``gpu`` one of whatever kind.
        option: what it was given by.

    Raises:
        UserError: there is none of that kind.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator == "cpu" or (accelerator == "auto" and found is None):
        return torch.device("cpu")
    if found is None or accelerator not in ("auto", "gpu", found.type):
        there = f"{found.type} alone" if found else "none"
        raise UserError(f"{option} {accelerator}: torch finds {there} here; give auto or cpu")
    return found


@contextmanager
def start(devices: int | None = None, num_nodes: int | None = None, accelerator: str = "auto") -> Iterator[Member]:
    """Start the other processes, if there are to be any; each of them runs this very command.

    Where one dies the others end too: those that wait for it at once, the first within five seconds.

    Args:
        devices: processes a machine (on a CPU), or GPUs; by default one, or as many as torchrun started.
        num_nodes: machines; they share a file system.
        accelerator: ``auto`` takes a GPU if there is one.

    Raises:
        UserError: another accelerator than there is, or far more processes than cores.
    """
    device = find_device(accelerator, "--trainer.accelerator")
    devices = devices or int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's
    check_devices(devices)
    nodes = num_nodes or int(os.environ.get("GROUP_WORLD_SIZE", 1))
    if devices * nodes == 1:
        yield Member(device, cores())
        return
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    for library in ("lightning.pytorch", "lightning.fabric"):  # the one brings the other
        logging.getLogger(library).setLevel(logging.WARNING)
    # gloo: nothing but a yes or no is ever sent, and a dead process is noticed at once. One process may have
    # hours of work left where another has none.
    ddp = DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=30))
    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=ddp)
    fabric.launch()
    try:
        yield Member(fabric.device, max(1, cores() // devices), fabric.global_rank)
    except KeyboardInterrupt:
        for child in getattr(ddp.launcher, "procs", []):
            child.terminate()
        raise
    finally:
        torch.distributed.destroy_process_group()
