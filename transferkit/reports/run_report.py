"""The report of a run directory: of ``fit`` what it learned, of ``test`` what that is worth."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transferkit.data.embeddings import Embeddings
from transferkit.data.integrity import recall
from transferkit.data.targets import Kind
from transferkit.errors import listed
from transferkit.reports import audit_sections, data_sections, leak_section, prediction_sections, target_sections
from transferkit.reports.content import UNREAD, Headline, Report, Section
from transferkit.reports.explanations import looked_at
from transferkit.reports.mistakes import PredictionTable
from transferkit.reports.numbers import Number, count, decimal, percent
from transferkit.reports.result_files import (
    ImageSource,
    ResultFolder,
    find_images,
    is_fine_tuned,
    mapping,
    place_of_images,
    versions_in,
)
from transferkit.runtime.files import file_sha256
from transferkit.similarity.intervals import wilson

NAMES = {
    "acc_top5": "top-5 accuracy",
    "f1_macro": "macro F1",
    "ece": "calibration error",
    "loss": "loss",
}
BY_WORDS = "zeroshot.json"  # classes are told apart by words, so that nothing is trained
METRICS, ROWS, EMBEDDINGS, SPLITS = "metrics.json", "metrics.csv", "embeddings.parquet", "splits.parquet"
UNCALIBRATED = {  # tested split -> why its probabilities are not calibrated
    "test": "the data had no labeled val split to calibrate on, or the classifier was fitted on it",
    "validation": "val itself was tested, on which the temperature is fitted; that takes a test split",
}
NO_DUPLICATES = Section("duplicates", "Near-duplicates and leaks", "The embeddings cannot be compared.", [])
Splits = data_sections.Splits
MOST_BYTES = 2**31  # of files that are hashed to find leaks


def run_report(
    folder: ResultFolder, images: str | None = None, image_root: str | None = None
) -> tuple[Report, ImageSource]:
    """Return the report of a run, and where its images are.

    Args:
        folder: the run directory.
        images: where the images are now; by default where the run's configuration says.
        image_root: of a manifest.
    """
    config, metrics = folder.yaml("config.yaml"), folder.json(METRICS)
    data = mapping(config.get("data"))
    source = find_images(*place_of_images(images, image_root, data, "root"), folder.path)
    predictions, embeddings = folder.predictions(), folder.embeddings()
    splits = folder.columns(SPLITS, "path", "label", "split")
    others = target_sections.measured(metrics)
    tested = tested_split(predictions, splits)
    by_words = (folder.path / BY_WORDS).exists()
    folder.missing += not_there(folder.path, predictions, "" if by_words else tested, bool(others))
    if source.table is None:
        folder.missing.append(f"thumbnails: {source.reason}")
    sections: list[Section | None] = []
    if predictions is not None:
        sections += judged(predictions, number(metrics, "test/ece"))
    seen, pictures = looked_at(folder, source.table.row_of if source.table else ())
    source = replace(source, pictures=pictures)
    sections.append(seen)
    if predictions is not None:
        sections += audit_sections.tested_images(folder)
    if embeddings is not None:
        duplicates = folder.part(
            EMBEDDINGS,
            lambda: data_sections.near_duplicates(embeddings, images="tested images", fine_tuned=is_fine_tuned(config)),
            NO_DUPLICATES,
        )
        copies = folder.part(SPLITS, lambda: leaks(splits, source), "")
        sections.append(
            leak_section.with_leaks(duplicates, copies, [] if by_words else leak_section.leak_blocks(folder))
        )
    if predictions is not None:
        sections.append(prediction_sections.calibration(predictions, number(metrics, "test/ece")))
    measured = metrics.get("test/epoch", metrics.get("val/epoch"))
    rows = folder.rows(ROWS)
    sections.append(folder.part(ROWS, lambda: data_sections.learning_curves(rows, measured), None))
    if embeddings is not None:
        sections.append(folder.part(EMBEDDINGS, lambda: data_sections.embedding_map(embeddings, predictions), None))
    kind = target_sections.KINDS.get(others, "class")
    sections.append(folder.part(SPLITS, lambda: used_images(splits, source, kind), None))
    sections.append(repeat(folder.path, config, embeddings))
    made = embeddings.metadata if embeddings is not None else {}
    name = "/".join(folder.path.absolute().parts[-2:])
    top = folder.part(
        METRICS,
        lambda: (
            target_sections.run_headline(metrics, METRICS) if others else headline(predictions, metrics, splits, tested)
        ),
        UNREAD,
    )
    report = Report(
        name,
        "Run",
        top,
        [section for section in sections if section],
        folder.missing,
        versions_in(made).get("transferkit", ""),
    )
    return report, source


def not_there(run: Path, predictions: PredictionTable | None, tested: str, others: bool) -> list[str]:
    """Say what a report of a run lacks since a file was not written, and why, one line each.

    Args:
        run: the directory.
        predictions: of classes; None without a test, or of several labels or a number.
        tested: word for the split that they are of; empty if there is nothing to calibrate.
        others: whether several labels or a number are predicted.
    """
    lines = []
    if predictions is None and not others:
        lines.append("predictions, mistakes and calibration: nothing was tested yet")
    if not (run / EMBEDDINGS).exists():
        lines.append(f"near-duplicates, leaks and the map: {EMBEDDINGS}, which a test writes, is not there")
    if tested and predictions is not None and predictions.calibrated is None:
        lines.append(f"confidence after calibration: {UNCALIBRATED[tested]}")
    trained_here = (run / "config.yaml").exists()
    for name, what in ((ROWS, "learning curves"), (SPLITS, "how many images of what")):
        if trained_here and not (run / name).exists():
            lines.append(f"{what}: {name} is not there")
    return lines


def judged(predictions: PredictionTable, error: Number | None) -> list[Section | None]:
    """Return the sections of mistakes, in order."""
    return [
        prediction_sections.worst_classes(predictions),
        prediction_sections.confusions(predictions),
        prediction_sections.mistakes_section(predictions),
    ]


def number(metrics: Mapping[str, Any], name: str) -> Number | None:
    """Return a metric, if it was measured."""
    value = metrics.get(name)
    if not isinstance(value, int | float):
        return None
    share = name.endswith(("acc", "acc_top5", "f1_macro", "ece"))
    return percent(value, f"{METRICS} {name}") if share else decimal(value, f"{METRICS} {name}")


def headline(
    predictions: PredictionTable | None, metrics: Mapping[str, Any], splits: Mapping[str, Sequence[Any]], tested: str
) -> Headline:
    """Return the accuracy on test; before a test that on val; without either, that there is none."""
    part = "test" if predictions is not None else "val"
    found = {title: number(metrics, f"{part}/{name}") for name, title in NAMES.items()}
    stats = [(title, value) for title, value in found.items() if value]
    if predictions is not None:
        stats.append(("images", count(len(predictions), "predictions.parquet")))
        stats.append(("classes", count(len(set(predictions.labels)), "predictions.parquet")))
        done = prediction_sections.accuracy_headline(predictions, tested, stats)
        if tested == "validation":
            more = " There is no test split: the best checkpoint was chosen on these images, so expect less elsewhere."
            return Headline(done.value, done.name, done.sentence + more, done.interval, done.stats)
        return done
    accuracy, cosine = number(metrics, "val/acc"), number(metrics, "val/cosine")
    if cosine is not None:  # a student, see `distill`
        sentence = "Of embeddings of held-out images, after a linear map; 1 is to give what the teacher gives."
        return Headline(cosine, "cosine with the teacher", sentence)
    if accuracy is None:
        return Headline(None, "nothing measured yet", "This run was neither validated nor tested.")
    rows = list(splits.get("split", ())).count("val")
    interval = None
    sentence = "Measured on the validation images, on which the best checkpoint was chosen. Test it for a fair number."
    if rows:
        low, high = wilson(round(accuracy.value * rows), rows)
        interval = percent(low, "wilson low"), percent(high, "wilson high")
        sentence = f"{round(accuracy.value * rows):,} of {rows:,} images are classified correctly. {sentence}"
    return Headline(accuracy, "accuracy on validation", sentence, interval, stats)


def tested_split(predictions: PredictionTable | None, splits: Mapping[str, Sequence[Any]]) -> str:
    """Return the word for what was tested: ``test``, or ``validation`` where there is no test split."""
    if predictions is None or not splits.get("path"):
        return "test"
    split_of = dict(zip(splits["path"], splits["split"], strict=True))
    return "validation" if split_of.get(predictions.paths[0]) == "val" else "test"


def leaks(splits: Mapping[str, Sequence[Any]], source: ImageSource) -> str:
    """Say whether files of different splits have the same bytes; only files of equal size are read."""
    if source.table is None or source.table.in_memory or not splits.get("path"):
        return ""
    by_size: dict[int, list[tuple[str, str]]] = {}
    root = Path(source.table.root)
    for path, split in zip(splits["path"], splits["split"], strict=True):
        try:
            by_size.setdefault((root / path).stat().st_size, []).append((path, split))
        except OSError:
            continue
    suspects = {size: files for size, files in by_size.items() if len({split for _, split in files}) > 1}
    if sum(size * len(files) for size, files in suspects.items()) > MOST_BYTES:
        return "Whether splits share files was not checked, since too many have the same size."
    found = []
    for files in suspects.values():
        by_hash: dict[str, list[tuple[str, str]]] = {}
        for path, split in files:
            digest = file_sha256(root / path)
            by_hash.setdefault(digest, []).append((path, split))
        found += [same for same in by_hash.values() if len({split for _, split in same}) > 1]
    if not found:
        return "No file of one split is a byte-for-byte copy of a file in another."
    shown = listed([f"{one[0][0]} ({one[0][1]}) = {one[-1][0]} ({one[-1][1]})" for one in found], quote=False)
    return f"Leaks: files with the same bytes lie in different splits: {shown}."


def used_images(splits: Splits, source: ImageSource, kind: Kind) -> Section | None:
    """Return how many images of which class are in which split, and how many were left out."""
    readable, unread = without_unreadable(splits, source)
    counted = data_sections.data_counts(readable, SPLITS, kind)
    return replace(counted, lead=counted.lead + unread) if counted else None


def without_unreadable(splits: Splits, source: ImageSource) -> tuple[Splits, str]:
    """Return the images without those that are known to be unreadable, which nothing was computed on, and how many."""
    if source.table is None or source.table.in_memory or not splits.get("path"):
        return splits, ""
    row_of = source.table.row_of
    known = recall(source.table, [row_of[path] for path in splits["path"] if path in row_of])
    kept = [row for row, path in enumerate(splits["path"]) if not known.get(path)]
    lost = Counter(splits["split"]) - Counter(splits["split"][row] for row in kept)
    if not lost:
        return splits, ""
    words = ", ".join(f"{images:,} {name}" for name, images in lost.items())
    return {name: [column[row] for row in kept] for name, column in splits.items()}, f" Unreadable, left out: {words}."


def repeat(run: Path, config: Mapping[str, Any], embeddings: Embeddings | None) -> Section:
    """Return the commands, the main options and the versions."""
    made = embeddings.metadata if embeddings is not None else {}
    file = str(run / "config.yaml")
    verb = "distill" if "teacher" in config else "fit"
    commands = [shlex.join(["transferkit", verb, "--config", file])] if config else []
    if commands and embeddings is not None:
        best = str(run / "checkpoints" / "best.ckpt")
        commands.append(shlex.join(["transferkit", "test", "--config", file, "--ckpt_path", best]))
    model, data = mapping(config.get("model")), mapping(config.get("data"))
    facts: list[tuple[str, Any]] = [
        (name, str(section[key]))
        for name, section, key in (
            ("data", data, "root"),
            ("backbone", model, "backbone"),
            ("weights", model, "weights"),
            ("pooling", model, "pooling"),
            ("regime", model, "regime"),
            ("augmentation", data, "augmentation"),
            ("seed", config, "seed_everything"),
            *((name, config, name) for name in ("teacher", "student", "weights", "views", "epochs")),
        )
        if section.get(key) is not None
    ]
    if embeddings is not None and (sha := embeddings.metadata.get("weights_sha256")):
        facts.append(("weights SHA-256", str(sha)))
    return data_sections.provenance(commands, facts, config, versions_in(made))
