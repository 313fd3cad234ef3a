"""``explain``: what a trained network looked at in images, and the training images nearest to them."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli import console
from transferkit.cli.open_extractor import Accelerator, open_extractor
from transferkit.cli.parsing import call
from transferkit.errors import UserError, first_line
from transferkit.runtime.text import for_file_name

if TYPE_CHECKING:
    from torch import Tensor

    from transferkit.data.image_table import ImageTable
    from transferkit.extractor import Extractor
    from transferkit.reports.explanations import Explained, Neighbor

SHOWN = 10  # rows of the table
LONGEST = 1024  # pixels of a written picture's longer side


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return call(explain, arguments)


def explain(
    images: str,
    ckpt_path: str = "best",
    name: str | None = None,
    out: str | None = None,
    class_name: str | None = None,
    mistakes: bool = False,
    k: int = 5,
    train: str | None = None,
    image_root: str | None = None,
    accelerator: Accelerator = "auto",
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Show what a trained network looked at in images, and the nearest training images.

    Grad-CAM (Selvaraju et al. 2017): of the last map of a convolutional network, or of the patch tokens that enter
    the last block of a transformer. Unreadable images are left out.

    Args:
        images: class folders, a flat folder, one image, or a CSV or Parquet manifest; labels are not needed.
        ckpt_path: best or last of the newest run of that --name, of any without one; a run directory, a checkpoint,
            or an exported directory with a head.
        name: name of the run.
        out: directory for a picture per image, explanations.json and report.html; by default explained in the run,
            whose report then shows the pictures, too, or here without a run.
        class_name: the class to explain; by default each image's prediction.
        mistakes: only images whose prediction is not their label, the surest first.
        k: number of nearest training images; 0 for none.
        train: the training images, if they have moved or are not those of the run; all images given are used.
        image_root: the folder that a manifest's paths are relative to or lie in, if it is not the manifest's own.
        accelerator: auto is a GPU if there is one.
        overwrite: replace earlier explanations of another network or of other images.
        json: print one JSON object.
    """
    from transferkit.data.asked import ASKED, asked_of, check_earlier
    from transferkit.data.image_table import open_images
    from transferkit.data.targets import require_class
    from transferkit.embed import describe
    from transferkit.reports.explanations import (
        FILE,
        FOLDER,
        checkpoint_sha256,
        explanation_report,
        write_explanations,
    )
    from transferkit.reports.report import report_of
    from transferkit.runtime.files import check_folder
    from transferkit.runtime.json_files import write_json

    if k < 0:
        raise UserError(f"-k is {k}; give 0 or more")
    table = open_images(images, image_root)
    if mistakes and not table.class_names:
        raise UserError(f"--mistakes needs labels, and {images} has none; leave it out")
    run, source = find_trained(ckpt_path, name)
    folder = Path(out) if out is not None else (run or Path()) / FOLDER
    check_folder(folder)
    extractor = open_extractor(str(source), "DEFAULT", None, accelerator)
    require_class(extractor.record.get("target", "class"), "explain")
    options = {"class_name": class_name, "mistakes": mistakes, "k": k}
    asked = asked_of(describe(extractor, table), table, options)
    check_earlier(folder / FILE, asked, overwrite)
    earlier = pictures_in(folder)
    broken: list[str] = []
    missing: list[str] = []
    readers: dict[str, Callable[[], Tensor]] = {}
    found: list[Explained] = []
    embeddings: list[Tensor] = []
    pairs = list(explained(extractor, table, folder, class_name, mistakes, broken))
    if len(broken) == len(table):
        raise UserError(f"none of the {len(table)} images can be read; scan {images} to see why")
    if mistakes:
        pairs.sort(key=lambda pair: -pair[0].probability)
    for each, embedding in pairs:
        found.append(each)
        embeddings.append(embedding)
        readers[each.path] = partial(table.read, table.row_of[each.path])
        readers[each.overlay] = partial(picture, folder / each.overlay)
    if k and found:
        try:
            trained_on = training_images(run, train)
            near = nearest(
                extractor, trained_on, embeddings, [table.file(table.row_of[each.path]) for each in found], k
            )
            found = [replace(each, nearest=[one for one, _ in few]) for each, few in zip(found, near, strict=True)]
            shown = {one.path: partial(trained_on.read, row) for few in near for one, row in few}
            readers = shown | readers  # of one name, the explained image
        except UserError as error:
            missing.append(f"the nearest training images: {first_line(error)}")
    if not found:
        missing.append("mistakes: every image with a label is predicted as it")
    missing += [f"{path} cannot be read" for path in broken]
    content = {
        "checkpoint": str(source),
        "weights_sha256": checkpoint_sha256(source),
        "images": [asdict(each) for each in found],
        "unreadable": broken,
        ASKED: asked,
    }
    write_json(folder / FILE, content)
    for place in earlier - {folder / each.overlay for each in found}:  # no file names them any more
        place.unlink(missing_ok=True)
    write_explanations(explanation_report(found, str(source), missing), readers, folder / "report.html")
    if run is not None and folder == run / FOLDER:
        report_of(run)
    if json:
        console.as_json(content)
    else:
        rows = [(each.path, each.prediction, each.class_name, each.probability, each.overlay) for each in found[:SHOWN]]
        console.table(("path", "prediction", "explained", "probability", "picture"), rows)
    for line in missing:
        console.note(f"not in it: {line}")
    console.written(folder / FILE, folder / "report.html")
    return 0


