"""`embed` against the bare forward pass in memory, and against the loop that people write; A B C A B C.

python -m tests.bench.bench_embed EXTRACTOR FOLDER [--images 128] [--rounds 5] [--batch_size 32] [--weights DEFAULT]

bare: eager float32 NCHW on normalised tensors in memory, torch's own threads. loop: PIL, the library's transforms,
`DataLoader(num_workers=2)`, eager float32 NCHW. embed, and embed bf16: from the files to tensors. All four compute
the same embeddings, which is checked. Medians of images/s, and of images a second of processor time, which
other load on the machine changes less (of the loop without its workers).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from transferkit.data.sources import ImageTable, open_images
from transferkit.embed.table import batch_ranges, run
from transferkit.extractor import Extractor


class Pictures(Dataset[Tensor]):
    """Images as people read them: Pillow, then the preprocessing."""

    def __init__(self, table: ImageTable, extractor: Extractor) -> None:
        self.table, self.preprocessing = table, extractor.preprocessing

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> Tensor:
        image = Image.open(f"{self.table.root}/{self.table.paths[row]}").convert("RGB")
        return self.preprocessing(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(
            image.height, image.width, 3
        ).movedim(-1, 0).contiguous())  # fmt: skip


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extractor")
    parser.add_argument("folder")
    parser.add_argument("--weights", default="DEFAULT")
    for name, default in (("images", 128), ("rounds", 5), ("batch_size", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    extractor = Extractor.from_pretrained(options.extractor, options.weights)
    found = open_images(options.folder)
    jpegs = [row for row, path in enumerate(found.paths) if path.endswith(".jpg")]
    table = found.select(jpegs[: options.images])
    batches = batch_ranges(len(table), options.batch_size)
    pictures = Pictures(table, extractor)
    memory = [torch.stack([pictures[row] for row in rows]) for rows in batches]
    forward, half = extractor.forward(), extractor.forward("bf16")

    @torch.inference_mode()
    def bare() -> Tensor:
        return torch.cat([extractor.backbone(pixels) for pixels in memory])

    @torch.inference_mode()
    def loop() -> Tensor:
        return torch.cat(
            [extractor.backbone(pixels) for pixels in DataLoader(pictures, options.batch_size, num_workers=2)]
        )

    ways: dict[str, Callable[[], Tensor]] = {
        "bare": bare,
        "loop": loop,
        "embed": lambda: torch.cat([batch.embedding for batch in run(extractor, table, batches, forward)]),
        "embed bf16": lambda: torch.cat([batch.embedding for batch in run(extractor, table, batches, half)]),
    }
    results = {name: way() for name, way in ways.items()}  # once to warm up
    for name, embedding in results.items():
        cosine = float(torch.cosine_similarity(embedding, results["bare"]).min())
        error = float((embedding - results["bare"]).norm() / results["bare"].norm())
        print(f"{name:<11} smallest cosine to bare {cosine:.6f}, relative error {error:.1e}", flush=True)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    rate = {
        name: [len(table) / statistics.median(column) for column in zip(*taken[name], strict=True)] for name in ways
    }
    for name, (wall, cpu) in rate.items():
        times = ", ".join(f"{wall / rate[other][0]:.2f} x {other}" for other in ways if other != name)
        print(f"{name:<11} {wall:6.1f} images/s, {cpu:6.1f} images/processor second; {times}")


if __name__ == "__main__":
    main()
