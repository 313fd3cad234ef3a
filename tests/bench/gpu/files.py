"""`embed` from JPEG files, against the smaller of its two limits: decoding on all cores, and the forward pass alone."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from tests.bench.gpu.measure import Row, Setting, in_turns, say, seconds
from tests.bench.gpu.networks import resnet, vit_base
from transferkit.data.image_table import ImageTable, open_images
from transferkit.embed.stream import batch_ranges, one_core_each, stream_table, usual_batch_size
from transferkit.extractor import Extractor
from transferkit.images.preprocessing import Preprocessing
from transferkit.images.silence import pillow_silenced
from transferkit.runtime.cores import cores

IMAGES, DISTINCT = 4096, 512


def rows(setting: Setting) -> Iterator[Row]:
    """Yield a row per network, and one on nvJPEG for information."""
    images, distinct = (32, 8) if setting.small else (IMAGES, DISTINCT)
    with TemporaryDirectory() as folder, processes() as pool:
        root = Path(folder, "photographs")
        drawn = seconds(setting.device, partial(draw, pool, root, images, distinct))
        megabytes = sum(path.stat().st_size for path in root.iterdir()) / 2**20
        say(f"{images:,} photographs of {distinct} drawn in {drawn:.0f} s, {megabytes / images * 1024:.0f} KB each")
        table = open_images(root)
        yield from nvjpeg(root, setting)
        networks = {"ResNet18": resnet, "ViT-B/16": lambda: vit_base(setting.small)}
        for name, make in networks.items():
            yield measure(name, make().extractor.to(setting.device), table, pool, setting)


def measure(name: str, extractor: Extractor, table: ImageTable, pool: ProcessPoolExecutor, setting: Setting) -> Row:
    """Time all of it and both limits in turns; each limit is what the same machine does of one part alone."""
    size = 8 if setting.small else usual_batch_size(setting.device)
    ranges = batch_ranges(len(table), size)
    forward, alone = extractor.forward("bf16"), extractor.forward("bf16")
    pixels = torch.randint(0, 256, (size, 3, 224, 224), dtype=torch.uint8, device=setting.device)
    alone.expect(ranges, len(table))

    def whole() -> None:
        for _ in stream_table(extractor, table, ranges, forward, show=False):
            pass

    def compute() -> None:
        for _ in ranges:
            alone(pixels)

    scheme = extractor.preprocessing
    decoders = {
        "threads": partial(decode_in_threads, table, scheme),
        "processes": partial(decode_in_processes, pool, table, scheme),
    }
    for function in (whole, compute, *decoders.values()):  # warm
        function()
    pairs = 1 if setting.small else 3
    times = in_turns(setting.device, whole, compute, *decoders.values(), pairs=pairs)
    rates = [[len(table) / each for each in side] for side in times]
    ours, limits = rates[0], [min(computed, max(decoded)) for computed, *decoded in zip(*rates[1:], strict=True)]
    texts = [f"{what} {max(side):,.0f}" for what, side in zip(("ours", "forward", *decoders), rates, strict=True)]
    note = f"images/s: {', '.join(texts)}; {cores()} cores, bf16, batches of {size}"
    values = [a / b for a, b in zip(ours, limits, strict=True)]
    return Row(f"embed {name} from files", "min(decoding, forward)", values, 0.9, note=note)


def processes() -> ProcessPoolExecutor:
    """Return a process per core, each with one thread; they are forked, and leave the GPU alone."""
    return ProcessPoolExecutor(cores(), get_context("fork"), initializer=torch.set_num_threads, initargs=(1,))


def decode_in_threads(table: ImageTable, scheme: Preprocessing) -> None:
    """Decode and resize all images in a thread per core."""
    with one_core_each(), pillow_silenced(), ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(lambda row: scheme.resize_crop(table.read(row), exact=False), range(len(table))):
            pass


def decode_in_processes(pool: ProcessPoolExecutor, table: ImageTable, scheme: Preprocessing) -> None:
    """Decode and resize all images in a process per core; the pixels stay there."""
    parts = [table.select(range(start, len(table), 2 * cores())) for start in range(2 * cores())]
    assert sum(pool.map(partial(decode_part, scheme=scheme), parts)) == len(table)


def decode_part(table: ImageTable, scheme: Preprocessing) -> int:
    """Decode and resize some images; return their number."""
    return sum(len(scheme.resize_crop(table.read(row), exact=False)) == 3 for row in range(len(table)))


def nvjpeg(root: Path, setting: Setting) -> Iterator[Row]:
    """Yield how fast the GPU decodes, for information: its pixels differ by a gray level or two from the CPU's."""
    if setting.device.type != "cuda":
        return
    from torchvision.io import ImageReadMode, decode_jpeg

    files = sorted(root.iterdir())[:1024]
    data = [torch.from_numpy(np.fromfile(path, dtype=np.uint8)) for path in files]

    def decode(count: int = len(data)) -> list[torch.Tensor]:
        parts = [data[start : start + 128] for start in range(0, count, 128)]
        return [one for part in parts for one in decode_jpeg(part, mode=ImageReadMode.RGB, device="cuda")]

    try:
        theirs = decode(128)[0].cpu().int()
    except RuntimeError as error:  # torchvision built without it
        say(f"nvJPEG: {' '.join(str(error).split())[:120]}")
        return
    apart = (theirs - decode_jpeg(data[0], mode=ImageReadMode.RGB).int()).abs()
    (times,) = in_turns(setting.device, decode, pairs=3)
    note = (
        f"without resize; against the CPU's pixels: mean {apart.double().mean():.2f}, at most {int(apart.max())} levels"
    )
    yield Row("nvJPEG", "", [len(data) / each for each in times], unit=" images/s", note=note)


def draw(pool: ProcessPoolExecutor, root: Path, images: int, distinct: int) -> None:
    """Write JPEGs of 500 x 375 with detail at every scale, as photographs have; the rest are links to them."""
    root.mkdir()
    list(pool.map(partial(draw_one, root), range(distinct), chunksize=8))
    for number in range(distinct, images):
        (root / f"{number:05d}.jpg").hardlink_to(root / f"{number % distinct:05d}.jpg")


def draw_one(root: Path, number: int) -> None:
    """Write one of them."""
    noise = np.random.default_rng(number)
    canvas = np.full((375, 500, 3), 128.0)
    for size in (4, 16, 64, 256):
        layer = Image.fromarray(noise.integers(0, 256, (size, size, 3), dtype=np.uint8)).resize((500, 375))
        canvas += (np.asarray(layer, dtype=float) - 128) * size**-0.3
    Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(root / f"{number:05d}.jpg", quality=90)
