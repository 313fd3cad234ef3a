"""Versions of what computed a result, for the records that go with it."""

from importlib.metadata import version

import transferkit

LIBRARIES = ("torch", "torchvision", "lightning", "transformers")


def versions() -> dict[str, str]:
    """Version of transferkit and of the libraries whose arithmetic shows in an embedding."""
    return {"transferkit": transferkit.__version__} | {name: version(name) for name in LIBRARIES}
