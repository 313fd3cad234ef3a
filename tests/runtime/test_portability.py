"""Systems that lack what Linux has: every module can be imported, and what loading processes get can be pickled."""

import importlib
import os
import pickle
import pkgutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import transferkit
from transferkit.data.datamodule import ImageDataModule
from transferkit.images.preprocessing import Preprocessing

POSIX_MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "posix")
POSIX_ONLY = (
    "register_at_fork",
    "sched_getaffinity",
    "fork",
    "getuid",
    "geteuid",
    "getpgid",
    "setpgid",
    "killpg",
    "mkfifo",
)
POSIX_SIGNALS = ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "alarm", "pthread_kill")


@pytest.fixture
def windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Our modules are imported anew, without what only POSIX systems have."""
    modules = dict(sys.modules)
    forget_ours()
    for name in POSIX_MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    for name in POSIX_ONLY:
        monkeypatch.delattr(os, name, raising=False)
    for name in POSIX_SIGNALS:
        monkeypatch.delattr(signal, name, raising=False)
    yield
    forget_ours()
    sys.modules.update(modules)


def forget_ours() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "transferkit"]:
        del sys.modules[name]


def test_every_module_can_be_imported(windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [name for _, name, _ in pkgutil.walk_packages(transferkit.__path__, "transferkit.")]
    assert len(modules) > 90
    for name in modules:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    names = ("cli.dispatch", "runtime.files", "runtime.cores")
    cli, files, cores = (importlib.import_module(f"transferkit.{name}") for name in names)
    monkeypatch.setattr(signal, "set_wakeup_fd", None)  # which takes sockets alone there
    assert cli.run(["--version"]) == 0
    assert cores.cores() >= 1
    with files.atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("x")
    files.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    cells = importlib.import_module("transferkit.probe.benchmark.cells")
    with cells.locked(tmp_path):
        pass


@pytest.fixture
def data(photo_folder: Path) -> ImageDataModule:
    data = ImageDataModule(str(photo_folder), augmentation="light", batch_size=4, num_workers=1)
    data.preprocessing = Preprocessing.imagenet()
    data.setup("fit")
    return data


def test_what_loading_processes_get_can_be_pickled(data: ImageDataModule) -> None:
    """Where they are not forked (Windows, macOS) nothing else reaches them."""
    for loader in (data.train_dataloader(), data.val_dataloader()):
        parts = (loader.dataset, loader.sampler, loader.worker_init_fn, loader.collate_fn)
        dataset, sampler, *_ = pickle.loads(pickle.dumps(parts))
        for item in sampler:
            assert torch.equal(dataset[item]["pixels"], loader.dataset[item]["pixels"])


@pytest.mark.slow
def test_spawned_processes_load_what_forked_ones_do(data: ImageDataModule) -> None:
    batches = []
    for context in ("fork", "spawn"):
        loader = data.train_dataloader()
        again: DataLoader[dict[str, torch.Tensor]] = DataLoader(
            loader.dataset,
            batch_size=None,
            sampler=loader.sampler,
            num_workers=1,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=context,
        )
        batches.append([batch["pixels"] for batch in again])
    assert all(map(torch.equal, *batches))
