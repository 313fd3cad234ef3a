"""Sections made of predictions: worst classes, confusions, mistakes, calibration."""

from collections.abc import Sequence

from markupsafe import Markup

from transferkit.reports import mistakes, svg
from transferkit.reports.content import (
    Block,
    Card,
    Cell,
    Chart,
    Charts,
    Confusion,
    ConfusionCell,
    Gallery,
    Headline,
    Remark,
    Section,
    Table,
)
from transferkit.reports.mistakes import ClassScore, PredictionTable
from transferkit.reports.numbers import Number, count, counted, decimal, percent
from transferkit.similarity.intervals import wilson

SHOWN = 24  # images of a gallery
IN_CELL = 12  # images of a cell of the confusion matrix
PAIRS, IN_PAIR = 6, 8  # confused pairs with images, and images of each
CLASSES = 10  # rows of the table of the worst classes
LISTED = 200  # rows of the table of all classes
MATRIX = 20  # classes of a confusion matrix
PREDICTIONS = "predictions.parquet"


def accuracy_headline(table: PredictionTable, what: str, stats: Sequence[tuple[str, Number]]) -> Headline:
    """Return the accuracy with its interval in numbers and words.

    Args:
        table: the predictions.
        what: of which images, such as ``test``.
        stats: other numbers.
    """
    right, total = int(table.correct.sum()), len(table)
    low, high = wilson(right, total)
    sentence = (
        f"{right:,} of {total:,} {what} images are classified correctly. With 95% confidence, between "
        f"{100 * low:.1f}% and {100 * high:.1f}% of further images like these would be."
    )
    ends = percent(low, "wilson low"), percent(high, "wilson high")
    return Headline(percent(right / total, PREDICTIONS), f"accuracy on {what}", sentence, ends, stats)


def worst_classes(table: PredictionTable) -> Section:
    """Return the classes with the lowest accuracy, each with its interval and what it is taken for."""
    scores = mistakes.class_scores(table)
    perfect = sum(score.right == score.total for score in scores)
    if perfect == len(scores):
        lead = f"Every image of every class is right ({counted(len(scores), 'class', 'classes')})."
    else:
        lead = f"{perfect:,} of {len(scores):,} classes have no mistake. Bands are 95% intervals."
    blocks: list[Block] = [Table(COLUMNS, [class_row(score) for score in scores[:CLASSES]])]
    if len(scores) > CLASSES:
        listed = scores[CLASSES:LISTED]
        more = f"; the {len(scores) - LISTED:,} after them are in {PREDICTIONS}" if len(scores) > LISTED else ""
        rows = [class_row(score) for score in listed]
        blocks.append(Table(COLUMNS, rows, f"The next {counted(len(listed), 'class', 'classes')}{more}"))
    return Section("classes", "Worst classes", lead, blocks)


COLUMNS = ("class", "accuracy", "95% interval", "right", "images", "most often taken for")


def class_row(score: ClassScore) -> list[Cell]:
    """Return the row of one class."""
    low, high = wilson(score.right, score.total)
    source = f"{PREDICTIONS} class"
    taken = f"{score.taken_for[0]} ({score.taken_for[1]:,})" if score.taken_for else "–"
    bar = svg.interval_bar(score.accuracy, low, high)
    right, total = count(score.right, source), count(score.total, source)
    return [score.name, percent(score.accuracy, source), bar, right, total, taken]


def confusions(table: PredictionTable) -> Section:
    """Return the confusion matrix with the images of each cell, and the most frequent pairs with images."""
    pairs = mistakes.confused_pairs(table)
    every = table.class_names
    ordered = dict.fromkeys([*(name for pair, _ in pairs for name in pair), *every])  # the most confused first
    shown = sorted(list(ordered)[:MATRIX])
    lead = "Rows are true classes, columns predictions. Select a cell to see its images."
    if len(shown) < len(every):
        lead = f"The {len(shown)} classes of the most frequent mistakes, of {len(every):,}. {lead}"
    blocks: list[Block] = [matrix(table, shown, others=len(shown) < len(every))]
    if not pairs:
        blocks.append(Remark("No class is taken for another."))
    for (label, pred), rows in pairs[:PAIRS]:
        title = f"{label} taken for {pred}: {len(rows):,}"
        blocks.append(gallery(table, rows, IN_PAIR, title))
    if len(pairs) > PAIRS:
        listed: list[list[Cell]] = [
            [label, pred, count(len(rows), "pair")] for (label, pred), rows in pairs[PAIRS:LISTED]
        ]
        blocks.append(Table(("class", "taken for", "images"), listed, counted(len(listed), "more confused pair")))
    return Section("confusions", "Confused pairs", lead, blocks)


