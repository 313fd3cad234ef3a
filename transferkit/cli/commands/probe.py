"""``probe``: accuracy of a linear classifier, nearest neighbors and few-shot classifiers on embeddings."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transferkit.cli import console, probe_tables
from transferkit.cli.open_extractor import Accelerator, Network
from transferkit.cli.parsing import resumable
from transferkit.cli.probe_images import write_about_images
from transferkit.errors import UserError

if TYPE_CHECKING:
    from transferkit.data.embeddings import Embeddings
    from transferkit.data.image_table import ImageTable
    from transferkit.extractor import Extractor


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    return resumable(probe, arguments)


def probe(
    images: str,
    network: Network = Network(),
    out: str = "probe",
    fast: bool = False,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.2,
    splits: str | None = None,
    folds: int | None = None,
    few_shot_draws: int | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    compare: str | None = None,
    export: str | None = None,
    image_root: str | None = None,
    accelerator: Accelerator = "auto",
    multilabel: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Measure embeddings with a linear probe, nearest neighbors and few-shot curves.

    Standardization and C of the linear probe are chosen on val and reported on test, with a 95 % interval. Data
    with only train and val is tested on val, with a part of train to select on; data without splits is split. Several
    labels per image are probed one against the rest, a number (a manifest's column target) by ridge regression.
    With two classes, C acts as 2 C does in scikit-learn's LogisticRegression, which has one weight vector for both.

    Args:
        images: folder, manifest, ``digits``, name of a torchvision dataset, or an embeddings table (.parquet).
        network: the extractor; not used for an embeddings table, except by ``--export``.
        out: directory for probe.json, classifier.safetensors (fitted on train and val), start.safetensors (on train
            only, to start a fit from), predictions.parquet and splits.parquet.
        fast: sweep C coarse to fine: a third of the fits, usually with the same choice.
        seed: seed of the drawn splits.
        val_fraction: share of train to select on, if no val is given beside a test.
        test_fraction: share of all images to report on, if no splits are given; with the same seed, those that fit
            holds out.
        splits: ``splits.parquet`` of a run or of another probe, to use its splits exactly.
        folds: probe this many times, each time with another fold as the test (stratified, groups together; given splits
            are not used); the probes are in numbered folders of ``out``, means and spread in folds.json.
        few_shot_draws: draws of the few-shot curves, of which mean and spread are reported; by default 5.
        on_error: unreadable images: ``fail`` names the first of them, ``skip`` leaves them out.
        compare: directory of another probe of the same images, to compare this one with.
        export: directory for the extractor with the classifier as its head.
        image_root: the folder that a manifest's paths are relative to or lie in, if it is not the manifest's own.
        accelerator: auto is a GPU if there is one.
        multilabel: a manifest's label is several, such as cat|dog; lists in Parquet are anyway.
        overwrite: replace an earlier probe of another extractor, of other images, or with other options; and an export.
        json: print probe.json instead of the table.
    """
    from transferkit.data.asked import ASKED, asked_of
    from transferkit.data.embeddings import Embeddings
    from transferkit.data.image_table import open_images
    from transferkit.data.seen import backbone_seen
    from transferkit.data.splits import load_splits, recorded_splits
    from transferkit.data.targets import require_class
    from transferkit.embed import describe
    from transferkit.extractor.pretrained import check_export_place
    from transferkit.probe import compare_predictions, load_predictions, probe_targets, save_probe
    from transferkit.probe.fewshot import SEEDS
    from transferkit.probe.own_paths import with_own_paths
    from transferkit.runtime.files import check_folder
    from transferkit.runtime.processes import find_device

    if few_shot_draws is not None and few_shot_draws < 1:
        raise UserError(f"--few_shot_draws is {few_shot_draws}; give 1 or more")
    check_folder(out)
    if folds is not None:
        check_folds_alone(folds, splits, compare, export)
    if export:
        check_folder(Path(export).parent)
        check_export_place(Path(export), overwrite)
    other = load_predictions(compare) if compare else None
    table = None if is_embeddings(images) else open_images(images, image_root, multilabel or None)
    opened = network.open(accelerator, table) if table or export else None
    table = load_splits(table, splits) if table and splits else table
    options: dict[str, Any] = {"coarse_to_fine": fast, "seed": seed, "val_fraction": val_fraction}
    question = {
        **options,
        "test_fraction": test_fraction,
        "folds": folds,
        "few_shot_draws": few_shot_draws or len(SEEDS),
    }
    if opened and table:
        asked = asked_of(describe(opened, table), table, question)
        check_place(Path(out), asked, overwrite)  # before the images are embedded, which takes a while
        embeddings = extract(opened, table, on_error)
    else:
        embeddings = with_own_paths(Embeddings.load(images))
        if splits:
            rows = recorded_splits(embeddings.paths, embeddings.labels, splits, images)
            embeddings = replace(embeddings.select(list(rows)), splits=list(rows.values()))
        asked = asked_of(embeddings.metadata, embeddings, question)
        check_place(Path(out), asked, overwrite)
    if compare:
        require_class(embeddings.kind, "--compare")
    device = opened.device if opened else find_device(accelerator)
    if few_shot_draws is not None:
        require_class(embeddings.kind, "--few_shot_draws")
        options["few_shot_seeds"] = range(few_shot_draws)
    if folds is not None:
        seen = backbone_seen(opened.record) if opened else ""
        return probe_folds(embeddings, folds, Path(out), json, images, asked, seen, device=device, **options)
    result = probe_targets(embeddings, test_fraction=test_fraction, device=device, **options)
    if opened:
        result.warn_of_seen(backbone_seen(opened.record))
    more: dict[str, Any] = {ASKED: asked, **({} if table else {"table": images})}
    if table is not None:
        given = {"source": images, "image_root": image_root, "extractor": network.name, "weights": network.weights}
        more["images"] = {**given, "pooling": network.pooling, "on_error": on_error, "splits": splits}
    if other:
        more["comparison"] = {"with": compare, **asdict(compare_predictions(other, result.predictions))}
    content = {**result.report, **more}
    files = save_probe(result, Path(out), more)
    if export and opened:
        head = result.classifier.as_head_of(opened)
        head.record["metrics"] = probe_tables.card_metrics(content)
        head.save_pretrained(export, overwrite)
        files.append(Path(export))
    files += write_about_images(result, embeddings, Path(out))
    console.as_json(content) if json else PRINTED[embeddings.kind](content)
    for line in content["warnings"]:
        console.note(f"warning: {line}")
    console.written(*files)
    if table is None:
        console.next_command("probe", "OTHER.parquet", "--out", f"{out}-other", "--compare", out)
    else:
        how = ["--model.backbone", network.name]
        how += ["--model.weights", network.weights] if network.weights != "DEFAULT" else []
        how += ["--model.pooling", network.pooling] if network.pooling else []
        how += ["--data.image_root", image_root] if image_root else []
        how += ["--data.multilabel", "true"] if embeddings.kind == "labels" else []
        how += ["--data.on_error", on_error] if on_error == "skip" else []
        how += ["--data.splits", f"{out}/splits.parquet", "--model.head", f"{out}/start.safetensors"]
        console.next_command("fit", "--data.root", images, *how, "--model.regime", "full")
    return 0


