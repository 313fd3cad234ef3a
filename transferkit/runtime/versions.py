"""Versions of the libraries that computed a result, for its metadata."""

from importlib.metadata import version

import transferkit

LIBRARIES = ("torch", "torchvision", "lightning", "transformers")


def versions() -> dict[str, str]:
    """Return the versions of transferkit and of the libraries that affect the values of an embedding."""
    return {"transferkit": transferkit.__version__} | {name: version(name) for name in LIBRARIES}
