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
ON_VAL = "Measured on the validation images, on which the best checkpoint was chosen. Test it for a fair number."


def measured(metrics: Mapping[str, Any]) -> str:
    """Return the metric that decides, ``map`` or ``r2``, of a run of several labels or a number; empty for classes."""
    return next((name for name in FIRST if f"val/{name}" in metrics or f"test/{name}" in metrics), "")


def run_headline(metrics: Mapping[str, Any], source: str) -> Headline:
    """Return the headline of a run, from its metrics of test, or of val before a test."""
    name = measured(metrics)
    part = "test" if f"test/{name}" in metrics else "val"
    values = {key: metrics[f"{part}/{key}"] for key in WORDS if f"{part}/{key}" in metrics}
    ends = {key: (metrics.get(f"{part}/{key}_low"), metrics.get(f"{part}/{key}_high")) for key in values}
    where = "test" if part == "test" else "validation"
    sentence = f"The data has {FIRST[name]}. " + ("" if part == "test" else ON_VAL)
    if name == "map":
        sentence += "F1 is at the thresholds that are best on the validation images."
    return headline(values, ends, where, sentence.strip(), f"{source} {part}/")


def probe_headline(linear: Mapping[str, Any], target: str) -> Headline:
    """Return the headline of a probe."""
    values = {key: linear[key] for key in WORDS if key in linear}
    sentence = "One linear classifier per label, on frozen embeddings; F1 is at thresholds chosen on validation images."
    if target == "number":
        sentence = "Ridge regression on frozen embeddings, its strength chosen by leaving out each image in turn."
    found = headline(values, linear.get("intervals", {}), "test", sentence, "probe.json linear.")
    images = ("images", count(linear["rows"], "probe.json linear.rows"))
    return Headline(found.value, found.name, found.sentence, found.interval, [*found.stats, images])


def headline(values: Mapping[str, float], ends: Mapping[str, Any], where: str, sentence: str, source: str) -> Headline:
    """Return a headline of the first value, the others beside it."""
    name = next(key for key in FIRST if key in values)
    interval = None
    low, high = ends.get(name) or (None, None)
    if low is not None and high is not None:
        interval = shown(name, low, f"{source}{name}_low"), shown(name, high, f"{source}{name}_high")
    stats = [(WORDS[key], shown(key, value, source + key)) for key, value in values.items() if key != name]
    return Headline(shown(name, values[name], source + name), f"{WORDS[name]} on {where}", sentence, interval, stats)


def shown(name: str, value: float, source: str) -> Number:
    """Return a measure as it is shown: shares in percent."""
    return percent(value, source) if name in ("map", "f1_macro", "f1_micro") else decimal(value, source)


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
                decimal(linear[name], f"probe.json linear.{name}"),
                decimal(low, f"probe.json linear.intervals.{name}.0"),
                decimal(high, f"probe.json linear.intervals.{name}.1"),
            ]
            for name, (low, high) in linear["intervals"].items()
        ]
        blocks.append(Table(("measure", "value", "from", "to (95%)"), rows))
    blocks += [Remark(f"Note: {line}.") for line in content.get("warnings", [])]
    return Section("measures", "What the embeddings are worth", "", blocks)
