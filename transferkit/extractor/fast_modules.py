"""Modules that compute the same as a network's own in less time, for inference.

BatchNorm is folded into convolutions. On processors where it is faster, linear layers go to oneDNN with their weights
packed once, together with the GELU that follows them, rather than to MKL. The processor decides, not a measurement, so
that two runs on one machine give the same bits.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from transferkit.backbones import Backbone


def replica(backbone: Backbone) -> Backbone:
    """Copy the modules, sharing their tensors."""
    return copy.deepcopy(backbone, {id(t): t for t in (*backbone.parameters(), *backbone.buffers())})


def for_inference(backbone: Backbone, dtype: torch.dtype, pack: bool = True) -> Backbone:
    """Return a fast copy of a network, or the network itself if nothing would change.

    BatchNorm is folded into the convolutions before it, these are laid out channels last, and all is cast once. A GPU's
    convolutions are laid out so without BatchNorm, too. The network itself keeps its dtype.

    Args:
        backbone: the network; the copy shares the tensors that do not change.
        dtype: of the copy.
        pack: whether linear layers may be packed, see :func:`packs_linear`.
    """
    convolutional = has_batchnorm(backbone)
    on_cpu = next(backbone.parameters()).device.type == "cpu"
    linear = pack and on_cpu and packs_linear() and any(type(module) is nn.Linear for module in backbone.modules())
    lays_out = convolutional or (not on_cpu and any(isinstance(m, nn.Conv2d) for m in backbone.modules()))
    tensors = (*backbone.parameters(), *backbone.buffers())
    cast = dtype != torch.float32 or any(t.is_floating_point() and t.dtype != dtype for t in tensors)
    shares = not lays_out and not cast
    if shares and not linear:
        return backbone
    fast = replica(backbone) if shares else copy.deepcopy(backbone).eval().requires_grad_(False)
    set_attention = getattr(fast.model, "set_attn_implementation", None)  # a Hugging Face model's
    if set_attention and dtype == torch.bfloat16 and on_cpu:
        set_attention("eager")  # two matrix products take 0.6 of the time of PyTorch's fused attention there
    if convolutional:
        fold_batchnorm(fast.model)
    if lays_out:
        fast.to(memory_format=torch.channels_last)
    fast.to(dtype)
    if linear:
        pack_linear(fast.model)
    return fast


def has_batchnorm(backbone: Backbone) -> bool:
    """Return whether a network normalizes maps by BatchNorm, as convolutional ones do."""
    return any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


def channels_last(backbone: Backbone, values: Tensor) -> Tensor:
    """Lay out an image or a map channels last, for training, where the network is faster with it.

    So are networks with BatchNorm on a CPU: convolutions take the layout of what enters them and keep the layout of
    their weights, and BatchNorm, ReLU and pooling read what they need in one piece.

    Args:
        backbone: what it enters.
        values: (B, C, h, w), or of another shape, and then returned as it is.
    """
    if values.ndim != 4 or values.device.type != "cpu" or not has_batchnorm(backbone):
        return values
    return values.contiguous(memory_format=torch.channels_last)


def fold_batchnorm(module: nn.Module) -> None:
    """Fold every BatchNorm that directly follows a convolution into it.

    See Jacob et al. 2017, arXiv:1712.05877, section 3.2. If a module cannot be traced, its children are tried.
    """
    if not any(isinstance(child, nn.BatchNorm2d) for child in module.modules()):
        return
    try:
        pairs = list(followed(module))
    except Exception:  # control flow that depends on the input may raise anything under tracing
        for child in module.children():
            fold_batchnorm(child)
        return
    for first, second in pairs:
        conv, norm = module.get_submodule(first), module.get_submodule(second)
        if type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            module.set_submodule(first, fuse_conv_bn_eval(conv, norm))
            module.set_submodule(second, nn.Identity())


def followed(module: nn.Module, tracer: fx.Tracer | None = None) -> Iterator[tuple[str, str]]:
    """Yield the names of two submodules, each called once, of which the second alone takes what the first gives."""
    nodes = list((tracer or fx.Tracer()).trace(module).nodes)
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        if calls[before.target] == calls[node.target] == 1:
            yield str(before.target), str(node.target)


@cache
def packs_linear() -> bool:
    """Return whether oneDNN's linear layers are faster than MKL's here.

    On AMD's processors with AVX-512 they are: by a sixth where a core executes 32 float32 operations per cycle (Zen 4),
    where MKL is near the limit, too, and by more where it executes 64 (Zen 5), which MKL does not use.
    """
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_onednn or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False


class PackedLinear(nn.Linear):
    """A linear layer whose weight is in oneDNN's own layout, with the GELU after it; for inference.

    Args:
        linear: the layer, whose tensors are shared.
        gelu: ``none`` or ``tanh``, the approximation of the GELU; ``None`` is without.
    """

    packed: Tensor

    def __init__(self, linear: nn.Linear, gelu: str | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias  # some networks look at them
        self.operation = ("none", "") if gelu is None else ("gelu", gelu)
        with torch.no_grad():
            packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.register_buffer("packed", packed, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features) of (..., in_features)."""
        name, algorithm = self.operation
        output: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, name, [], algorithm)
        return output


def pack_linear(module: nn.Module) -> None:
    """Pack every linear layer in a module, and take the GELU into it that alone takes its output."""
    for parent in list(module.modules()):
        for first, second, approximate in fused(parent):
            parent.set_submodule(first, PackedLinear(parent.get_submodule(first), approximate))  # type: ignore[arg-type]
            parent.set_submodule(second, nn.Identity())
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                parent.set_submodule(name, PackedLinear(child))


def fused(parent: nn.Module) -> list[tuple[str, str, str]]:
    """Return name of a linear child, name of the GELU after it, and its approximation."""
    children = dict(parent.named_children())
    gelus = {name: found for name, child in children.items() if (found := gelu_of(child))}
    if not gelus or not any(type(child) is nn.Linear for child in children.values()):
        return []
    try:
        pairs = list(followed(parent, Shallow()))
    except Exception:  # see fold_batchnorm
        return []
    return [(one, two, gelus[two]) for one, two in pairs if two in gelus and type(children.get(one)) is nn.Linear]


def gelu_of(module: nn.Module) -> str | None:
    """Return which approximation of the GELU a module computes, whatever its class; None if it is none."""
    if next(module.parameters(), None) is not None or "gelu" not in type(module).__name__.lower():
        return None
    probe = torch.linspace(-6, 6, 97)
    with torch.no_grad():
        found = module(probe)
    return next((kind for kind in ("none", "tanh") if torch.equal(found, F.gelu(probe, approximate=kind))), None)


class Shallow(fx.Tracer):
    """A tracer that looks into no submodule."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return true."""
        return True
