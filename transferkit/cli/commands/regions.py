"""``regions``: one embedding per box."""

from pathlib import Path
from typing import Literal

from transferkit.cli.console import as_json, next_command, note_first, table, written
from transferkit.cli.open_extractor import Accelerator, Network
from transferkit.cli.parsing import call


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return call(regions, arguments)


def regions(
    images: str,
    boxes: str = "boxes.csv",
    network: Network = Network(),
    out: str = "regions.parquet",
    method: Literal["crop", "roi_align"] = "crop",
    on_error: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
    image_root: str | None = None,
    accelerator: Accelerator = "auto",
    json: bool = False,
) -> int:
    """Embed boxes in images into a Parquet table: path, label, split, embedding, box, x1, y1, x2, y2.

    Rows are sorted by path, then by box: the row of the CSV (from 1, without the header) or COCO's annotation id.
    Boxes are in pixels of the upright image (after its EXIF orientation) and are clipped to it. COCO's width and
    height of an image must be those of the upright one.

    Args:
        images: a folder, manifest or image; only images with boxes are read.
        boxes: a .csv with path,x1,y1,x2,y2[,label], paths relative to the images' folder, or a COCO .json.
        network: the extractor; its pooling is for method crop.
        out: the Parquet file.
        method: crop preprocesses each box as an image of its own; roi_align runs each image once, without its
            center crop, and averages the features in each box.
        on_error: rows that are not a box, boxes outside of their image, given as fractions or for an image of
            another size, and unreadable images: fail names them, skip leaves them out.
        overwrite: replace an earlier table of another extractor, of other images or boxes, or by another method.
        image_root: the folder that a manifest's paths are relative to or lie in, if it is not the manifest's own.
        accelerator: auto is a GPU if there is one.
        json: print one JSON object.
    """
    from transferkit.data.image_table import open_images
    from transferkit.embed.regions import embed_regions, match_boxes, read_boxes, save_regions
    from transferkit.embed.regions.output import check_question, check_regions_place

    check_regions_place(Path(out))
    skipped: list[str] | None = [] if on_error == "skip" else None
    opened = open_images(images, image_root)
    found = match_boxes(boxes, read_boxes(boxes, skipped), opened, skipped)
    extractor = network.open(accelerator, opened)
    if not overwrite:
        check_question(Path(out), extractor, opened, found, method)
    result = embed_regions(extractor, opened, found, method, on_error)
    clipped = [f"row {b.number}, {b.path} {', '.join(f'{value:g}' for value in b[2:6])}" for b in result.clipped]
    note_first("clipped to its image", clipped)
    left_out = [*(skipped or ()), *(f"row {number}, {reason}" for number, reason in result.broken.items())]
    note_first("left out", left_out)
    save_regions(result, out)
    summary = {
        "boxes": len(result.boxes),
        "images": len(set(result.embeddings.paths)),
        "clipped": len(result.clipped),
        "left out": len(left_out),
        "embed_dim": result.embeddings.embedding.shape[1],
        "method": method,
    }
    if json:
        as_json({key.replace(" ", "_"): value for key, value in summary.items()} | {"out": out})
    else:
        table(list(summary), [list(summary.values())])
    written(Path(out))
    next_command("evaluate", out, "--out", Path(out).with_suffix(""))
    return 0