def check_folds_alone(folds: int, splits: str | None, compare: str | None, export: str | None) -> None:
    """Validate the number of folds, and that nothing is asked beside them that needs one probe.

    Raises:
        UserError: too few folds, or such an option.
    """
    if folds < 2:
        raise UserError(f"--folds is {folds}; give 2 or more")
    for name, value in (("splits", splits), ("compare", compare), ("export", export)):
        if value:
            raise UserError(f"--{name} is for one probe, not for --folds; leave one of them out")


def check_place(out: Path, asked: dict[str, Any], overwrite: bool) -> None:
    """Refuse a directory with another probe, or with folds of one, unless they may be replaced.

    Raises:
        UserError: it holds the results of something else.
    """
    from transferkit.cli.fit_folds import RECORD
    from transferkit.data.asked import check_earlier
    from transferkit.probe.saved_probe import REPORT

    for name in (REPORT, RECORD):
        check_earlier(out / name, asked, overwrite)


def probe_folds(
    embeddings: "Embeddings",
    folds: int,
    out: Path,
    json: bool,
    images: str,
    asked: dict[str, Any],
    seen: str,
    **options: Any,
) -> int:
    """Probe every fold, and print the mean and the spread; return the exit status.

    Args:
        embeddings: of all images.
        folds: K.
        out: where the probes are written, each into a folder named by its number.
        json: whether to print one JSON object.
        images: what was given, for the title.
        asked: what the probes answer, to be recorded.
        seen: the images that the backbone was trained on, as ``backbone_seen`` returns them.
        options: of ``probe_embeddings``.
    """
    from transferkit.cli.fit_folds import RECORD, print_spread, summarize
    from transferkit.data.asked import ASKED
    from transferkit.data.seen import seen_by_backbone
    from transferkit.probe import probe_targets, save_probe
    from transferkit.probe.fold_tables import fold_tables
    from transferkit.runtime.json_files import write_json

    found = []
    for fold, table in enumerate(fold_tables(embeddings, folds, options["seed"])):
        result = probe_targets(table, **options)
        result.warn_of_seen(seen)
        save_probe(result, out / str(fold), {ASKED: {**asked, "fold": fold}})
        write_about_images(result, table, out / str(fold))
        found.append(probe_tables.headline_measures(result.report))
        name, value = next(iter(found[-1].items()))
        said = f"linear top-1 {percent(value)} %" if name == "linear/top1" else f"{name} {value:.4g}"
        console.note(f"fold {fold} of {folds}: {said}, {out / str(fold)}")
    spread = summarize(found)
    content = {"folds": folds, "runs": [str(out / str(fold)) for fold in range(folds)], "metrics": spread}
    write_json(out / RECORD, content | {ASKED: asked})
    if json:
        console.as_json(content)
    else:
        print_spread(spread, f"{images}: {folds} folds")
    for line in seen_by_backbone({"the folds": embeddings.paths}, seen):
        console.note(f"warning: {line}")
    console.written(out / RECORD)
    return 0


