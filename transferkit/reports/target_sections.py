"""What a report says of several labels, or of a number, per image."""

from collections.abc import Mapping
from typing import Any

from transferkit.data.targets import Kind
from transferkit.reports.content import Block, Cell, Headline, Remark, Section, Table
from transferkit.reports.numbers import Number, count, decimal, percent

WORDS = {
    "map": "mean average precision",
    "f1_macro": "macro F1",
    "f1_micro": "micro F1",
    "mae": "mean absolute error",
    "r2": "R²",
    "spearman": "Spearman's correlation",
    "loss": "loss",
}
FIRST = {"map": "several labels per image", "r2": "a number per image"}  # the metric that decides, by what is predicted
KINDS: Mapping[str, Kind] = {"map": "labels", "r2": "number"}
UNDEFINED = {"map": "None of these images has any label.", "r2": "All of these images have the same number."}
ON_VAL = "Measured on the validation images, on which the best checkpoint was chosen. Test it for a fair number."


def measured(metrics: Mapping[str, Any]) -> str:
    """Return the metric that decides, ``map`` or ``r2``, of a run of several labels or a number; empty for classes."""
    return next((name for name in FIRST if f"val/{name}" in metrics or f"test/{name}" in metrics), "")


def run_headline(metrics: Mapping[str, Any], source: str) -> Headline:
    """Return the headline of a run, from its metrics of test, or of val before a test."""
    name = measured(metrics)
    part = "test" if f"test/{name}" in metrics else "val"
    values = {key: metrics[f"{part}/{key}"] for key in WORDS if metrics.get(f"{part}/{key}") is not None}
    ends = {key: (metrics.get(f"{part}/{key}_low"), metrics.get(f"{part}/{key}_high")) for key in values}
    where = "test" if part == "test" else "validation"
    sentence = f"The data has {FIRST[name]}. " + ("" if part == "test" else ON_VAL)
    if name == "map":
        sentence += "F1 is at the thresholds that are best on the validation images."
    return headline(name, values, ends, where, sentence.strip(), f"{source} {part}/")


def probe_headline(linear: Mapping[str, Any], target: str) -> Headline:
    """Return the headline of a probe."""
    values = {key: linear[key] for key in WORDS if linear.get(key) is not None}
    sentence = "One linear classifier per label, on frozen embeddings; F1 is at thresholds chosen on validation images."
    if target == "number":
        sentence = "Ridge regression on frozen embeddings, its strength chosen by leaving out each image in turn."
    first = next(key for key in FIRST if key in linear)
    found = headline(first, values, linear.get("intervals", {}), "test", sentence, "probe.json linear.")
    images = ("images", count(linear["rows"], "probe.json linear.rows"))
    return Headline(found.value, found.name, found.sentence, found.interval, [*found.stats, images])


def headline(
    name: str, values: Mapping[str, float], ends: Mapping[str, Any], where: str, sentence: str, source: str
) -> Headline:
    """Return a headline of the metric that decides, the others beside it.

    Args:
        name: of the metric.
        values: of all metrics that are defined.
        ends: of their intervals.
        where: what was measured on.
        sentence: says how.
        source: file and key that the values are from.
    """
    interval = None
    low, high = ends.get(name) or (None, None)
    if low is not None and high is not None:
        interval = shown(name, low, f"{source}{name}_low"), shown(name, high, f"{source}{name}_high")
    stats = [(WORDS[key], shown(key, value, source + key)) for key, value in values.items() if key != name]
    if name not in values:
        return Headline(None, f"{WORDS[name]} on {where}: undefined", f"{UNDEFINED[name]} {sentence}", None, stats)
    return Headline(shown(name, values[name], source + name), f"{WORDS[name]} on {where}", sentence, interval, stats)


def shown(name: str, value: float, source: str) -> Number:
    """Return a measure as it is shown: shares in percent."""
    return percent(value, source) if name in ("map", "f1_macro", "f1_micro") else decimal(value, source)


def known(value: float | None, source: str) -> Number | None:
    """Return a number as it is shown; None for one that is undefined."""
    return None if value is None else decimal(value, source)


def probe_measures(content: Mapping[str, Any]) -> Section:
    """Return the table of the labels, or of the measures with their intervals."""
    linear = content["linear"]
    blocks: list[Block] = []
    if content.get("target") == "labels":
        rows: list[list[Cell]] = [
            [
                name,
                percent(found["ap"], f"probe.json linear.per_class.{name}.ap"),
                percent(found["f1"], f"probe.json linear.per_class.{name}.f1"),
                decimal(linear["thresholds"][name], f"probe.json linear.thresholds.{name}"),
                count(found["rows"], f"probe.json linear.per_class.{name}.rows"),
            ]
            for name, found in linear["per_class"].items()
        ]
        blocks.append(Table(("label", "average precision", "F1", "threshold", "test images"), rows))
    else:
        rows = [
            [
                WORDS[name],
                known(linear[name], f"probe.json linear.{name}"),
                known(low, f"probe.json linear.intervals.{name}.0"),
                known(high, f"probe.json linear.intervals.{name}.1"),
            ]
            for name, (low, high) in linear["intervals"].items()
        ]
        blocks.append(Table(("measure", "value", "from", "to (95%)"), rows))
    blocks += [Remark(f"Note: {line}.") for line in content.get("warnings", [])]
    return Section("measures", "What the embeddings are worth", "", blocks)
