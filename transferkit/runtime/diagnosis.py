"""Facts about this installation and machine, for ``doctor``: versions, devices, caches, network, missing packages.

Nothing here may fail because of what it is asked about, and no value of an environment variable is shown: they
hold tokens and passwords.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from packaging.requirements import Requirement

import transferkit
from transferkit.errors import UserError, first_line
from transferkit.runtime.cores import cores
from transferkit.runtime.files import cache_dir
from transferkit.runtime.reachability import require_network

LIBRARIES = ("torch", "torchvision", "lightning", "transformers", "numpy", "pillow", "pyarrow", "scikit-learn")
DEVELOPMENT = "dev"  # an extra that only a checkout needs


def library_versions() -> dict[str, str | None]:
    """Return name -> version of Python, transferkit and its libraries; None if one is not installed."""
    own = {"python": platform.python_version(), "transferkit": transferkit.__version__}
    return own | {name: installed_version(name) for name in LIBRARIES}


def installed_version(package: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def devices() -> dict[str, Any]:
    """Return cores, threads, memory and accelerators; if torch cannot be imported, why."""
    found: dict[str, Any] = {"system": platform.platform(), "executable": sys.executable, "cores": cores()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        import torch
    except Exception as error:  # a broken installation is what somebody looks for here
        return found | {"torch_error": first_line(error)}
    found |= {"threads": torch.get_num_threads(), "cuda_build": torch.version.cuda, "accelerators": []}
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    for number in range(torch.accelerator.device_count()) if kind else ():
        named = {"type": kind.type, "number": number} if kind else {}
        if kind and kind.type == "cuda":
            properties = torch.cuda.get_device_properties(number)
            named |= {"name": properties.name, "memory_bytes": properties.total_memory}
        found["accelerators"].append(named)
    return found


def caches() -> dict[str, Path]:
    """Return what is kept -> its folder, which need not exist."""
    found = {"features": cache_dir().absolute() / "features"}
    try:
        import torch
        from huggingface_hub import constants
    except Exception:  # of a broken installation, see devices()
        return found
    return found | {"Hugging Face Hub": Path(constants.HF_HUB_CACHE), "torch hub": Path(torch.hub.get_dir())}


def folder_facts(folder: Path) -> dict[str, Any]:
    """Return the path, whether it exists, its bytes, and the bytes that are free where it is or would be."""
    facts = {"path": str(folder), "exists": folder.is_dir(), "bytes": sum(file_sizes(folder))}
    return facts | {"free_bytes": free_bytes(folder)}


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free where a folder is or would be."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def file_sizes(folder: Path) -> Iterator[int]:
    """Yield the bytes of every file in a folder and those below it; links are not followed, unreadable ones skipped."""
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                yield os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118  # of many files, and Path is slow
            except OSError:
                continue


def hosts() -> list[str]:
    """Return the addresses that weights are downloaded from, without user names and passwords."""
    endpoint = "https://huggingface.co"
    try:
        from huggingface_hub import constants

        endpoint = constants.ENDPOINT
    except Exception:  # of a broken installation, see devices()
        pass
    hub = urlsplit(endpoint)
    port = f":{hub.port}" if hub.port else ""
    return [f"{hub.scheme}://{hub.hostname}{port}", "https://download.pytorch.org"]


def reachable(addresses: list[str]) -> dict[str, bool]:
    """Return address -> whether it, or the proxy for it, can be reached within 2 s."""

    def one(address: str) -> bool:
        try:
            require_network(address, address, "")
        except (UserError, ValueError):
            return False
        return True

    with ThreadPoolExecutor() as pool:
        return dict(zip(addresses, pool.map(one, addresses), strict=True))


def missing_packages() -> dict[str, list[str]]:
    """Return extra -> its packages that are missing or too old, as pip takes them; the extra ``""`` is always needed.

    Empty if transferkit runs from a folder without having been installed.
    """
    try:
        required = [Requirement(line) for line in requires("transferkit") or []]
    except PackageNotFoundError:
        return {}
    extras = sorted({name for each in required if each.marker for name in extras_of(each)} - {DEVELOPMENT})
    found: dict[str, list[str]] = {}
    for extra in ("", *extras):
        needed = [each for each in required if not each.marker or each.marker.evaluate({"extra": extra})]
        own = [each for each in needed if extra == "" or (each.marker and not each.marker.evaluate({"extra": ""}))]
        found[extra] = [f"{each.name}{each.specifier}" for each in own if not is_met(each)]
    return found


def extras_of(requirement: Requirement) -> list[str]:
    """Return the extras that a requirement's marker names."""
    words = str(requirement.marker).replace('"', "'").split("extra == '")[1:]
    return [word.split("'")[0] for word in words]


def is_met(requirement: Requirement) -> bool:
    """Whether the package is installed in a version that is allowed."""
    found = installed_version(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)
