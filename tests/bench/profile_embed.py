"""Profile of `embed`: python -m tests.bench.profile_embed [resnet|vit_small|vit_base] [--images 64]

Each step by itself, on one core, in milliseconds of processor time an image; `embed` does whole batches on one core
each, so their sum is what a core spends. Below, the operators of the forward pass (torch.profiler).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.bench import inputs
from tests.bench.row_embed import embed
from tests.bench.timing import seconds
from transferkit.data.image_table import open_images
from transferkit.embed import describe
from transferkit.embed.stream import make_table
from transferkit.images.decoding import decode


def main() -> None:
    """Print the steps, their sum beside the total, and the operators."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("resnet", "vit_small", "vit_base"), nargs="?", default="resnet")
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    with inputs.workplace() as place:
        folder = inputs.photographs(place, options.images)
        extractor = getattr(inputs, options.network)(place).extractor()
        embed(extractor, folder, place)
        whole = seconds(lambda: embed(extractor, folder, place)).cpu
        torch.set_num_threads(1)
        table, forward = open_images(folder), extractor.forward()
        files = [Path(table.root, path) for path in table.paths]
        data = [file.read_bytes() for file in files]
        images = [decode(content) for content in data]
        pixels = torch.stack([extractor.preprocessing.resize_crop(image) for image in images]).split(inputs.BATCH)
        embedding = torch.cat([forward(batch) for batch in pixels])
        steps: dict[str, Callable[[], Any]] = {
            "list the folder": lambda: open_images(folder),
            "read the files": lambda: [file.read_bytes() for file in files],
            "decode": lambda: [decode(content) for content in data],
            "resize, crop": lambda: [extractor.preprocessing.resize_crop(image) for image in images],
            "normalise": lambda: [extractor.preprocessing.normalize(batch) for batch in pixels],
            "normalise, forward": lambda: [forward(batch) for batch in pixels],
            "once: fold BatchNorm": extractor.forward,
            "once: hash weights, describe": lambda: describe(extractor, table, forward=forward),
            "write Parquet": lambda: make_table(table, range(len(table)), embedding, {}).save(place / "table.parquet"),
        }
        spent = {name: min(seconds(step).cpu for _ in range(3)) for name, step in steps.items()}
        total = sum(spent.values()) - spent["normalise"]
        for name, took in spent.items():
            print(f"{name:<30} {1000 * took / len(files):8.2f} ms per image  {took / total:6.1%}")
        print(f"{'sum':<30} {1000 * total / len(files):8.2f} ms per image")
        print(f"{'embed, total':<30} {1000 * whole / len(files):8.2f} ms per image")
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            forward(pixels[0])
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=8, max_name_column_width=40))


if __name__ == "__main__":
    main()
