"""The probe's sweep against scikit-learn's warm-started one: `python tests/bench/bench_probe.py --help`.

Both fit every C of the grid under every standardization on the same rows, to the same gradient tolerance, and
choose by the accuracy on the same validation rows; the test accuracy of both choices is printed. With
`--agreement N` it says instead how often, over N drawn data sets, the fast sweep makes the full one's choice.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from transferkit.probe.linear import C_GRID, logits_of, sweep
from transferkit.probe.standardize import KINDS


def draw(rows: int, width: int, classes: int, gap: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return features like pooled activations: a decaying spectrum, a common mean, none below zero."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (rows,), generator=generator)
    spectrum = torch.arange(1, width + 1) ** -0.7
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    means = gap * torch.randn(classes, width, generator=generator)
    noise = 3 * torch.randn(rows, width, generator=generator)
    features = ((means[target] + noise) * spectrum) @ rotation
    return features.mul_(3).add_(0.3).relu_(), target


def sklearn_sweep(parts: list[Tensor], targets: list[Tensor], tolerance: float) -> tuple[float, float, int]:
    """Return seconds, test accuracy of the choice, and the number of fits that did not converge."""
    started, best, missed = time.perf_counter(), (-1.0, 0.0, 0.0), 0
    train, val, test = (part.numpy() for part in parts)
    y, y_val, y_test = (target.numpy() for target in targets)
    for kind in KINDS:
        a, b, c = train, val, test
        if kind == "l2":
            a, b, c = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, val, test))
        if kind == "zscore":
            mean, scale = train.mean(0), train.std(0)
            a, b, c = ((x - mean) / scale for x in (train, val, test))
        model = LogisticRegression(solver="lbfgs", warm_start=True, tol=tolerance, max_iter=1000)
        for strength in C_GRID:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ConvergenceWarning)
                model.set_params(C=strength).fit(a, y)
            missed += bool(caught)
            accuracy = float((model.predict(b) == y_val).mean())
            if (accuracy, -strength) > best[:2]:
                best = accuracy, -strength, float((model.predict(c) == y_test).mean())
    return time.perf_counter() - started, best[2], missed


def compare(options: argparse.Namespace) -> None:
    """Run both sweeps on one dataset."""
    parts, targets = data(options, seed=0)
    before = peak_memory(reset=True)
    started = time.perf_counter()
    found = sweep(
        parts[0],
        targets[0],
        parts[1],
        targets[1],
        options.classes,
        coarse_to_fine=options.fast,
        tolerance=options.tolerance,
    )
    seconds = time.perf_counter() - started
    extra = (peak_memory() - before) / parts[0].nbytes
    best = found.best
    preds = logits_of(parts[2], best.weight, best.bias, best.standardization).argmax(1)
    accuracy = (preds == targets[2]).double().mean().item()
    print(
        f"transferkit   {seconds:8.1f} s  test accuracy {accuracy:.4f}  not converged {int((~found.converged).sum())}"
    )
    print(
        f"              {best.standardization}, C = {best.c:g}; memory beside the features: {extra:.1f} copies of them"
    )
    theirs, their_accuracy, missed = sklearn_sweep(parts, targets, options.tolerance)
    print(f"scikit-learn  {theirs:8.1f} s  test accuracy {their_accuracy:.4f}  not converged {missed}")
    print(f"ratio         {theirs / seconds:8.1f}")


def agreement(options: argparse.Namespace) -> None:
    """Print how often the fast sweep makes the same choice as the full one, and what it loses otherwise."""
    same, losses = 0, []
    for seed in range(options.agreement):
        parts, targets = data(options, seed)
        full, fast = (
            sweep(
                parts[0],
                targets[0],
                parts[1],
                targets[1],
                options.classes,
                coarse_to_fine=coarse,
                tolerance=options.tolerance,
            )
            for coarse in (False, True)
        )
        same += (full.best.standardization, full.best.c) == (fast.best.standardization, fast.best.c)
        losses.append((full.accuracy.max() - fast.accuracy.nan_to_num(-1).max()).item())
    print(
        f"same choice in {same} of {options.agreement}; validation accuracy lost: "
        f"mean {np.mean(losses):.4f}, largest {max(losses):.4f}"
    )


def peak_memory(*, reset: bool = False) -> int:
    """Return the peak resident bytes of this process since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def data(options: argparse.Namespace, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return train, validation and test rows and their classes."""
    sizes = [options.rows, options.held_out, options.held_out]
    features, target = draw(sum(sizes), options.width, options.classes, options.gap, seed)
    return [part.clone() for part in torch.split(features, sizes)], list(torch.split(target, sizes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--held-out", type=int, default=5_000, help="validation rows, and as many test rows")
    parser.add_argument("--gap", type=float, default=0.45, help="distance of the classes")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="scikit-learn's default is 1e-4")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--agreement", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    (agreement if arguments.agreement else compare)(arguments)
