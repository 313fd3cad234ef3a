"""Reading weights from files and caches: tensors only, and never a long wait for a hub that is not there."""

import hashlib
import pickle
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch
from safetensors.torch import load_file
from torch import Tensor

from transferkit.errors import UserError


def read_tensors(path: str | Path) -> Any:
    """Read a ``.safetensors`` file, or plain types and tensors that ``torch.save`` wrote, on the CPU.

    Raises:
        UserError: it is no such file, or holds anything else; code in it is refused, never run.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both raise whatever a broken or hostile file makes them raise
        raise UserError(
            f"{path} is not a weights file ({first_line(error)}); "
            "give a .safetensors file or a state dict saved with torch.save(model.state_dict(), FILE)"
        ) from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a file that :func:`read_tensors` takes.

    A dict under the key ``state_dict`` or ``model`` is unwrapped, a ``module.`` prefix taken off.

    Raises:
        UserError: no such file, or a file that holds anything but tensors.
    """
    if not Path(path).is_file():
        raise UserError(f"weights file {path} does not exist; give a .safetensors file or a saved state dict")
    content = read_tensors(path)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict (name -> tensor); save one with model.state_dict()")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def check_keys(
    path: str | Path,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    misshapen: Iterable[str] = (),
) -> None:
    """Refuse weights that do not fit the architecture.

    Raises:
        UserError: naming the tensors that are missing, unexpected or of another shape.
    """
    for kind, tensors in (
        ("lacks tensors", missing),
        ("has unexpected tensors", unexpected),
        ("has tensors of another shape:", misshapen),
    ):
        if names := sorted(tensors):
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise UserError(f"{path} {kind} {shown}; is it for another architecture?")


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors in the order of their names: name, dtype, shape and bytes of each."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def require_network(url: str, what: str, remedy: str) -> None:
    """Check within 2 s that the host of ``url`` (or the proxy for it) can be reached.

    Raises:
        UserError: it cannot, with the remedy.
    """
    target = urlsplit(url)
    proxy = getproxies().get(target.scheme)
    if proxy and not proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy)
    try:
        port = target.port or (443 if target.scheme == "https" else 80)
        socket.create_connection((target.hostname or "", port), timeout=2).close()
    except OSError as error:
        raise UserError(f"{what}: not in the local cache, and {target.hostname} cannot be reached; {remedy}") from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, at most 160 characters."""
    if isinstance(error, pickle.UnpicklingError):  # torch's text advises to run the code in the file
        return "broken, or more than plain tensors in it"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
