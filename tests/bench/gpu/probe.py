"""The probe of a table of ImageNet's size: 1,281,167 x 768, 1,000 classes, drawn on the GPU."""

import time
from collections.abc import Iterator

import torch

from tests.bench.gpu.measure import Row, Setting, finish, say
from transferkit.probe.linear import C_GRID, COARSE_ENOUGH, fit_linear, logits_of, waves
from transferkit.probe.standardize import KINDS

WIDTH, CLASSES, HELD_OUT = 768, 1000, 20_000
SECONDS = 35  # no further strength is begun after these


def rows(setting: Setting) -> Iterator[Row]:
    """Yield what a sweep takes at the mean of a few fits, of one strength each, as many as there is time for."""
    count, classes, held_out = (3000, 20, 500) if setting.small else (setting.rows, CLASSES, HELD_OUT)
    generator = torch.Generator(setting.device).manual_seed(0)
    centers = torch.randn(classes, WIDTH, device=setting.device, generator=generator)
    target = torch.randint(classes, (count + held_out,), device=setting.device, generator=generator)
    features = torch.randn(count + held_out, WIDTH, device=setting.device, generator=generator)
    features.mul_(8).add_(centers[target])  # classes overlap, as those of a pretrained network do
    start, times, found = time.perf_counter(), list[float](), list[str]()
    for strength in (1e-3, 1e-2, 1e-1, 1e-4):
        if times and time.perf_counter() - start + max(times) > SECONDS:
            break
        begun = time.perf_counter()
        fit = fit_linear(
            features[:count], target[:count], classes, standardization="zscore", c=strength, tolerance=1e-5,
            max_iterations=100,
        )  # fmt: skip
        finish(setting.device)
        times.append(time.perf_counter() - begun)
        weight, bias = fit.weight.to(setting.device), fit.bias.to(setting.device)
        preds = logits_of(features[count:], weight, bias, fit.standardization).argmax(1)
        accuracy = float((preds == target[count:]).double().mean())
        ended = "" if fit.converged else f", gradient still {fit.gradient:.0e}"
        found.append(f"C {strength:g}: {accuracy:.3f} after {fit.iterations} steps{ended}")
        say(f"{found[-1]}, {times[-1]:.1f} s")
    coarse = sum(len(wave) for wave, gap in waves(len(C_GRID)) if gap >= COARSE_ENOUGH)
    fits = len(KINDS) * (coarse + 4)
    mean = sum(times) / len(times)
    note = f"{len(times)} fits, {mean:.1f} s each; {'; '.join(found)}; a sweep from coarse to fine has {fits}"
    yield Row(f"probe sweep {count:,} x {WIDTH}, {classes:,} classes", "", [mean * fits], 600, " s", note)
