"""``probe``: what embeddings are worth to a linear classifier, to neighbours, and from a few images."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transferkit.cli import console
from transferkit.cli.open_extractor import Accelerator, open_extractor
from transferkit.cli.parsing import resumable
from transferkit.errors import UserError

if TYPE_CHECKING:
    from transferkit.data.embeddings import Embeddings
    from transferkit.data.image_table import ImageTable
    from transferkit.extractor import Extractor


def main(arguments: list[str]) -> int:
    """Run the command; the exit status."""
    return resumable(probe, arguments)


def probe(
    images: str,
    extractor: str = "resnet18",
    weights: str = "DEFAULT",
    pooling: str | None = None,
    out: str = "probe",
    fast: bool = False,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.2,
    splits: str | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    compare: str | None = None,
    export: str | None = None,
    image_root: str | None = None,
    accelerator: Accelerator = "auto",
    json: bool = False,
) -> int:
    """Measure embeddings with a linear probe, nearest neighbours and few-shot curves.

    Standardisation and C of the linear probe are chosen on val and reported on test, with a 95 % interval. Data
    with train and val only is tested on val, and selects on a part of train; data without splits is divided.

    Args:
        images: folder, manifest, ``digits``, a dataset of torchvision's by name, or an embeddings table (.parquet).
        extractor: torchvision name, Hugging Face id or directory, exported directory, or checkpoint; not used
            for an embeddings table, except by ``--export``.
        weights: ``DEFAULT``, ``none`` (random) or a file of weights.
        pooling: how features become one embedding; by default the extractor's own.
        out: directory for probe.json, classifier.safetensors (fitted on train and val), start.safetensors (on train
            alone, to start a fit from), predictions.parquet and splits.parquet.
        fast: sweep C coarse to fine: a third of the fits, mostly the same choice.
        seed: of the parts that are drawn.
        val_fraction: share of train to select on, where no val is given beside a test.
        test_fraction: share of all to report on, where no splits are given: with one seed the images that fit holds
            out.
        splits: ``splits.parquet`` of a run or of another probe, to use its splits exactly.
        on_error: unreadable images: ``fail`` names them all, ``skip`` leaves them out.
        compare: directory of another probe of the same images; says how this one differs.
        export: directory for the extractor with the classifier as its head.
        image_root: the folder that a manifest's paths are relative to or lie in, where it is not its own.
        accelerator: auto takes a GPU if there is one.
        json: print probe.json instead of the table.
    """
    from transferkit.data.embeddings import Embeddings
    from transferkit.data.image_table import open_images
    from transferkit.data.splits import load_splits, recorded_splits
    from transferkit.probe import compare_predictions, load_predictions, probe_embeddings, save_probe
    from transferkit.reports.report import report_of
    from transferkit.runtime.files import check_folder

    check_folder(out)
    if export and Path(export).exists():
        raise UserError(f"--export {export} exists; choose another directory")
    if export:
        check_folder(Path(export).parent)
    other = load_predictions(compare) if compare else None
    table = None if is_embeddings(images) else open_images(images, image_root)
    opened = open_extractor(extractor, weights, pooling, accelerator) if table or export else None
    table = load_splits(table, splits) if table and splits else table
    embeddings = extract(opened, table, on_error) if opened and table else Embeddings.load(images)
    if splits and not table:
        rows = recorded_splits(embeddings.paths, embeddings.labels, splits, images)
        embeddings = replace(embeddings.select(list(rows)), splits=list(rows.values()))
    result = probe_embeddings(embeddings, fast=fast, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
    more: dict[str, Any] = {}
    if table is not None:
        given = {"source": images, "image_root": image_root, "extractor": extractor, "weights": weights}
        more["images"] = {**given, "pooling": pooling, "on_error": on_error, "splits": splits}
    if other:
        more["comparison"] = {"with": compare, **asdict(compare_predictions(other, result.predictions))}
    content = {**result.report, **more}
    files = save_probe(result, Path(out), more)
    if export and opened:
        head = result.classifier.on(opened)
        head.record["metrics"] = {"test/acc": content["linear"]["top1"]}
        head.save_pretrained(export)
        files.append(Path(export))
    files.append(report_of(out))
    console.as_json(content) if json else print_table(content)
    for line in content["warnings"]:
        console.note(f"warning: {line}")
    console.written(*files)
    if table is None:
        console.next_command("probe", "OTHER.parquet", "--out", f"{out}-other", "--compare", out)
    else:
        how = ["--model.backbone", extractor, *(["--model.weights", weights] if weights != "DEFAULT" else [])]
        how += ["--model.pooling", pooling] if pooling else []
        how += ["--data.image_root", image_root] if image_root else []
        how += ["--data.on_error", on_error] if on_error == "skip" else []
        how += ["--data.splits", f"{out}/splits.parquet", "--model.head", f"{out}/start.safetensors"]
        console.next_command("fit", "--data.root", images, *how, "--model.regime", "full")
    return 0


def is_embeddings(images: str) -> bool:
    """Whether this names an embeddings table or a folder of its shards; a manifest of images may be Parquet, too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(images)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or files[0].suffix.lower() != ".parquet" or not files[0].is_file():
        return False
    try:
        return "embedding" in pq.read_schema(files[0]).names
    except (OSError, pa.ArrowException):
        return False  # said when it is read as a manifest


