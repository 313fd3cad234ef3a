"""The versions that results record."""

import platform
from importlib.util import find_spec

import numpy as np
import torch

from transferkit.runtime import versions as module


def test_everything_that_changes_numbers_is_named() -> None:
    found = module.versions()
    assert found["numpy"] == np.__version__ and found["python"] == platform.python_version()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert ("timm" in found) == (find_spec("timm") is not None)
