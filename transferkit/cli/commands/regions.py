"""``regions``: one embedding a box."""

from pathlib import Path
from typing import Literal

from transferkit.cli.console import as_json, next_command, note, table, written
from transferkit.cli.open_extractor import Accelerator, open_extractor
from transferkit.cli.parsing import call


def main(arguments: list[str]) -> int:
    """Run the command; the exit status."""
    return call(regions, arguments)


def regions(
    images: str,
    boxes: str = "boxes.csv",
    extractor: str = "resnet18",
    out: str = "regions.parquet",
    method: Literal["crop", "roi_align"] = "crop",
    pooling: str | None = None,
    weights: str = "DEFAULT",
    on_error: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
    image_root: str | None = None,
    accelerator: Accelerator = "auto",
    json: bool = False,
) -> int:
    """Embed boxes in images into a Parquet table: path, label, split, embedding, box, x1, y1, x2, y2.

    Rows are sorted by path, then by box: the row of the CSV (from 1, without the header) or COCO's annotation id.
    Boxes are in pixels of the upright image (after its EXIF orientation); what reaches out of it is clipped. COCO's
    width and height of an image must be those of the upright one.

    Args:
        images: a folder, manifest or image; only images with boxes are read.
        boxes: a .csv with path,x1,y1,x2,y2[,label], paths relative to the images' folder, or a COCO .json.
        extractor: torchvision name, Hugging Face id or directory, exported directory or checkpoint.
        out: the Parquet file.
        method: crop puts each box through the preprocessing as an image of its own; roi_align runs each image
            once, without its centre crop, and averages the features in each box.
        pooling: how features become one embedding (crop); by default the extractor's own.
        weights: DEFAULT or a weights file, for a torchvision or Hugging Face extractor.
        on_error: rows that are no box, boxes outside of their image, given as fractions or for an image of another
            size, and unreadable images: fail names them, skip leaves them out.
        overwrite: replace an earlier table of regions.
        image_root: the folder that a manifest's paths are relative to or lie in, where it is not its own.
        accelerator: auto takes a GPU if there is one.
        json: print one JSON object.
    """
    from transferkit.data.image_table import open_images
    from transferkit.embed.regions import check_regions_place, embed_regions, match_boxes, read_boxes, save_regions

    check_regions_place(Path(out), overwrite)
    skipped: list[str] | None = [] if on_error == "skip" else None
    opened = open_images(images, image_root)
    found = match_boxes(boxes, read_boxes(boxes, skipped), opened, skipped)
    result = embed_regions(open_extractor(extractor, weights, pooling, accelerator), opened, found, method, on_error)
    for box in result.clipped[:5]:
        note(f"clipped to its image: row {box.number}, {box.path} {', '.join(f'{value:g}' for value in box[2:6])}")
    if len(result.clipped) > 5:
        note(f"clipped: {len(result.clipped) - 5} more")
    left_out = [*(skipped or ()), *(f"row {number}, {reason}" for number, reason in result.broken.items())]
    for reason in left_out[:5]:
        note(f"left out: {reason}")
    if len(left_out) > 5:
        note(f"left out: {len(left_out) - 5} more")
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
