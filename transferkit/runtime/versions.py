"""Versions of the libraries that computed a result, for its metadata."""

import platform
from importlib.metadata import PackageNotFoundError, version

import transferkit

LIBRARIES = ("torch", "torchvision", "lightning", "transformers", "numpy")
OPTIONAL = ("timm",)


def versions() -> dict[str, str]:
    """Return the versions of transferkit, Python and the libraries that affect the values of an embedding."""
    found = {"transferkit": transferkit.__version__, "python": platform.python_version()}
    found |= {name: version(name) for name in LIBRARIES}
    for name in OPTIONAL:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
