"""The report of a probe's directory."""

import math
import shlex
from collections.abc import Mapping
from typing import Any

from transferkit.data.embeddings import Embeddings
from transferkit.reports import audit_sections, data_sections, leak_section, prediction_sections, svg, target_sections
from transferkit.reports.content import UNREAD, Block, Cell, Chart, Charts, Headline, Remark, Report, Section, Table
from transferkit.reports.numbers import Number, count, decimal, percent
from transferkit.reports.result_files import (
    ImageSource,
    ResultFolder,
    find_images,
    mapping,
    place_of_images,
    text,
    versions_in,
)

PROBE, SPLITS = "probe.json", "splits.parquet"


def probe_report(
    folder: ResultFolder,
    embeddings: Embeddings | None = None,
    images: str | None = None,
    image_root: str | None = None,
) -> tuple[Report, ImageSource]:
    """Return the report of a probe, and where its images are.

    Args:
        folder: the probe's directory.
        embeddings: of the test images, where they are at hand.
        images: where the images are now; by default where the probe found them.
        image_root: of a manifest.
    """
    content = folder.json(PROBE)
    given = mapping(content.get("images"))
    source = find_images(*place_of_images(images, image_root, given), folder.path)
    predictions = folder.predictions()
    target = content.get("target", "class")
    if predictions is None and target == "class":
        folder.missing.append("mistakes and calibration: the probe's predictions.parquet is not there")
    if source.table is None:
        folder.missing.append(f"thumbnails: {source.reason}")
    linear = mapping(content.get("linear"))
    measured = measures if target == "class" else target_sections.probe_measures
    sections: list[Section | None] = [folder.part(PROBE, lambda: measured(content), None)] if linear else []
    if predictions is not None:
        sections += [
            prediction_sections.worst_classes(predictions),
            prediction_sections.confusions(predictions),
            prediction_sections.mistakes_section(predictions),
        ]
        sections += audit_sections.tested_images(folder)
    sections.append(duplicates(folder, embeddings))
    if predictions is not None:
        error = linear.get("ece_calibrated")
        calibrated = percent(error, f"{PROBE} linear.ece_calibrated") if isinstance(error, int | float) else None
        sections.append(prediction_sections.calibration(predictions, calibrated))
    sections.append(folder.part(PROBE, lambda: selection(linear), None))
    if embeddings is not None:
        sections.append(data_sections.embedding_map(embeddings, predictions))
    splits = folder.columns(SPLITS, "path", "label", "split")
    sections.append(folder.part(SPLITS, lambda: data_sections.data_counts(splits, SPLITS, target), None))
    sections.append(repeat(content, str(folder.path)))
    extractor = text(mapping(content.get("embeddings")).get("extractor"))
    title = f"{extractor} on {given['source']}" if text(given.get("source")) and extractor else folder.path.name
    found = [section for section in sections if section]
    version = versions_in(content).get("transferkit", "")
    by_class = target == "class" or not linear
    top = folder.part(
        PROBE, lambda: headline(linear) if by_class else target_sections.probe_headline(linear, target), UNREAD
    )
    return Report(title, "Linear probe", top, found, folder.missing, version), source


def duplicates(folder: ResultFolder, embeddings: Embeddings | None) -> Section:
    """Return near-duplicates across splits and, where the embeddings are at hand, among the test images."""
    if embeddings is None:
        folder.missing.append(
            "near-duplicates among test images and the map: the embeddings are not at hand (transferkit probe has them)"
        )
        return leak_section.leak_section(folder)
    within = data_sections.near_duplicates(embeddings, images="test images")
    return leak_section.with_leaks(within, "", leak_section.leak_blocks(folder))


def headline(linear: Mapping[str, Any]) -> Headline:
    """Return the linear probe's accuracy."""
    if not linear:
        return Headline(None, "nothing measured", "The probe's figures are missing.")
    low, high = linear["top1_interval"]
    sentence = (
        f"A linear classifier on frozen embeddings names {linear['correct']:,} of {linear['rows']:,} test images "
        f"correctly. With 95% confidence, between {100 * low:.1f}% and {100 * high:.1f}% of further images like these "
        "would be."
    )
    wanted = {"mean_per_class": "mean per class", "top5": "top-5 accuracy", "ece_calibrated": "calibration error"}
    stats = [(title, share(linear, key)) for key, title in wanted.items() if linear.get(key) is not None]
    stats.append(("images", count(linear["rows"], f"{PROBE} linear.rows")))
    stats.append(("classes", count(len(linear["per_class"]), f"{PROBE} linear.per_class")))
    ends = percent(low, f"{PROBE} linear.top1_interval.0"), percent(high, f"{PROBE} linear.top1_interval.1")
    return Headline(share(linear, "top1"), "linear probe accuracy on test", sentence, ends, stats)


