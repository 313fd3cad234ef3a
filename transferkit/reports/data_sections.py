"""Sections made of embeddings, splits, training history and configuration."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml

from transferkit import similarity
from transferkit.data import seen
from transferkit.data.embeddings import Embeddings
from transferkit.data.targets import TARGETS, Kind
from transferkit.reports import svg
from transferkit.reports.content import (
    Block,
    Card,
    Cell,
    Chart,
    Charts,
    Code,
    EmbeddingMap,
    Facts,
    Gallery,
    MapPoint,
    Remark,
    Section,
    Table,
)
from transferkit.reports.mistakes import PredictionTable
from transferkit.reports.numbers import Number, count, counted, decimal

POINTS = 1500  # of a map
NEIGHBOR_MAP = 600  # points up to which t-SNE takes a second or two
GROUPS = 12  # groups of near-duplicates with images
LARGEST = 20_000  # rows among which near-duplicates are looked for
CLASSES = 20
Splits = Mapping[str, Sequence[Any]]


def embedding_map(table: Embeddings, predictions: PredictionTable | None, seed: int = 0) -> Section:
    """Return the images as points on a plane: t-SNE of a few, principal axes of many.

    Args:
        table: the embeddings, N rows.
        predictions: of the same images, for the words on a point.
        seed: of the rows that are drawn where there are many.
    """
    rows = similarity.drawn_rows(len(table), POINTS, seed)
    part = table.select(rows.tolist())
    if 50 <= len(part) <= NEIGHBOR_MAP:
        points, how = similarity.neighbour_map(part.embedding, seed=seed), "t-SNE of the embeddings: near stays near"
    else:
        points, share = similarity.principal_axes(part.embedding)
        how = f"two principal axes of the embeddings, {100 * float(share.sum()):.0f}% of their variance"
    low, high = points.amin(0), points.amax(0)
    scaled = (points - low) / (high - low).clamp(min=1e-12)
    counts = Counter(label for label in part.labels if label is not None)
    order = sorted(counts, key=lambda name: (-counts[name], name))
    place = {name: number for number, name in enumerate(order)}
    said = dict(zip(predictions.paths, predictions.preds, strict=True)) if predictions else {}
    dots = []
    for (x, y), path, label in zip(scaled.tolist(), part.paths, part.labels, strict=True):
        color, shape = svg.mark_of(place.get(label, svg.MARKS) if label is not None else svg.MARKS)
        dots.append(MapPoint(x, 1 - y, path, label or "no label", said.get(path, ""), color, shape))
    legend = [(name, svg.legend_mark(place[name]), counts[name]) for name in order[: svg.MARKS]]
    if len(order) > svg.MARKS:
        rest = sum(counts[name] for name in order[svg.MARKS :])
        legend.append((f"{len(order) - svg.MARKS:,} other classes", svg.legend_mark(svg.MARKS), rest))
    drawn = (
        f"{len(part):,} of {len(table):,} images, drawn by chance"
        if len(part) < len(table)
        else counted(len(part), "image")
    )
    lead = "Images that the network finds alike lie close together. A ring marks a wrong prediction."
    return Section("map", "Embedding map", lead, [EmbeddingMap(dots, legend, f"{how}; {drawn}.")])


def near_duplicates(table: Embeddings, seed: int = 0, images: str = "images", fine_tuned: bool = False) -> Section:
    """Return groups of near-duplicates among the rows, those across classes or splits first.

    Args:
        table: the embeddings.
        seed: of the rows that are drawn where there are many.
        images: what the rows are, such as the images of a test.
        fine_tuned: whether the extractor has learned the classes, see :func:`~transferkit.similarity.usual_threshold`;
            what the table's metadata say of it counts, too.
    """
    rows = similarity.drawn_rows(len(table), LARGEST, seed).tolist()
    part = table.select(rows) if len(rows) < len(table) else table
    threshold = similarity.usual_threshold(part.embedding, fine_tuned or seen.fine_tuned(table.metadata))
    groups = similarity.near_duplicates(part.embedding, threshold)

    def remarkable(group: Sequence[int]) -> tuple[bool, bool]:
        labels, splits = ({column[row] for row in group} for column in (part.labels, part.splits))
        return len(labels) > 1, len(splits) > 1

    groups = sorted(groups, key=lambda group: (*(not odd for odd in remarkable(group)), -len(group)))
    blocks: list[Block] = []
    for group in groups[:GROUPS]:
        other_label, other_split = remarkable(group)
        words = [f"{len(group)} images", *(["different labels"] if other_label else [])]
        words += ["in different splits: a leak"] if other_split else []
        cards = [duplicate_card(part, row) for row in group[:8]]
        blocks.append(Gallery(cards, ", ".join(words), max(0, len(group) - 8)))
    if len(groups) > GROUPS:
        blocks.append(Remark(f"{counted(len(groups) - GROUPS, 'more group')} not shown."))
    members = sum(map(len, groups))
    found = f"{counted(len(groups), 'group')} of {members:,} that" if groups else "no two"
    lead = f"Among the {len(part):,} {images}: {found} are nearly the same (cosine of {threshold:.4g} or more)."
    if len(part) < len(table):
        lead += f" Looked for among {len(part):,} of {len(table):,} images, drawn by chance."
    return Section("duplicates", "Near-duplicates and leaks", lead, blocks)


def duplicate_card(table: Embeddings, row: int) -> Card:
    """Return one image of a group."""
    path, label, split = table.paths[row], table.labels[row] or "no label", table.splits[row]
    words: list[tuple[str, str | Number]] = [("", label), *([("split", split)] if split else [])]
    return Card(path, f"{path}: {label}", words)


def learning_curves(rows: Sequence[Mapping[str, str]], best: float | None) -> Section | None:
    """Return loss and accuracy by epoch; None where nothing was logged.

    Args:
        rows: of ``metrics.csv``.
        best: the epoch of the checkpoint that is reported; None where it is not known.
    """
    charts = []
    for title, suffix, percent in (
        ("Loss", "loss", False),
        ("Accuracy", "acc", True),
        ("Mean average precision", "map", True),
        ("R²", "r2", False),
    ):
        series = {}
        for part in ("train", "val"):
            points = [
                (float(row["epoch"]), float(row[name]))
                for row in rows
                if row.get(name := f"{part}/{suffix}") and row.get("epoch")
            ]
            if points:
                series[f"{part}/{suffix}"] = points
        if series:
            figure = svg.line_chart(series, "epoch", title.lower(), percent=percent, mark=best)
            charts.append(Chart(title, figure, keys=list(series)))
    if not charts:
        return None
    lead = f"The dashed line is epoch {int(best)}, which is the one reported." if best is not None else ""
    return Section("curves", "Learning curves", lead, [Charts(charts)])


def data_counts(splits: Splits, source: str, kind: Kind = "class") -> Section | None:
    """Return how many images of which class are in which split.

    Args:
        splits: columns ``label`` and ``split``.
        source: file that they are of.
        kind: of the labels; an image of several counts for each of them.
    """
    if not splits.get("split"):
        return None
    names = [name for name in ("train", "val", "test") if name in splits["split"]]
    names += [name for name in dict.fromkeys(splits["split"]) if name and name not in names]
    of_label = TARGETS[kind].names
    pairs = [(label, split) for label, split in zip(splits["label"], splits["split"], strict=True) if label is not None]
    counts = Counter((str(name), split) for label, split in pairs for name in of_label([label]))
    totals = Counter(splits["split"])
    classes = sorted(of_label(str(label) for label, _ in pairs))
    sizes = {label: sum(counts[label, name] for name in names) for label in classes}
    order = sorted(classes, key=lambda label: (-sizes[label], label))
    rows: list[list[Cell]] = [[label, *(count(counts[label, name], source) for name in names)] for label in order]
    total: list[Cell] = ["all classes", *(count(totals[name], source) for name in names)]
    shown = rows if len(rows) <= CLASSES else [*rows[: CLASSES // 2], *rows[-CLASSES // 2 :]]
    words = ", ".join(f"{totals[name]:,} {name}" for name in names)
    lead = f"{words}; {counted(len(classes), 'class', 'classes')}."
    if len(shown) < len(rows):
        lead += f" The {CLASSES // 2} largest and the {CLASSES // 2} smallest classes are listed."
    return Section("data", "Data", lead, [Table(("class", *names), [total, *shown])])


def provenance(
    commands: Sequence[str], facts: Sequence[tuple[str, Cell]], config: Mapping[str, Any], versions: Mapping[str, str]
) -> Section:
    """Return what is needed to repeat the results."""
    blocks: list[Block] = [Code("\n".join(commands))] if commands else []
    said = [(name, value) for name, value in versions.items()]
    blocks.append(Facts([*facts, *said]))
    if config:
        blocks.append(
            Code(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), "The whole configuration")
        )
    lead = "" if versions else "The versions of the libraries were not recorded."
    return Section("repeat", "Repeat it", lead, blocks)


def metric_table(values: Mapping[str, Any], source: str, columns: tuple[str, str] = ("metric", "value")) -> Table:
    """Return numbers by name."""
    rows: list[list[Cell]] = []
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            rows.append([name, json.dumps(value)])
        elif isinstance(value, int):
            rows.append([name, count(value, f"{source} {name}")])
        elif torch.tensor(value).isfinite():
            rows.append([name, decimal(value, f"{source} {name}")])
        else:
            rows.append([name, "–"])
    return Table(columns, rows)
