"""The forward pass alone, uint8 on the GPU to embeddings there, against a bare one that torch.compile has compiled."""

import copy
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from tests.bench.gpu.measure import Row, Setting, in_turns, ratios, say
from tests.bench.gpu.networks import Network, makers

BATCH, BATCHES = 256, 16


def rows(setting: Setting) -> Iterator[Row]:
    """Yield a row per network, for a pass that is compiled (as for many images) and one that is only recorded."""
    for name, make in makers(setting.small).items():
        yield from measure(name, make(), setting)


@torch.inference_mode()
def measure(name: str, network: Network, setting: Setting) -> Iterator[Row]:
    """Time all three in turns; theirs has normalized pixels in bfloat16 in memory, ours bytes."""
    device, size = setting.device, 4 if setting.small else BATCH
    batches = 2 if setting.small else BATCHES
    extractor = network.extractor.to(device)
    parts = [torch.randint(0, 256, (size, 3, 224, 224), dtype=torch.uint8, device=device) for _ in range(2)]
    normalized = [extractor.preprocessing.normalize(part).bfloat16() for part in parts]
    plain = copy.deepcopy(network.plain).to(device, torch.bfloat16)
    if name.startswith("ResNet"):
        plain = plain.to(memory_format=torch.channels_last)
        normalized = [part.to(memory_format=torch.channels_last) for part in normalized]
    bare = torch.compile(plain, dynamic=False, backend="eager" if setting.small else "inductor")
    begun = time.perf_counter()
    expected = bare(normalized[0]).float()
    say(f"{name}: the bare pass compiled in {time.perf_counter() - begun:.0f} s")
    recorded, compiled = (extractor.forward("bf16") for _ in range(2))
    recorded.expect([range(size)] * 8)
    if not setting.small:
        compiled.expect([range(size)] * 8, images=10**7)
    begun = time.perf_counter()
    compiled(parts[0])
    say(f"{name}: ours compiled in {time.perf_counter() - begun:.0f} s")
    for forward in (recorded, compiled):
        cosine = torch.nn.functional.cosine_similarity(forward(parts[0]), expected).min()
        assert cosine > 0.99, f"another embedding: cosine {cosine:.4f}"

    def many(run: "partial[Tensor]", given: list[Tensor]) -> None:
        for number in range(batches):
            run(given[number % 2])

    pairs = 1 if setting.small else 5
    sides = [(bare, normalized), (compiled, parts), (recorded, parts)]
    theirs, ours, eager = in_turns(device, *(partial(many, *side) for side in sides), pairs=pairs)  # type: ignore[arg-type]
    rates = [size * batches / min(times) for times in (theirs, ours, eager)]
    note = (
        f"batches of {size}, bf16; images/s: theirs {rates[0]:,.0f}, ours {rates[1]:,.0f}, not compiled {rates[2]:,.0f}"
    )
    yield Row(f"forward {name}, compiled", "bare torch.compile", ratios(theirs, ours), 0.8, note=note)
    yield Row(f"forward {name}, recorded", "bare torch.compile", ratios(theirs, eager))
