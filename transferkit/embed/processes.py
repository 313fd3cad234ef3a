"""Several processes or machines, through Lightning's own strategies; one process needs none of it."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

from transferkit.data.decoding import cores
from transferkit.errors import UserError

MOST_PROCESSES = 8  # a core: more is a slip of the keyboard that would bring the machine down


@dataclass(frozen=True)
class Member:
    """One of the processes.

    Attributes:
        device: where its network runs.
        workers: threads it should use on a CPU.
        rank: its number.
        world_size: how many there are.
        agree: waits for all of them; whether what it is given is true in every one.
    """

    device: torch.device
    workers: int
    rank: int = 0
    world_size: int = 1
    agree: Callable[[bool], bool] = bool


def check_devices(devices: int) -> None:
    """Refuse more processes than a machine can bear.

    Raises:
        UserError: saying how many cores there are.
    """
    if devices > MOST_PROCESSES * cores():
        raise UserError(f"--trainer.devices is {devices}, this machine has {cores()} cores; give no more")


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
    if accelerator not in ("auto", "cpu") and not torch.accelerator.is_available():
        raise UserError(f"--trainer.accelerator {accelerator}: torch finds none here; give auto or cpu")
    devices = devices or int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's
    check_devices(devices)
    nodes = num_nodes or int(os.environ.get("GROUP_WORLD_SIZE", 1))
    if devices * nodes == 1:
        gpu = accelerator != "cpu" and torch.accelerator.is_available()
        device = torch.accelerator.current_accelerator() if gpu else None
        yield Member(device or torch.device("cpu"), cores())
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
        yield Member(
            fabric.device,
            max(1, cores() // devices),
            fabric.global_rank,
            fabric.world_size,
            lambda done: agreed(done, fabric.world_size),
        )
    except KeyboardInterrupt:
        for child in getattr(ddp.launcher, "procs", []):
            child.terminate()
        raise
    finally:
        torch.distributed.destroy_process_group()


def agreed(done: bool, world_size: int) -> bool:
    """Whether something is true in all processes; waits for them."""
    count = torch.tensor(int(done))
    torch.distributed.all_reduce(count)
    return int(count) == world_size