def is_embeddings(images: str) -> bool:
    """Return whether this is an embeddings table or a folder of its shards; a manifest may be Parquet, too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(images)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or files[0].suffix.lower() != ".parquet" or not files[0].is_file():
        return False
    try:
        return "embedding" in pq.read_schema(files[0]).names
    except (OSError, pa.ArrowException):
        return False  # reading it as a manifest raises


def extract(extractor: "Extractor", table: "ImageTable", on_error: str) -> "Embeddings":
    """Return the embeddings of images, from the cache if they are there.

    Raises:
        UserError: unreadable images with ``fail``.
    """
    from transferkit.data.integrity import raise_broken
    from transferkit.embed import cached_features

    features = cached_features(extractor, table)
    broken = features.metadata["broken"]
    if broken and on_error == "fail":
        raise_broken(broken, table.source, "leave out with --on_error skip", len(table))
    if broken:
        console.note(f"left out: {len(broken)} unreadable images")
    return features


def print_table(content: dict[str, Any]) -> None:
    """Print the report in a few lines; accuracies in percent."""
    linear, knn, mean, shots = (content[name] for name in ("linear", "knn", "nearest_class_mean", "few_shot"))
    chosen = f"C = {linear['C']:.3g}, standardization {linear['standardisation']}"
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
        spread = f"± {100 * point['std']:.1f} over {len(shots['seeds'])} draws, "
        spread += f"standard error {100 * point['standard_error']:.1f}"
        rows.append([f"{point['n_per_class']}-shot, top-1", percent(point["mean"]), None, spread])
    if compared := content.get("comparison"):
        low, high = compared["interval"]
        detail = f"McNemar p = {compared['mcnemar_p']:.2g}; {compared['only_second']} images gained, "
        detail += f"{compared['only_first']} lost"
        against = f"difference from {compared['with']}"
        rows.append([against, f"{100 * compared['difference']:+.1f}", f"{100 * low:+.1f} – {100 * high:+.1f}", detail])
    splits = content["splits"]
    title = f"{len(content['class_names'])} classes; {splits['train']} train, {splits['val']} val, "
    title += f"{splits['test']} test images ({splits['source']})"
    console.table(["measure", "%", "95 % interval", "detail"], rows, title)


PRINTED = {"class": print_table, "labels": probe_tables.print_labels, "number": probe_tables.print_number}


def percent(value: float | None) -> str | None:
    """Format a share in percent; None stays None."""
    return None if value is None else f"{100 * value:.1f}"


def interval(scores: dict[str, Any]) -> str:
    """Format the Wilson interval in percent."""
    low, high = scores["top1_interval"]
    return f"{100 * low:.1f} – {100 * high:.1f}"