def matrix(table: PredictionTable, names: Sequence[str], others: bool) -> Confusion:
    """Return the matrix of some classes; with ``others`` a last column counts all further predictions."""
    found = mistakes.confusion(table)
    columns = [*names, "(others)"] if others else list(names)
    galleries, lines = [], []
    for row, label in enumerate(names):
        of_label = {pred: rows for (true, pred), rows in found.items() if true == label}
        if others:
            kept = set(names)
            of_label["(others)"] = [r for pred, rows in of_label.items() if pred not in kept for r in rows]
        total = sum(len(of_label.get(name, ())) for name in columns)
        line = []
        for column, pred in enumerate(columns):
            rows = of_label.get(pred, [])
            anchor = f"cell-{row}-{column}" if rows else ""
            what = "predicted correctly" if label == pred else f"taken for {pred}"
            alt = f"{label} {what}: {counted(len(rows), 'image')}"
            line.append(ConfusionCell(count(len(rows), "cell"), len(rows) / total if total else 0.0, anchor, alt))
            if rows:
                galleries.append(gallery(table, rows, IN_CELL, alt, anchor))
        lines.append(line)
    return Confusion(list(names), columns, lines, galleries)


def gallery(table: PredictionTable, rows: Sequence[int], most: int, title: str = "", anchor: str = "") -> Gallery:
    """Return a gallery of some rows."""
    cards = [card(table, row, pair=bool(title)) for row in rows[:most]]
    return Gallery(cards, title, max(0, len(rows) - most), anchor)


def card(table: PredictionTable, row: int, pair: bool = False) -> Card:
    """Return one prediction as a card; ``pair`` leaves the classes out where the title above names them."""
    path, label, pred = table.paths[row], table.labels[row], table.preds[row]
    sure = percent(float(table.probability[row]), f"{PREDICTIONS} probability")
    right = label == pred
    alt = f"{path}: {label}, {'predicted correctly' if right else f'predicted as {pred}'} with {sure.text}"
    names = [] if pair else [("", label if right else f"{label} → {pred}")]
    return Card(path, alt, [*names, ("confidence", sure)])


def mistakes_section(table: PredictionTable) -> Section:
    """Return the mistakes of highest confidence."""
    rows = mistakes.confident_mistakes(table)
    lead = "Wrong, and sure of it: where such images show what their label says, look at the label."
    if not rows:
        lead = "There is no mistake among these images."
    return Section("mistakes", "Most confident mistakes", lead, [gallery(table, rows, SHOWN)] if rows else [])


def calibration(table: PredictionTable, error: Number | None) -> Section:
    """Return the reliability diagram and the risk by coverage.

    Args:
        table: the predictions.
        error: the expected calibration error as it was logged; None where it was not.
    """
    bins = mistakes.reliability(table.probability, table.correct)
    shown = error or decimal(mistakes.calibration_error(bins), "ece")
    coverage, risk = mistakes.risk_coverage(table.probability, table.correct)
    gap = sum(b.rows * (b.confidence - b.accuracy) for b in bins) / len(table)
    tendency = "too sure of itself" if gap > 0.01 else "less sure than it could be" if gap < -0.01 else "about right"
    lead = (
        f"On average the confidence is {tendency}: {100 * float(table.probability.mean()):.1f}% stated, "
        f"{100 * float(table.correct.mean()):.1f}% right. Expected calibration error: {shown.text}."
    )
    caption = (
        "Bars are the share that is right; fuller bars hold more images. On the dashed line, confidence comes true."
    )
    at = first_at(coverage.tolist(), 0.8)
    refuse = (
        f"Answering only the surest {100 * coverage[at]:.0f}% leaves {100 * risk[at]:.1f}% errors, "
        f"instead of {100 * risk[-1]:.1f}%."
    )
    charts = [
        Chart("Does confidence come true?", diagram(bins), caption),
        Chart("When is it better not to answer?", svg.risk_coverage_curve(coverage.tolist(), risk.tolist()), refuse),
    ]
    if table.calibrated is not None:
        after = mistakes.reliability(table.calibrated, table.correct)
        left = percent(mistakes.calibration_error(after), f"{PREDICTIONS} calibrated_probability")
        stated = 100 * float(table.calibrated.mean())
        what = f"With the temperature fitted on val: {stated:.1f}% stated, calibration error {left.text}."
        charts.insert(1, Chart("And after calibration?", diagram(after), what))
    return Section("calibration", "Confidence", lead, [Charts(charts)])


def diagram(bins: Sequence[mistakes.Bin]) -> Markup:
    """Return the reliability diagram of bins as SVG."""
    return svg.reliability_diagram([(b.low, b.high, b.rows, b.confidence, b.accuracy) for b in bins])


def first_at(coverage: Sequence[float], least: float) -> int:
    """Return the first place whose coverage is at least so much."""
    return next(place for place, share in enumerate(coverage) if share >= least)
