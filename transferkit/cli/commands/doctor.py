"""``doctor``: what is installed and where, what is missing, and what can be reached."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transferkit.cli import console
from transferkit.cli.parsing import call
from transferkit.runtime.text import for_terminal


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return call(doctor, arguments)


def doctor(offline: bool = False, json: bool = False) -> int:
    """Show versions, devices, caches, free disk, network, and what is missing for which extra.

    Tokens and passwords are never shown: the output can be pasted into a report of a problem.

    Args:
        offline: do not try to reach the hosts that weights are downloaded from.
        json: print one JSON object.
    """
    from transferkit.runtime import diagnosis

    found = {
        "versions": diagnosis.library_versions(),
        "devices": diagnosis.devices(),
        "caches": {name: diagnosis.folder_facts(folder) for name, folder in diagnosis.caches().items()},
        "working_folder": {"free_bytes": diagnosis.free_bytes(Path())},
        "network": {} if offline else diagnosis.reachable(diagnosis.hosts()),
        "missing": diagnosis.missing_packages() | missing_formats(),
    }
    if json:
        console.as_json(found)
    else:
        for line in lines(found):
            print(for_terminal(line))
    return 0


def missing_formats() -> dict[str, list[str]]:
    """Return a format of images -> the package that reads it, if it is missing; empty without torch."""
    try:
        from transferkit.images.formats import missing_plugins
    except ImportError:  # of torch, which the section on the machine tells
        return {}
    return {f"{name} images": [package] if package else [] for name, package in missing_plugins().items()}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the facts as lines of text, in sections."""
    devices = found["devices"]
    yield from section("versions", {name: version or "not installed" for name, version in found["versions"].items()})
    machine = {"system": devices["system"], "executable": devices["executable"], "cores": devices["cores"]}
    if "memory_bytes" in devices:
        machine["memory"] = console.format_size(devices["memory_bytes"])
    if "torch_error" in devices:
        machine["torch"] = f"cannot be imported: {devices['torch_error']}"
    else:
        machine["threads"] = devices["threads"]
        machine |= {f"{each['type']}:{each['number']}": accelerator(each) for each in devices["accelerators"]}
        if not devices["accelerators"]:
            machine["accelerator"] = f"none; torch is built for {devices['cuda_build'] or 'the CPU'}"
    yield from section("machine", machine)
    here = {"here": f"{console.format_size(found['working_folder']['free_bytes'])} free"}
    yield from section("caches", {name: folder(each) for name, each in found["caches"].items()} | here)
    reached = {address: "reached" if ok else "cannot be reached" for address, ok in found["network"].items()}
    yield from section("network", reached or {"not tried": "--offline"})
    names = {"": "transferkit itself"}
    yield from section("packages", {names.get(extra, extra): install(need) for extra, need in found["missing"].items()})


def section(title: str, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a title and one line per fact."""
    yield title
    width = max(map(len, facts), default=0)
    yield from (f"  {name:<{width}}  {value}" for name, value in facts.items())


def accelerator(facts: Mapping[str, Any]) -> str:
    """Return an accelerator's name and memory, if torch tells them."""
    memory = f", {console.format_size(facts['memory_bytes'])}" if "memory_bytes" in facts else ""
    return f"{facts.get('name', facts['type'])}{memory}"


def folder(facts: Mapping[str, Any]) -> str:
    """Return a cache's size, free space and path."""
    size = console.format_size(facts["bytes"]) if facts["exists"] else "nothing yet"
    return f"{size}, {console.format_size(facts['free_bytes'])} free, {facts['path']}"


def install(missing: list[str]) -> str:
    """Return the command that installs packages, or that there is nothing to install."""
    return f"missing: pip install {shlex.join(missing)}" if missing else "complete"