def extract(extractor: "Extractor", table: "ImageTable", on_error: str) -> "Embeddings":
    """The embeddings of images, from the cache where they are.

    Raises:
        UserError: unreadable images with ``fail``.
    """
    from transferkit.data.integrity import raise_broken
    from transferkit.embed import cached_features

    features = cached_features(extractor, table)
    broken = features.metadata["broken"]
    if broken and on_error == "fail":
        raise_broken(broken, table.source, "leave out with --on_error skip")
    if broken:
        console.note(f"{len(broken)} unreadable images were left out")
    return features


def print_table(content: dict[str, Any]) -> None:
    """The report in a few lines; accuracies in percent."""
    linear, knn, mean, shots = (content[name] for name in ("linear", "knn", "nearest_class_mean", "few_shot"))
    chosen = f"C = {linear['C']:.3g}, standardisation {linear['standardisation']}"
    rows = [
        ["linear, top-1", percent(linear["top1"]), interval(linear), chosen],
        ["linear, mean per class", percent(linear["mean_per_class"]), None, None],
        ["linear, ECE", percent(linear["ece"]), None, "expected calibration error"],
        ["linear, ECE calibrated", percent(linear["ece_calibrated"]), None, f"T = {linear['temperature']:.3g}"],
        ["kNN, top-1", percent(knn["top1"]), interval(knn), f"k = {knn['k']}"],
        ["nearest class mean, top-1", percent(mean["top1"]), interval(mean), None],
    ]
    if linear["top5"] is not None:
        rows.insert(1, ["linear, top-5", percent(linear["top5"]), None, None])
    for point in shots["curve"]:
        spread = f"± {100 * point['std']:.1f} over {len(shots['seeds'])} draws"
        rows.append([f"{point['n_per_class']}-shot, top-1", percent(point["mean"]), None, spread])
    if compared := content.get("comparison"):
        low, high = compared["interval"]
        detail = f"McNemar p = {compared['mcnemar_p']:.2g}; {compared['only_second']} images gained, "
        detail += f"{compared['only_first']} lost"
        against = f"difference to {compared['with']}"
        rows.append([against, f"{100 * compared['difference']:+.1f}", f"{100 * low:+.1f} – {100 * high:+.1f}", detail])
    splits = content["splits"]
    title = f"{len(content['class_names'])} classes; {splits['train']} train, {splits['val']} val, "
    title += f"{splits['test']} test images ({splits['source']})"
    console.table(["measure", "%", "95 % interval", "detail"], rows, title)


def percent(value: float | None) -> str | None:
    """A share in percent, or None."""
    return None if value is None else f"{100 * value:.1f}"


def interval(scores: dict[str, Any]) -> str:
    """Wilson's interval in percent."""
    low, high = scores["top1_interval"]
    return f"{100 * low:.1f} – {100 * high:.1f}"
