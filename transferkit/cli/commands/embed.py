"""``embed``: a Parquet table of embeddings of images."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transferkit.cli import console
from transferkit.cli.open_extractor import Accelerator, Network
from transferkit.cli.parsing import resumable

if TYPE_CHECKING:
    from transferkit.embed.shards import Written


@dataclass(frozen=True)
class Processes:
    """The processes that share the work, with the names of Lightning's Trainer.

    Args:
        devices: processes per machine (on a CPU), or GPUs; by default one, or as many as torchrun started.
        num_nodes: number of machines, which share a file system.
        strategy: auto is one process, or ddp for several.
        accelerator: auto is a GPU if there is one.
    """

    devices: int | None = None
    num_nodes: int | None = None
    strategy: Literal["auto", "ddp"] = "auto"
    accelerator: Accelerator = "auto"


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return resumable(embed, arguments)


def embed(
    images: str,
    network: Network = Network(),
    out: str = "embeddings.parquet",
    layer: str | None = None,
    features: Literal["pooled", "tokens", "map"] = "pooled",
    normalize: bool = False,
    preprocessing: dict[str, Any] | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    image_root: str | None = None,
    multilabel: bool = False,
    overwrite: bool = False,
    trainer: Processes = Processes(),
    json: bool = False,
) -> int:
    """Turn images into a Parquet table: path, label, split, embedding.

    Rows are in path order. Killed and started again, the command does only what is missing, and the result is the
    same to the bit. The same holds for any number of processes.

    Args:
        images: folder of class folders, folder with train/val/test, flat folder, one image, CSV/Parquet manifest,
            ``digits``, or name of a torchvision dataset.
        network: the extractor.
        out: the file; ending in a slash, a directory of shards.
        layer: an earlier stage or block, by its name or number: layer3, "block 5", 5. A map is averaged; of
            tokens, the class token is used, or their mean if there is none.
        features: pooled is one embedding per image; tokens and map are the features before pooling, flattened
            (the metadata has the shape).
        normalize: scale embeddings to length 1.
        preprocessing: fields to override, such as {image_size: 160}.
        batch_size: images per forward pass; by default 16 on a CPU, 128 on a GPU.
        workers: number of threads; by default one per core.
        on_error: fail names the first unreadable images and writes no table, skip leaves them out.
        image_root: the folder that a manifest's paths are relative to or lie in, if it is not the manifest's own.
        multilabel: a manifest's label is several, such as cat|dog; lists in Parquet are anyway.
        overwrite: replace a table of another extractor, of other images or labels, or with other options.
        trainer: processes, as in Lightning's Trainer.
        json: print one JSON object.
    """
    from transferkit.data.image_table import open_images
    from transferkit.embed import embed_to_file
    from transferkit.errors import UserError
    from transferkit.runtime.processes import start

    counts = {"trainer.devices": trainer.devices, "trainer.num_nodes": trainer.num_nodes}
    for name, value in {"batch_size": batch_size, "workers": workers, **counts}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; give 1 or more")
    if network.pooling and (layer or features != "pooled"):
        other = f"--layer {layer}" if layer else f"--features {features}"
        raise UserError(f"--pooling {network.pooling} applies to the network's output, not to {other}; leave one out")
    table = open_images(images, image_root, multilabel or None)
    opened = network.read(preprocessing)
    with start(trainer.devices, trainer.num_nodes, trainer.accelerator) as member:
        forward = network.run(opened.to(member.device), table).forward(None, layer, features, normalize)
        begin = time.perf_counter()
        as_folder, threads = out.endswith("/"), workers or member.workers
        done = embed_to_file(opened, table, Path(out), forward, batch_size, on_error, as_folder, threads, overwrite)
        if member.rank == 0:
            summary(done, forward.shape, time.perf_counter() - begin, out, json)
    return 0


def summary(done: "Written", shape: tuple[int, ...], seconds: float, out: str, json: bool) -> None:
    """Print what was written, how fast, and the next command."""
    left_out = [f"{path} ({reason})" for path, reason in done.broken.items()]
    console.note_first("left out", left_out, "; the file's metadata lists all")
    if done.embedded < done.images:
        console.note(f"done in an earlier run: {done.images + len(done.broken) - done.embedded} images")
    width = " × ".join(map(str, shape))
    speed = f"{done.embedded / seconds:.1f}" if done.embedded else None
    row = (done.images, len(done.broken), width, f"{seconds:.1f}", speed)
    if json:
        console.as_json(
            {
                "images": done.images,
                "skipped": dict(done.broken),
                "shape": list(shape),
                "seconds": seconds,
                "images_per_second": done.embedded / seconds,
                "out": out,
            }
        )
    else:
        console.table(("images", "skipped", "width", "seconds", "images/s"), [row])
    console.written(Path(out))
    if len(shape) == 1:
        console.next_command("evaluate", out)
