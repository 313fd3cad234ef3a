"""A backbone cut in two before one of its stages: what enters that stage, and the embedding that follows from it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.base import Backbone

TOLERANCE = 1e-6  # of the largest value, between the embedding in two parts and the one in a single pass


class Reached(Exception):
    """A pass has come to the stage before which the network is cut, with this value."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class Uncuttable(Exception):
    """The stages before the cut cannot be left out."""


class Cut:
    """The place between two stages, by names, so that it applies to every copy of the backbone.

    The libraries' own forward functions run in both parts. To leave out the first stages, their modules return zeros
    of the shapes that they gave before, without computing, and what enters the stage after them is replaced.

    Args:
        backbone: the network, in eval mode.
        first: index of the first stage after the cut, at least 1.

    Attributes:
        before: name of the last stage before the cut.
        shape: of what enters the stage after it, for one image.

    Raises:
        Uncuttable: the two parts do not give the embedding of a single pass.
    """

    def __init__(self, backbone: Backbone, first: int) -> None:
        self.before = backbone.stage_names[first - 1]
        names = {module: name for name, module in backbone.named_modules()}
        self.entry = names[next(called(backbone.stage_modules(backbone.stage_names[first])))]
        self.left_out: dict[str, tuple[Any, Any]] = {}  # module -> what it gave for one image, and for two
        self.size = backbone.preprocessing.image_size
        noise = torch.rand(2, 3, *self.size, generator=torch.Generator().manual_seed(0)) * 4 - 2
        pixels = noise.to(next(backbone.parameters()))
        with torch.no_grad():
            modules = {names[part]: part for stage in backbone.stage_names[:first]
                       for part in called(backbone.stage_modules(stage))}  # fmt: skip
            with recorded(modules) as of_one:
                self.enter(backbone, pixels[:1])
            with recorded(modules) as of_two:
                value = self.enter(backbone, pixels)
            both = {name: (output, of_two[name]) for name, output in of_one.items()}
            self.left_out = {
                name: (stand_in(*found, pixels[:1]), stand_in(*found, pixels)) for name, found in both.items()
            }
            self.shape = tuple(value.shape[1:])
            whole, parts = backbone(pixels), self.rest(backbone, value.flatten(1))
        if not torch.allclose(parts, whole, rtol=0, atol=TOLERANCE * float(whole.abs().max())):
            raise Uncuttable(f"{backbone.name} has another embedding if it is cut after {self.before}")

    def enter(self, backbone: Backbone, pixels: Tensor) -> Tensor:
        """Return what enters the stage after the cut: normalized (B, 3, H, W) -> (B, *shape).

        Raises:
            Uncuttable: a pass does not come there.
        """

        def stop(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            raise Reached(inputs[0] if inputs else next(iter(options.values())))

        handle = backbone.get_submodule(self.entry).register_forward_pre_hook(stop, with_kwargs=True)
        try:
            backbone(pixels)
        except Reached as reached:
            return reached.value
        finally:
            handle.remove()
        raise Uncuttable(f"{backbone.name} does not run {self.entry}")

    def rest(self, backbone: Backbone, values: Tensor, layout: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the embedding that follows from what enters the stage after the cut: (B, flat) -> (B, D).

        Args:
            backbone: the whole network.
            values: what entered the stage, flattened.
            layout: changes the layout in memory of (B, *shape), as for a pass through the whole network.
        """
        values = values.reshape(len(values), *self.shape).clone()  # a stage may begin with an operation in place
        values = layout(values) if layout else values

        def replace(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
            if inputs:
                return (values, *inputs[1:]), options
            return inputs, {**options, next(iter(options)): values}

        with ExitStack() as stack:
            for name, (of_one, of_two) in self.left_out.items():
                stack.enter_context(giving(backbone.get_submodule(name), stand_in(of_one, of_two, values)))
            handle = backbone.get_submodule(self.entry).register_forward_pre_hook(replace, with_kwargs=True)
            stack.callback(handle.remove)
            embedding: Tensor = backbone(values.new_zeros(()).expand(len(values), 3, *self.size))
        return embedding


def called(modules: list[nn.Module]) -> Iterator[nn.Module]:
    """Yield modules that are called; of a list, which is not, its items."""
    for module in modules:
        if isinstance(module, nn.ModuleList):
            yield from called(list(module))
        else:
            yield module


@contextmanager
def recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, Any]]:
    """Collect what modules return while the block runs.

    Raises:
        Uncuttable: a module is called more than once.
    """
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if name in outputs:
                raise Uncuttable(f"{name} runs more than once")
            outputs[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def giving(module: nn.Module, output: Any) -> Iterator[None]:
    """Let a module return a value without computing while the block runs."""
    vars(module)["forward"] = lambda *inputs, **options: output
    try:
        yield
    finally:
        del vars(module)["forward"]


def stand_in(of_one: Any, of_two: Any, values: Tensor) -> Any:
    """Return zeros for as many images as there are values, in the structure of an output; they take no memory.

    What has the same shape for one image and for two, such as rotary positions, does not depend on them, and is kept.

    Args:
        of_one: what a module returned for one image.
        of_two: for two images.
        values: (B, ...).

    Raises:
        Uncuttable: it is neither tensors with one row per image nor tuples of such.
    """
    if isinstance(of_one, Tensor) and of_one.shape == of_two.shape:
        return of_one.to(values.device)
    if isinstance(of_one, Tensor):
        if (len(of_one), len(of_two)) != (1, 2):
            raise Uncuttable("a stage gives something that has no row per image")
        return values.new_zeros((), dtype=of_one.dtype).expand(len(values), *of_one.shape[1:])
    if type(of_one) in (tuple, list):
        return type(of_one)(stand_in(*parts, values) for parts in zip(of_one, of_two, strict=True))
    if of_one is None or isinstance(of_one, int | float | str):
        return of_one
    raise Uncuttable(f"a stage gives a {type(of_one).__name__}")


def find_cut(backbone: Backbone, first: int) -> Cut | None:
    """Return the cut before a stage; None where the first stages cannot be left out, or there are none."""
    if not 0 < first < len(backbone.stages):
        return None
    try:
        return Cut(backbone, first)
    except Exception:  # whatever a network makes of stages that are left out
        return None
