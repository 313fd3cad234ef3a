"""Whether an error says that a device has no memory left."""

import re

# Messages of the allocators of CUDA, MPS, the CPU, cuBLAS, cuDNN and ONNX Runtime.
NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED|failed to allocate memory", re.IGNORECASE
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed: torch raises RuntimeError, in some cases known only by its text."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error))))