def find_trained(ckpt_path: str, name: str | None) -> tuple[Path | None, Path]:
    """Return the run, None if there is none, and the checkpoint or exported directory.

    Raises:
        UserError: neither can be found.
    """
    from transferkit.training.run_directory import find_checkpoint, within_run

    place = Path(ckpt_path).expanduser()
    if ckpt_path in ("best", "last") or not place.is_dir():
        return find_checkpoint(Path(), name, ckpt_path)
    found = within_run(place)
    return (None, place) if found == place else find_checkpoint(Path(), None, str(found))


def explained(
    extractor: "Extractor",
    table: "ImageTable",
    folder: Path,
    class_name: str | None,
    mistakes: bool,
    broken: list[str],
) -> "Iterator[tuple[Explained, Tensor]]":
    """Yield each image's explanation, its picture written, and its embedding.

    Args:
        extractor: the extractor.
        table: the images.
        folder: where the pictures are written.
        class_name: the class to explain, or None.
        mistakes: only those whose prediction is not their label.
        broken: filled with the paths of images that cannot be read.
    """
    from transferkit.images.error import ImageError
    from transferkit.reports.explanations import Explained
    from transferkit.runtime.progress import progress_bar

    rows: list[int] = []

    def readable() -> "Iterator[Tensor]":
        for row in range(len(table)):
            try:
                image = table.read(row)
            except ImageError:
                broken.append(table.paths[row])
                continue
            rows.append(row)
            yield image

    with progress_bar("explain", len(table)) as advance:
        for number, one in enumerate(extractor.explain(readable(), class_name)):
            row = rows[number]
            advance(1)
            if mistakes and table.labels[row] in (None, one.prediction):
                continue
            picture_name = f"{row:05d}-{for_file_name(table.paths[row])}.png"
            write_picture(folder / picture_name, one.image, one.heat, one.seen)
            judged = (one.class_name, one.probability, one.prediction)
            yield Explained(table.paths[row], table.labels[row], *judged, picture_name), one.embedding


def pictures_in(folder: Path) -> set[Path]:
    """Return the pictures that earlier explanations in a folder name."""
    from transferkit.reports.explanations import FILE
    from transferkit.reports.result_files import ResultFolder, mapping

    images = ResultFolder(folder).json(FILE).get("images")
    names = [mapping(each).get("overlay") for each in images] if isinstance(images, list) else []
    return {folder / Path(name).name for name in names if isinstance(name, str) and name.endswith(".png")}


def write_picture(path: Path, image: "Tensor", heat: "Tensor", seen: "Tensor") -> None:
    """Write the heat map over its image as PNG, at most 1,024 pixels a side."""
    from PIL import Image

    from transferkit.reports.heat_overlay import overlay
    from transferkit.runtime.files import atomic_path

    drawn = Image.fromarray(overlay(image, heat, seen).movedim(0, -1).contiguous().numpy())
    drawn.thumbnail((LONGEST, LONGEST), reducing_gap=2.0)
    with atomic_path(path) as temporary:
        drawn.save(temporary, "PNG", compress_level=1)


def picture(path: Path) -> "Tensor":
    """Read a picture that was written."""
    from transferkit.images.decoding import read_image

    return read_image(path)


def training_images(run: Path | None, train: str | None) -> "ImageTable":
    """Return the images that a run was trained on, or those that are given instead.

    Raises:
        UserError: there is no run, or its images are not there.
    """
    from transferkit.cli.arguments import read_yaml
    from transferkit.data.image_table import open_images
    from transferkit.data.splits import load_splits
    from transferkit.reports.result_files import find_images

    if train is not None:
        return open_images(train)
    if run is None:
        raise UserError("an export does not name its training images; give them with --train")
    data = read_yaml(run / "config.yaml").get("data") or {}
    source = find_images(data.get("root"), data.get("image_root"), run)
    if source.table is None:
        raise UserError(f"the training images of {run} are not there ({source.reason}); give them with --train")
    table = load_splits(source.table, run / "splits.parquet")
    return table.select(row for row, split in enumerate(table.splits) if split == "train")


def nearest(
    extractor: "Extractor", trained_on: "ImageTable", embeddings: "list[Tensor]", files: list[Path], k: int
) -> "list[list[tuple[Neighbor, int]]]":
    """Return the training images of highest cosine for each image with their rows, without the image itself.

    Args:
        extractor: the extractor.
        trained_on: the training images; their embeddings are cached.
        embeddings: of the images, (D,) each.
        files: of the images.
        k: number of training images.
    """
    import torch

    from transferkit.embed.features import cached_features
    from transferkit.reports.explanations import Neighbor
    from transferkit.similarity import top_k

    train = cached_features(extractor, trained_on)
    cosine, rows = top_k(torch.stack(embeddings), train.embedding, k + 1)
    near = []
    for own, values, found in zip(files, cosine.clamp(-1, 1).tolist(), rows.tolist(), strict=True):
        places = [Path(trained_on.root, train.paths[row]) for row in found]
        several = [
            (Neighbor(relpath(place), train.labels[row], value), trained_on.row_of[train.paths[row]])
            for place, row, value in zip(places, found, values, strict=True)
            if place.absolute() != own.absolute()
        ]
        near.append(several[:k])
    return near
