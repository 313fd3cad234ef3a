"""Two runs or probes of several labels, or of a number, per image: what changed, and whether it is more than chance."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.data.targets import NAME_OF_NUMBER, Kind, LabelTargets, number_of
from transferkit.errors import UserError
from transferkit.reports import svg
from transferkit.reports.content import Card, Cell, Chart, Charts, Gallery, Headline, Section, Table
from transferkit.reports.numbers import Number, count, counted, decimal, percent
from transferkit.reports.result_files import PREDICTIONS, ResultFolder
from transferkit.reports.target_sections import WORDS, shown
from transferkit.similarity.label_scores import average_precision, f1_scores
from transferkit.similarity.paired_bootstrap import (
    Difference,
    compare_measures,
    weighted_errors,
    weighted_f1,
    weighted_map,
)

SHOWN = 24  # images that changed
CHANGED = 12  # classes or labels that changed
PROBABILITY = "probability/"  # a column of each label
LOWER = ("mae",)  # measures that are better where they are lower
SHARES = ("map", "f1_macro", "f1_micro")
LABELS = LabelTargets()
BETTER = "{} is better, and by more than chance."
ALIKE = ("The difference could well be chance.", "There is no difference.")


@dataclass(frozen=True)
class TargetTable:
    """What was predicted of images with several labels, or with a number: N rows.

    Attributes:
        kind: which of the two.
        paths: N paths.
        truth: N texts.
        preds: N texts.
        scores: label -> N probabilities; empty where they were not written, and of numbers.
    """

    kind: Kind
    paths: Sequence[str]
    truth: Sequence[str]
    preds: Sequence[str]
    scores: Mapping[str, Sequence[float]]

    def take(self, rows: Sequence[int]) -> "TargetTable":
        """Return some of the rows."""
        paths, truth, preds = ([column[row] for row in rows] for column in (self.paths, self.truth, self.preds))
        scores = {name: [column[row] for row in rows] for name, column in self.scores.items()}
        return TargetTable(self.kind, paths, truth, preds, scores)


def targets_of(folder: ResultFolder) -> TargetTable | None:
    """Return predicted labels or numbers of a directory; None where there are none, or those of classes."""
    columns = folder.columns(PREDICTIONS)
    if {"path", NAME_OF_NUMBER, "prediction"} <= columns.keys():
        return folder.part(PREDICTIONS, lambda: rows_of("number", NAME_OF_NUMBER, columns), None)
    if {"path", "label", "prediction"} <= columns.keys() and "probability" not in columns:
        return folder.part(PREDICTIONS, lambda: rows_of("labels", "label", columns), None)
    return None


def rows_of(kind: Kind, truth: str, columns: Mapping[str, Sequence[Any]]) -> TargetTable | None:
    """Return the rows whose target is known; None if there are none."""
    kept = [row for row, value in enumerate(columns[truth]) if value is not None]
    paths, true, preds = ([str(columns[name][row]) for row in kept] for name in ("path", truth, "prediction"))
    scores = {
        name.removeprefix(PROBABILITY): [float(column[row]) for row in kept]
        for name, column in columns.items()
        if name.startswith(PROBABILITY)
    }
    return TargetTable(kind, paths, true, preds, scores) if kept else None


def compare_targets(
    one: TargetTable, other: TargetTable, names: tuple[str, str]
) -> tuple[Headline, list[Section | None], list[str]]:
    """Return headline and sections of two tables of one kind, and what is missing.

    Raises:
        UserError: the tables are of other labels, or have no image in common.
    """
    rows, missing = shared_rows(
        list(zip(one.paths, one.truth, strict=True)), list(zip(other.paths, other.truth, strict=True)), names
    )
    a, b = one.take(rows[0]), other.take(rows[1])
    compare = compare_labels if a.kind == "labels" else compare_numbers
    found, sections = compare(a, b, names, missing)
    return headline(found, a, b, names), [differences(found, len(a.paths)), *sections], missing


def shared_rows(
    one: Sequence[tuple[str, Hashable]], other: Sequence[tuple[str, Hashable]], names: tuple[str, str]
) -> tuple[tuple[list[int], list[int]], list[str]]:
    """Return the rows of two tables that are of the same image and target, and a line of those that are not.

    Args:
        one: path and target of each row.
        other: of the other table.
        names: of the tables.

    Raises:
        UserError: there are none.
    """
    row_of = {key: row for row, key in enumerate(other)}
    pairs = [(row, row_of[key]) for row, key in enumerate(one) if key in row_of]
    if not pairs:
        raise UserError(
            f"{names[0]} and {names[1]} judged no image in common ({one[0][0]!r}, {other[0][0]!r}); "
            "test both on the same images"
        )
    alone = len(one) - len(pairs), len(other) - len(pairs)
    said = f"{alone[0]:,} images of {names[0]} and {alone[1]:,} of {names[1]}, which the other did not judge"
    return ([first for first, _ in pairs], [second for _, second in pairs]), [said] if any(alone) else []


def compare_labels(
    a: TargetTable, b: TargetTable, names: tuple[str, str], missing: list[str]
) -> tuple[dict[str, Difference], list[Section | None]]:
    """Return the differences of mAP and F1, and the sections of labels and images that changed.

    Raises:
        UserError: the two were trained on other labels.
    """
    if a.scores and b.scores and set(a.scores) != set(b.scores):
        only = sorted(set(a.scores) ^ set(b.scores))[0]
        raise UserError(
            f"{names[0]} and {names[1]} predict other labels ({only!r} is in one only); give two of the same"
        )
    names_there = LABELS.names([*a.truth, *a.preds, *b.preds])
    target = LABELS.encode(a.truth, names_there) > 0
    predicted = [LABELS.encode(table.preds, names_there) > 0 for table in (a, b)]
    wrong = [(part != target).sum(1) for part in predicted]
    by_f1 = [weighted_f1(part, target) for part in predicted]
    measures = {name: (by_f1[0][name], by_f1[1][name]) for name in by_f1[0]}
    if not (a.scores and b.scores):
        missing.append("average precision: the probability of each label was not written; test or probe again")
        changes = label_changes(names_there, [f1_scores(part, target) for part in predicted], target, "F1", names)
    else:
        scored = sorted(a.scores)
        scores = [torch.tensor([table.scores[name] for name in scored]).T for table in (a, b)]
        target = LABELS.encode(a.truth, scored) > 0
        measures = {"map": (weighted_map(scores[0], target), weighted_map(scores[1], target)), **measures}
        precision = [average_precision(part, target) for part in scores]
        changes = label_changes(scored, precision, target, "average precision", names)
    found = compare_measures(measures, len(a.paths), len(names_there))
    return found, [changes, *image_changes(a, b, wrong[0], wrong[1], names)]


def label_changes(
    every: Sequence[str], each: Sequence[Tensor], target: Tensor, what: str, names: tuple[str, str]
) -> Section:
    """Return the labels whose average precision or F1 changed most."""
    images = target.sum(0).tolist()
    change = (each[1] - each[0]).tolist()
    order = [place for place, value in enumerate(change) if images[place] and value]
    order.sort(key=lambda place: (-abs(change[place]), every[place]))
    found = [
        (every[place], float(each[0][place]), float(each[1][place]), change[place], images[place]) for place in order
    ]
    lead = f"{what.capitalize()} of {len(order):,} of {sum(map(bool, images)):,} labels changed; the largest first."
    return largest_changes("label", "Labels that changed", lead, found, names)


def largest_changes(
    word: str, title: str, lead: str, found: Sequence[tuple[str, float, float, float, int]], names: tuple[str, str]
) -> Section:
    """Return the classes or labels that changed most, as a table.

    Args:
        word: ``class`` or ``label``.
        title: of the section.
        lead: what the table shows.
        found: name, share of the first, of the second, their difference and number of images; the largest change first.
        names: of the two that are compared.
    """
    if not found:
        return Section("classes", title, f"No {word} changed.", [])
    rows: list[list[Cell]] = [
        [
            name,
            percent(first, f"{word} first"),
            percent(second, f"{word} second"),
            percent(change, f"{word} change", signed=True),
            count(images, f"{word} images"),
        ]
        for name, first, second, change, images in found[:CHANGED]
    ]
    return Section("classes", title, lead, [Table((word, *names, "change", "images"), rows)])


def compare_numbers(
    a: TargetTable, b: TargetTable, names: tuple[str, str], missing: list[str]
) -> tuple[dict[str, Difference], list[Section | None]]:
    """Return the differences of mean absolute error and R², and the section of images that changed."""
    truth, first, second = (
        torch.tensor([number_of(text) for text in column], dtype=torch.float64)
        for column in (a.truth, a.preds, b.preds)
    )
    pairs = weighted_errors(first, truth), weighted_errors(second, truth)
    measures = {
        name: (pairs[0][name], pairs[1][name]) for name in pairs[0] if name != "r2" or bool((truth != truth[0]).any())
    }
    found = compare_measures(measures, len(a.paths))
    return found, image_changes(a, b, (first - truth).abs(), (second - truth).abs(), names)


def image_changes(
    a: TargetTable, b: TargetTable, first: Tensor, second: Tensor, names: tuple[str, str]
) -> list[Section | None]:
    """Return the images on which one does better than the other, the largest change first.

    Args:
        a: the first table.
        b: the second.
        first: (N,) wrong labels, or absolute error, of each image.
        second: of the other.
        names: of the tables.
    """
    words = ("fewer wrong labels", "wrong labels") if a.kind == "labels" else ("a smaller error", "error")
    gain = (first - second).double().numpy()
    order = np.argsort(-np.abs(gain), kind="stable")
    sections: list[Section | None] = []
    for anchor, name, better in (("lost", names[0], gain < 0), ("gained", names[1], gain > 0)):
        rows = [row for row in order.tolist() if better[row]]
        cards = [card(a, b, row, first, second, words[1]) for row in rows[:SHOWN]]
        lead = f"{counted(len(rows), 'image')}{', the largest change first' if len(rows) > 1 else ''}."
        blocks = [Gallery(cards, "", max(0, len(rows) - SHOWN))] if cards else []
        sections.append(Section(anchor, f"{words[0].capitalize()} in {name}", lead if rows else "No image.", blocks))
    return sections


def card(a: TargetTable, b: TargetTable, row: int, first: Tensor, second: Tensor, word: str) -> Card:
    """Return an image with what both say of it."""
    path, texts = a.paths[row], [readable(table, text) for table, text in
                                 ((a, a.truth[row]), (a, a.preds[row]), (b, b.preds[row]))]  # fmt: skip
    lines: list[tuple[str, str | Number]] = [("", texts[0]), ("first", texts[1]), ("second", texts[2])]
    ends = [decimal(float(each[row]), f"image {word}").text for each in (first, second)]
    lines.append((word, f"{ends[0]}, then {ends[1]}"))
    return Card(path, f"{path}: {texts[0]}, {texts[1]}, then {texts[2]}", lines)


def readable(table: TargetTable, text: str) -> str:
    """Return labels with commas, or a number with four digits."""
    if table.kind == "number":
        return decimal(float(text)).text
    return ", ".join(LABELS.names([text])) or "no label"


def headline(found: Mapping[str, Difference], a: TargetTable, b: TargetTable, names: tuple[str, str]) -> Headline:
    """Return the difference of the measure that decides, its interval and the verdict."""
    name = "map" if "map" in found else "f1_macro" if a.kind == "labels" else "r2" if "r2" in found else "mae"
    decides = found[name]
    sentence = f"{verdict(name, decides, names)} Measured on the same {len(a.paths):,} images."
    stats = [
        (f"{WORDS[key]}, {name}", shown(key, value, side))
        for key, each in found.items()
        for name, value, side in zip(names, (each.first, each.second), ("first", "second"), strict=True)
    ]
    low, high = decides.interval
    ends = signed(name, low, "interval low"), signed(name, high, "interval high")
    return Headline(
        signed(name, decides.difference, "difference"), f"difference in {WORDS[name]}", sentence, ends, stats
    )


def verdict(name: str, found: Difference, names: tuple[str, str]) -> str:
    """Return what the difference means."""
    if found.first == found.second:
        return ALIKE[1]
    if found.by_chance:
        return ALIKE[0]
    return BETTER.format(names[1] if (found.difference > 0) != (name in LOWER) else names[0])


def signed(name: str, value: float, source: str) -> Number:
    """Return a difference of a measure as it is shown: of shares in percentage points."""
    if name in SHARES:
        return percent(value, source, signed=True)
    number = decimal(value, source)
    return Number(value, f"+{number.text}" if value > 0 else number.text, source)


def differences(found: Mapping[str, Difference], rows: int) -> Section:
    """Return how the differences were tested, with a row per measure."""
    table: list[list[Cell]] = [
        [
            WORDS[name],
            shown(name, each.first, f"{name} first"),
            shown(name, each.second, f"{name} second"),
            signed(name, each.difference, f"{name} difference"),
            signed(name, each.interval[0], f"{name} low"),
            signed(name, each.interval[1], f"{name} high"),
            "could be chance" if each.by_chance else "more than chance",
        ]
        for name, each in found.items()
    ]
    plotted = [(WORDS[name], each.difference, *each.interval) for name, each in found.items() if name in SHARES]
    blocks = [Charts([Chart("Second minus first", svg.interval_plot(plotted, zero=True))])] if plotted else []
    columns = ("measure", "first", "second", "difference", "from", "to (95%)", "verdict")
    lead = f"Paired bootstrap over {rows:,} images, 95% interval: both are measured on the same draws of images."
    if not plotted:
        lead += " A lower mean absolute error is better."
    return Section("test", "Is it more than chance?", lead, [*blocks, Table(columns, table)])
