"""``zeroshot``: images classified by the names of the classes, without training."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transferkit.cli import console
from transferkit.cli.commands.probe import extract
from transferkit.cli.open_extractor import Accelerator, Network
from transferkit.cli.parsing import resumable
from transferkit.errors import UserError

if TYPE_CHECKING:
    from transferkit.probe.zero_shot import ZeroShot

SHOWN = 10  # predictions that are printed where there are no labels


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return resumable(zeroshot, arguments)


def zeroshot(
    images: str,
    network: Network = Network(extractor="google/siglip2-base-patch16-224", pooling="projection"),
    classes: str | None = None,
    templates: list[str] | None = None,
    out: str = "zeroshot",
    split: str | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    image_root: str | None = None,
    accelerator: Accelerator = "auto",
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Classify images by the names of the classes alone, with a model of images and texts.

    Metrics where the images have labels, predictions where not. ``fit --model.head zeroshot`` starts from the same
    head.

    Args:
        images: a folder, manifest or image, ``digits``, or the name of a torchvision dataset.
        network: the extractor: CLIP, SigLIP or another model of images and texts.
        classes: names, separated by commas, or a text file with one per line; by default the labels of the images.
        templates: sentences with {} in the place of the class, such as ["a photo of a {}."]; the mean over them is
            taken. By default eight of CLIP's.
        out: directory for predictions.csv, predictions.parquet, embeddings.parquet, zeroshot.json, metrics.json and
            report.html.
        split: only the images of this split; by default all.
        on_error: unreadable images: fail names the first of them, skip leaves them out.
        image_root: the folder that a manifest's paths are relative to or lie in, if it is not the manifest's own.
        accelerator: auto is a GPU if there is one.
        overwrite: replace earlier results of another model, of other images or other words.
        json: print one JSON object.
    """
    from transferkit.data.asked import ASKED, asked_of, check_earlier
    from transferkit.data.image_table import open_images
    from transferkit.data.targets import require_class
    from transferkit.embed import describe
    from transferkit.extractor.word_head import TEMPLATES, check_names, check_templates
    from transferkit.probe.audit_files import save_tested_audit
    from transferkit.probe.zero_shot import RECORD, classify_by_words, save_zero_shot
    from transferkit.reports.report import report_of
    from transferkit.runtime.files import check_folder

    table = open_images(images, image_root)
    if split is not None:
        rows = [row for row, own in enumerate(table.splits) if own == split]
        if not rows:
            there = ", ".join(sorted({own for own in table.splits if own})) or "none"
            raise UserError(f"--split {split}: no image of {images} is in it; its splits: {there}")
        table = table.select(rows)
    require_class(table.kind, "zeroshot")
    names = read_classes(classes) if classes is not None else table.class_names
    if not names:
        raise UserError(f"{images} has no labels to take the classes from; give their names: --classes ant,bee")
    sentences = TEMPLATES if templates is None else tuple(templates)
    check_names(names)
    check_templates(sentences)
    check_folder(out)
    opened = network.open(accelerator, table)
    if opened.backbone.wordless:
        raise UserError(f"zeroshot needs words: {opened.backbone.wordless}")
    question = {"classes": list(names), "templates": list(sentences)}
    asked = asked_of(describe(opened, table), table, question)
    check_earlier(Path(out) / RECORD, asked, overwrite)
    opened.text  # noqa: B018  # before the images are embedded: its files may be missing
    found = classify_by_words(opened, extract(opened, table, on_error), names, sentences)
    files = save_zero_shot(found, Path(out), {ASKED: asked})
    if found.known:
        files += save_tested_audit(found.embeddings, Path(out))
        files.append(report_of(out, images=images, image_root=image_root))
    show(found, images, json)
    console.written(*files)
    if found.known:
        console.next_command(
            "fit",
            images,
            "--model.backbone",
            network.name,
            "--model.pooling",
            opened.pooling,
            "--model.head",
            "zeroshot",
        )
    return 0


def read_classes(text: str) -> list[str]:
    """Return class names from a text file with one per line, or from a list with commas.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(text)
    if path.suffix.lower() == ".txt":
        try:
            return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--classes {text} cannot be read ({error}); give a text file with a name per line"
            ) from error
    return [name.strip() for name in text.split(",")]


def show(found: "ZeroShot", images: str, json: bool) -> None:
    """Print the metrics, or the first predictions where there are none."""
    metrics = found.metrics
    best = found.probability.argmax(1).tolist()
    if json:
        rows = zip(
            found.embeddings.paths, found.embeddings.labels, best, found.probability.amax(1).tolist(), strict=True
        )
        predictions = [
            {"path": path, "label": label, "prediction": found.class_names[number], "probability": share}
            for path, label, number, share in rows
        ]
        console.as_json({"images": len(best), "scored": len(found.known), **metrics, "predictions": predictions})
    elif metrics:
        console.table(("metric", "value"), list(metrics.items()), f"{images}: {len(found.known):,} images by words")
    else:
        first = range(min(SHOWN, len(best)))
        shares = found.probability
        rows_shown = [
            (found.embeddings.paths[row], found.class_names[best[row]], float(shares[row, best[row]])) for row in first
        ]
        console.table(("path", "prediction", "probability"), rows_shown)
        if len(best) > SHOWN:
            console.note(f"{len(best) - SHOWN:,} more in predictions.csv")
    labeled = sum(label is not None for label in found.embeddings.labels)
    if others := labeled - len(found.known):
        console.note(f"{others:,} images have a label that is not among the classes: predicted, not scored")
