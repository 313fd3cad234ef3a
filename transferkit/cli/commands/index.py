"""``index``: a directory of embeddings to search in."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli.console import as_json, next_command, note, note_first, table, written
from transferkit.cli.open_extractor import Accelerator, Network
from transferkit.cli.parsing import resumable

if TYPE_CHECKING:
    from transferkit.search.build import Change
    from transferkit.search.index import ImageIndex


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return resumable(index, arguments)


def index(
    images: str,
    network: Network = Network(extractor=None),
    out: str = "index",
    index: str | None = None,
    overwrite: bool = False,
    image_root: str | None = None,
    accelerator: Accelerator = "auto",
    json: bool = False,
) -> int:
    """Embed images into a directory that `transferkit search` searches.

    Run again on the same directory, it embeds only new and changed images and drops those that no longer exist. An
    image has changed when its file differs in size, times, or sampled content.

    Args:
        images: a folder, manifest or image.
        network: the extractor; by default the one that the index was built with, for a new index resnet18.
        out: the index directory.
        index: exact; auto (by size: exact, HNSW32, or IVF-PQ); or a factory string of faiss, such as Flat,
            HNSW32 or IVF1024,PQ64. By default the existing kind, for a new index exact.
        overwrite: replace an index of other images or another extractor.
        image_root: the folder that a manifest's paths are relative to or lie in, if it is not the manifest's own.
        accelerator: auto is a GPU if there is one.
        json: print one JSON object.
    """
    from transferkit.backbones.families import PROJECTION
    from transferkit.data.image_table import open_images
    from transferkit.search.build import absolute_source, build_index
    from transferkit.search.index import open_index

    source = absolute_source(network.name, network.weights)
    old = open_index(out) if not overwrite and (Path(out) / "index.json").is_file() else None
    if network.extractor is None and old:
        network = network_of(old, network)
        source = {"source": network.name, "weights": network.weights}
    network = replace(network, extractor=source["source"], weights=source["weights"], revision=None)
    images_table = open_images(images, image_root)
    made = old.quantization if old and not network.int8_images else None
    opened = network.open(accelerator, images_table, made)
    built, change = build_index(images_table, out, opened, source, index, overwrite)
    report(built, change, asked=index, json=json)
    if opened.backbone.wordless and PROJECTION in opened.backbone.poolings:
        note(f"it cannot be asked by words with pooling {opened.pooling}; give --pooling {PROJECTION} for that")
    written(Path(out))
    next_command("search", out, "QUERY.jpg", "-k", "10")
    return 0


def network_of(index: "ImageIndex", given: Network = Network()) -> Network:
    """Return the network that an index was built with; a pooling, engine or precision that is given replaces its own.

    Raises:
        UserError: its files have been moved or deleted.
    """
    recorded = index.record["extractor"]
    source, weights = index.source()
    own = {name: getattr(given, name) or recorded.get(name) for name in ("pooling", "engine", "precision")}
    if own["precision"] != recorded.get("precision"):  # the engine goes with it
        own["engine"] = given.engine
    return Network(source, weights, int8_images=given.int8_images, **own)


def report(built: "ImageIndex", change: "Change", asked: str | None, json: bool) -> None:
    """Print what was indexed, and the recall of the index."""
    from transferkit.search.faiss_index import INSTALL, is_installed

    left_out = [f"{path} ({reason})" for path, reason in change.broken.items()]
    note_first("left out", left_out, f"; transferkit scan {built.images.root} lists them")
    if change.zero_rows:
        note(f"{change.zero_rows} images have an embedding of zeros: their cosine with everything is 0")
    if asked == "auto":
        note(f"--index auto chose {built.kind} for {len(built):,} images")
        if not is_installed():
            note(f"faiss would answer faster from 50,000 images on: {INSTALL}")
    quality = built.record["faiss"] or {"recall@10": 1.0, "standard_error": 0.0, "settings": {}, "sample": None}
    if built.record.get("words"):
        note("it can be asked by words, too: transferkit search " + f'{built.folder} --text "a red mushroom"')
    result = {
        "images": len(built),
        "added": change.added,
        "refreshed": change.refreshed,
        "removed": change.removed,
        "unreadable": len(change.broken),
        "index": built.kind,
        "recall@10": quality["recall@10"],
    }
    if json:
        measured = {name: quality[name] for name in ("standard_error", "settings", "sample")}
        as_json(result | measured | {"out": str(built.folder)})
    else:
        table(list(result), [list(result.values())])
        if built.record["faiss"]:
            setting = "".join(f" at {name} {value}" for name, value in quality["settings"].items())
            error = f"{quality['recall@10']:.3f} ± {quality['standard_error']:.3f} (standard error)"
            note(f"recall@10 against exact search on {quality['sample']} sampled images{setting}: {error}")
