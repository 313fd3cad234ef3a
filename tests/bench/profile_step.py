"""Profile of a training step: python -m tests.bench.profile_step [resnet18] [--batch 32] [--turns 3] [--threads 1]

Processor seconds of forward pass, backward pass, optimizer and validation, by precision and layout, in turns.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

VARIANTS = {
    "float32": (False, False),
    "float32, channels last": (False, True),
    "bf16-mixed": (True, False),
    "bf16-mixed, channels last": (True, True),
}
PHASES = ("forward", "backward", "optimizer", "validation")


class SmallViT(nn.Module):
    """A DINOv2 ViT-S/14 for images of 224 pixels; its embedding is the class token."""

    def __init__(self) -> None:
        super().__init__()
        config = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 224, "patch_size": 14}
        self.model = transformers.Dinov2Model(transformers.Dinov2Config(**config))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the class token."""
        tokens: Tensor = self.model(pixels).last_hidden_state
        return tokens[:, 0]


def main() -> None:
    """Print the phases of each variant, and how much faster its step and its validation are than the first's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", default="resnet18", help="a name of torchvision, or vit_small")
    for name, default in (("batch", 32), ("turns", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = {name: step_of(options.network, options.batch, *variant) for name, variant in VARIANTS.items()}
    for step in steps.values():
        step()
    turns = [{name: step() for name, step in steps.items()} for _ in range(options.turns)]
    for name in steps:
        spent = " ".join(
            f"{phase} {statistics.median(turn[name][number] for turn in turns):.3f}"
            for number, phase in enumerate(PHASES)
        )
        faster = statistics.median(sum(turn["float32"][:3]) / sum(turn[name][:3]) for turn in turns)
        validates = statistics.median(turn["float32"][3] / turn[name][3] for turn in turns)
        print(f"{name:<26} {spent}; step {faster:.2f} times as fast, validation {validates:.2f}", flush=True)


def step_of(network: str, batch: int, half: bool, channels_last: bool) -> Callable[[], list[float]]:
    """Return a step with AdamW and a validation of one batch; it returns the processor seconds of each phase."""
    torch.manual_seed(0)
    model = SmallViT() if network == "vit_small" else models.get_model(network, weights=None)
    head, target = nn.LazyLinear(2), torch.randint(0, 2, (batch,))
    pixels = torch.randn(batch, 3, 224, 224)
    if channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        head(model.eval()(pixels[:1]))
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], 1e-4, fused=True)

    def step() -> list[float]:
        model.train()
        times = [time.process_time()]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = F.cross_entropy(head(model(pixels)), target)
        times.append(time.process_time())
        loss.backward()  # type: ignore[no-untyped-call]
        times.append(time.process_time())
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time())
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            model(pixels)
        times.append(time.process_time())
        return [end - begin for begin, end in itertools.pairwise(times)]

    return step


if __name__ == "__main__":
    main()
