"""Several processes or machines, through Lightning's strategies; a single process does not need them."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

from transferkit.errors import UserError
from transferkit.runtime.cores import cores
from transferkit.runtime.ranks import told_once

# Set by torchrun, SLURM, LSF and MPI, or by hand, where a process is one of those of several machines.
LAUNCHERS = ("MASTER_ADDR", "NODE_RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_RANK",
             "PMI_RANK")  # fmt: skip
MOST_PROCESSES = 8  # per core: more is a typing error that would make the machine unusable


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
    """Validate the number of processes per machine.

    Raises:
        UserError: there are far fewer cores.
    """
    if devices > MOST_PROCESSES * cores():
        raise UserError(f"`devices` is {devices}, this machine has {cores()} cores; give no more")


def check_nodes(num_nodes: int | None) -> None:
    """Validate that several machines were asked for by something that starts the processes of all of them.

    Raises:
        UserError: nothing has; this process would wait for the others for ever.
    """
    if num_nodes is not None and num_nodes > 1 and not any(name in os.environ for name in LAUNCHERS):
        raise UserError(
            f"`num_nodes` is {num_nodes}, but nothing here starts the processes of other machines; "
            "start this command with torchrun or srun on each of them, or leave it out"
        )


def find_device(accelerator: str) -> torch.device:
    """Return the device for a network.

    Args:
        accelerator: ``auto`` is a GPU if there is one, otherwise the CPU; ``gpu`` is a GPU of any kind.

    Raises:
        UserError: torch does not find the accelerator.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator == "cpu" or (accelerator == "auto" and found is None):
        return torch.device("cpu")
    if found is None or accelerator not in ("auto", "gpu", found.type):
        known = f"only {found.type}" if found else "none"
        raise UserError(f"`accelerator={accelerator}`: torch finds {known} here; give auto or cpu")
    return found


@contextmanager
def start(devices: int | None = None, num_nodes: int | None = None, accelerator: str = "auto") -> Iterator[Member]:
    """Start the other processes, if any; each of them runs the same command.

    If one dies the others end too: those that wait for it immediately, the first within five seconds.

    Args:
        devices: processes per machine (on a CPU), or GPUs; by default one, or as many as torchrun started.
        num_nodes: machines; they share a file system.
        accelerator: ``auto`` is a GPU if there is one.

    Raises:
        UserError: torch does not find the accelerator, there are far fewer cores than processes, or nothing starts the
            processes of other machines.
    """
    device = find_device(accelerator)
    devices = devices or int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's
    check_devices(devices)
    check_nodes(num_nodes)
    nodes = num_nodes or int(os.environ.get("GROUP_WORLD_SIZE", 1))
    if devices * nodes == 1:
        yield Member(device, cores())
        return
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    for library in ("lightning.pytorch", "lightning.fabric"):  # one imports the other
        logging.getLogger(library).setLevel(logging.WARNING)
    # gloo: only single values are sent, and a dead process is noticed immediately. The timeout is long since one
    # process may have hours of work left when another has finished.
    ddp = DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=30))
    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=ddp)
    fabric.launch()
    try:
        yield Member(fabric.device, max(1, cores() // devices), fabric.global_rank)
    except UserError as error:
        raise told_once(error) from error.__cause__
    except KeyboardInterrupt:
        for child in getattr(ddp.launcher, "procs", []):
            child.terminate()
        raise
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable, for the processes that are started meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