def share(linear: Mapping[str, Any], key: str) -> Number:
    """Return one of the linear probe's shares."""
    return percent(linear[key], f"{PROBE} linear.{key}")


def measures(content: Mapping[str, Any]) -> Section:
    """Return linear probe, neighbors, class means and few-shot side by side."""
    rows = []
    words = {"linear": "linear probe", "knn": "k nearest neighbors", "nearest_class_mean": "nearest class mean"}
    for key, name in words.items():
        found = content.get(key)
        if found:
            rows.append((name, found["top1"], *found["top1_interval"]))
    charts = [Chart("Three ways to classify", svg.interval_plot(rows), "Accuracy on test with its 95% interval.")]
    blocks: list[Block] = []
    curve = (content.get("few_shot") or {}).get("curve") or []
    if curve:
        points = [(float(point["n_per_class"]), point["mean"]) for point in curve]
        few = svg.line_chart({"few-shot": points}, "training images per class", "accuracy", percent=True)
        seeds = len(content["few_shot"]["seeds"])
        charts.append(Chart("From a few images", few, f"Mean of {seeds} draws."))
        cells: list[list[Cell]] = [
            [
                count(point["n_per_class"], f"{PROBE} few_shot.curve.{at}.n_per_class"),
                percent(point["mean"], f"{PROBE} few_shot.curve.{at}.mean"),
                percent(point["std"], f"{PROBE} few_shot.curve.{at}.std"),
                standard_error(point, at),
            ]
            for at, point in enumerate(curve)
        ]
        blocks.append(
            Table(("images per class", "accuracy", "standard deviation", "standard error"), cells, "Few-shot numbers")
        )
    compared = content.get("comparison")
    if compared:
        blocks.append(Remark(comparison_sentence(compared)))
    blocks += [Remark(f"Note: {line}.") for line in content.get("warnings", [])]
    return Section("measures", "What the embeddings are worth", "", [Charts(charts), *blocks])


def standard_error(point: Mapping[str, Any], at: int) -> Cell:
    """Return the standard error of a few-shot mean; None where an earlier version did not write it."""
    value = point.get("standard_error")
    return None if value is None else percent(value, f"{PROBE} few_shot.curve.{at}.standard_error")


def comparison_sentence(compared: Mapping[str, Any]) -> str:
    """Return what the comparison with another probe found."""
    low, high = compared["interval"]
    return (
        f"Against {compared['with']}: {100 * compared['difference']:+.1f} points "
        f"(95% interval {100 * low:+.1f} to {100 * high:+.1f}; McNemar's p = {compared['mcnemar_p']:.2g})."
    )


def selection(linear: Mapping[str, Any]) -> Section | None:
    """Return how C and the standardization were chosen."""
    swept = linear.get("sweep") or {}
    series: dict[str, list[tuple[float, float]]] = {}
    for kind, values in (swept.get("val_top1") or {}).items():
        pairs = zip(swept["C"], values, strict=True)
        series[kind] = [(math.log10(c), value) for c, value in pairs if value is not None]
    series = {kind: points for kind, points in series.items() if points}
    if not series:
        return None
    figure = svg.line_chart(series, "log10 of C", "accuracy on val", percent=True, mark=math.log10(linear["C"]))
    chosen = decimal(linear["C"], f"{PROBE} linear.C")
    lead = f"Chosen on validation images: C = {chosen.text}, standardization {linear['standardisation']}."
    if len(linear["per_class"]) == 2:
        lead += " With two classes, this C acts as 2 C does in scikit-learn's LogisticRegression."
    return Section(
        "selection", "Selection", lead, [Charts([Chart("Accuracy by regularization", figure, keys=list(series))])]
    )


def repeat(content: Mapping[str, Any], out: str) -> Section:
    """Return the command, the extractor and the versions."""
    given, made, options = (mapping(content.get(name)) for name in ("images", "embeddings", "options"))
    parts = ["transferkit", "probe", str(given.get("source") or content.get("table") or "IMAGES")]
    for key in ("extractor", "weights", "pooling", "image_root", "on_error", "splits"):
        if given.get(key) is not None:
            parts += [f"--{key}", str(given[key])]
    for key, value in options.items():
        parts += [f"--{key}", str(value).lower() if isinstance(value, bool) else str(value)]
    keys = {
        "extractor": "extractor",
        "pooling": "pooling",
        "weights_sha256": "weights SHA-256",
        "precision": "precision",
    }
    facts: list[tuple[str, Cell]] = [(name, str(made[key])) for key, name in keys.items() if made.get(key) is not None]
    return data_sections.provenance([shlex.join([*parts, "--out", out])], facts, {}, versions_in(content))
