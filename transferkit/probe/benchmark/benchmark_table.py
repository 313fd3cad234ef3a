"""Cells of a benchmark as Markdown, LaTeX, CSV and a figure; a table per kind of target."""

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transferkit.data.targets import Kind
from transferkit.errors import UserError
from transferkit.probe import PairedComparison, compare_predictions, load_predictions
from transferkit.probe.benchmark.cells import MEASURES, Cell, cell_folder
from transferkit.runtime.files import atomic_path, discard
from transferkit.runtime.text import for_markdown_cell
from transferkit.similarity.intervals import wilson

Comparisons = Mapping[tuple[str, str], PairedComparison]

MARKDOWN, CSV, LATEX, FIGURE = "benchmark.md", "benchmark.csv", "benchmark.tex", "benchmark.png"
NOTES: Mapping[Kind, str] = {
    "class": (
        "Accuracies in percent on the test images: linear probe and kNN with their 95 % Wilson intervals; n images per "
        "class, mean ± standard deviation over the draws. Against: difference of the linear probes on the same images, "
        "with its 95 % paired bootstrap interval and McNemar's p. Cosine gap: within classes minus between classes. "
        "The intervals are for the draw of the test images alone, not for that of the splits or of a network's random "
        "weights."
    ),
    "labels": (
        "Several labels per image, in percent on the test images: mean average precision, and F1 at thresholds that "
        "are chosen on val, of one linear classifier per label."
    ),
    "number": (
        "A number per image, on the test images: R², mean absolute error in the target's own unit, and Spearman's "
        "correlation, of ridge regression, with their 95 % bootstrap intervals."
    ),
}
SEEDS_NOTE = (
    "Over seeds: mean ± standard deviation over the seeds of the drawn splits (number of seeds); splits that the data "
    "come with are the same for every seed. The other columns are of the first seed."
)
TITLES = {
    "top1": "linear", "knn_top1": "kNN", "map": "mAP", "f1_macro": "F1 macro", "f1_micro": "F1 micro", "r2": "R²",
    "mae": "MAE", "spearman": "Spearman",
}  # fmt: skip
DECIMALS = ("r2", "mae", "spearman")  # the others are shares, shown in percent
SCORES: Mapping[Kind, str] = {"class": "top-1 (%)", "labels": "mAP (%)", "number": "100 R²"}
LATEX_WORDS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "–": "--", "[": "{[}",
}  # fmt: skip


def write_results(out: Path, cells: Sequence[Cell], left: int = 0) -> None:
    """Write ``benchmark.md``, ``benchmark.tex``, ``benchmark.csv`` and, if anything was measured, ``benchmark.png``.

    Args:
        out: directory of the benchmark, with its cells.
        cells: in the order of the rows.
        left: number of saved cells that are not among them.
    """
    against = comparisons(out, cells)
    contents = {MARKDOWN: markdown(cells, against, left).encode(), CSV: as_csv(cells, against).encode()}
    tables = tables_of(cells, against)
    contents[LATEX] = "\n".join(map(as_latex, tables.values() or [[]])).encode()
    discard(out / FIGURE)
    if any(cell.is_measured for cell in cells):
        contents[FIGURE] = figure(cells)
    for name, content in contents.items():
        with atomic_path(out / name) as temporary:
            temporary.write_bytes(content)


def comparisons(out: Path, cells: Sequence[Cell]) -> dict[tuple[str, str], PairedComparison]:
    """Return (approach, dataset) -> comparison with the first approach on that dataset, if both were measured."""
    found = {}
    for cell in cells:
        first = next(other for other in cells if other.dataset == cell.dataset)
        if first is cell or cell.top1 is None or first.top1 is None:
            continue
        folders = [cell_folder(out, one.approach, one.dataset) for one in (first, cell)]
        try:
            found[cell.approach, cell.dataset] = compare_predictions(*map(load_predictions, folders))
        except UserError:  # other images: one of them could not read some
            continue
    return found


def tables_of(cells: Sequence[Cell], against: Comparisons) -> dict[Kind, list[dict[str, str]]]:
    """Return column -> text for each measured cell, in a table per kind of target that there is."""
    several = any(cell.seeds for cell in cells)
    tables: dict[Kind, list[dict[str, str]]] = {}
    for target in MEASURES:
        of_kind = [cell for cell in cells if cell.target == target]
        for cell in of_kind:
            if cell.is_measured:
                own = of_classes(cell, of_kind, against, several) if target == "class" else of_others(cell, several)
                tables.setdefault(target, []).append({**of_extractor(cell), **own})
    return tables


def of_extractor(cell: Cell) -> dict[str, str]:
    """Return the columns that every table begins with."""
    return {
        "dataset": cell.dataset,
        "approach": cell.approach,
        "width": str(cell.embed_dim),
        "library": str(cell.library),
        "parameters": "–" if cell.parameters is None else f"{cell.parameters / 1e6:.1f} M",
        "images/s": "–" if cell.images_per_second is None else f"{cell.images_per_second:.0f}",
    }


def of_classes(cell: Cell, cells: Sequence[Cell], against: Comparisons, several: bool) -> dict[str, str]:
    """Return the columns of a cell of classes.

    Args:
        cell: the cell.
        cells: all of them, compared with the first.
        against: comparisons with the first.
        several: whether there are columns over seeds.
    """
    shots = sorted({int(n) for each in cells for n in each.few_shot})
    points = {n: cell.few_shot.get(str(n)) for n in shots}
    return {
        "linear": with_interval(cell.top1, cell.test),
        "kNN": with_interval(cell.knn_top1, cell.test),
        **({f"{TITLES[name]} over seeds": spread(cell, name) for name in ("top1", "knn_top1")} if several else {}),
        **{f"{n}-shot": f"{percent(p[0])} ± {percent(p[1])}" if p else "–" for n, p in points.items()},
        "cosine gap": f"{cell.cosine_gap:.3f}",
        f"against {cells[0].approach}": difference(against.get((cell.approach, cell.dataset))),
    }


def of_others(cell: Cell, several: bool) -> dict[str, str]:
    """Return the columns of a cell of labels, or of a number."""
    columns = {}
    for name in MEASURES[cell.target]:
        ends = [shown(name, end) for end in cell.intervals.get(name, ())]
        columns[TITLES[name]] = shown(name, cell.measure(name)) + (f" [{', '.join(ends)}]" if ends else "")
    if several:
        columns |= {f"{TITLES[name]} over seeds": spread(cell, name) for name in MEASURES[cell.target][:2]}
    return columns


def score_text(cell: Cell) -> str:
    """Return what a cell is judged by, such as ``top-1 91.2 %`` or ``R² 0.812``."""
    name = MEASURES[cell.target][0]
    title, unit = TITLES[name] if cell.target != "class" else "top-1", "" if name in DECIMALS else " %"
    return f"{title} {shown(name, cell.score)}{unit}"


def markdown(cells: Sequence[Cell], against: Comparisons, left: int = 0) -> str:
    """Return the tables for a README, how to read them, and what could not be measured."""
    parts = []
    for target, rows in tables_of(cells, against).items():
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        texts = ["| " + " | ".join(map(for_markdown_cell, line)) + " |" for line in lines]
        ruler = "|" + "|".join(["---"] * 2 + ["---:"] * (len(rows[0]) - 2)) + "|"
        parts += ["\n".join([texts[0], ruler, *texts[1:]]), NOTES[target]]
    if parts and any(cell.seeds for cell in cells):
        parts.append(SEEDS_NOTE)
    if left:
        parts.append(f"{left} saved cells are not in this table: the last call did not name them.")
    failed = [cell for cell in cells if cell.error]
    if failed:
        reasons = (for_markdown_cell(f"{cell.approach} on {cell.dataset}: {cell.error}") for cell in failed)
        parts += ["Not measured:", "\n".join(f"- {reason}" for reason in reasons)]
    return "\n\n".join(parts) + "\n"


def difference(comparison: PairedComparison | None) -> str:
    """Format ``+3.1 [+1.0, +5.2], p = 0.01``, in percentage points; a dash for the first approach."""
    if comparison is None:
        return "–"
    low, high = comparison.interval
    return f"{100 * comparison.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], p = {comparison.mcnemar_p:.2g}"


def spread(cell: Cell, name: str) -> str:
    """Format ``85.0 ± 1.2 (3)``: mean and standard deviation, and the number of seeds; or a dash."""
    if name not in cell.over_seeds:
        return "–"
    mean, std = cell.over_seeds[name]
    return f"{shown(name, mean)} ± {shown(name, std)} ({len(cell.seeds)})"


def with_interval(share: float | None, total: int | None) -> str:
    """Format ``85.0 [78.5, 89.8]``: a share of a number of images in percent, with its Wilson interval; or a dash."""
    if share is None or total is None:
        return "–"
    low, high = wilson(round(share * total), total)
    return f"{percent(share)} [{percent(low)}, {percent(high)}]"


def shown(name: str, value: float | None) -> str:
    """Format a measure: a share in percent, another number with four significant digits; or a dash."""
    return f"{value:.4g}" if name in DECIMALS and value is not None else percent(value)


def percent(share: float | None) -> str:
    """Format a share in percent, or a dash."""
    return "–" if share is None else f"{100 * share:.1f}"


def as_csv(cells: Sequence[Cell], against: Comparisons) -> str:
    """Return all numbers, one row per cell of any target; shares in [0, 1]."""
    rows: list[dict[str, Any]] = []
    shots = sorted({int(n) for cell in cells for n in cell.few_shot})
    for cell in cells:
        row = asdict(cell)
        row["top1_low"], row["top1_high"] = row.pop("top1_interval") or (None, None)
        row |= row.pop("measures")
        for name, (low, high) in row.pop("intervals").items():
            row |= {f"{name}_low": low, f"{name}_high": high}
        if cell.knn_top1 is not None and cell.test:
            ends = wilson(round(cell.knn_top1 * cell.test), cell.test)
            row["knn_top1_low"], row["knn_top1_high"] = ends
        row["warnings"] = "; ".join(cell.warnings)
        row["preprocessing"] = json.dumps(cell.preprocessing, sort_keys=True) if cell.preprocessing else None
        row["seeds"] = " ".join(map(str, cell.seeds))
        for name, (mean, std) in row.pop("over_seeds").items():
            row |= {f"{name}_seeds_mean": mean, f"{name}_seeds_std": std}
        few = row.pop("few_shot")
        for n in shots:
            mean, std = few.get(str(n)) or (None, None)
            row |= {f"shot_{n}_mean": mean, f"shot_{n}_std": std}
        comparison = against.get((cell.approach, cell.dataset))
        if comparison:
            row |= {"difference": comparison.difference, "mcnemar_p": comparison.mcnemar_p}
            row["difference_low"], row["difference_high"] = comparison.interval
        rows.append(row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_latex(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the rows as a table for LaTeX with the package booktabs; a file without rows holds a comment."""
    if not rows:
        return "% nothing was measured\n"
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    head, *body = (" & ".join(map(for_latex, line)) + r" \\" for line in lines)
    columns = "ll" + "r" * (len(rows[0]) - 2)
    begin = [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
    return "\n".join(["% needs \\usepackage{booktabs}", *begin, *body, r"\bottomrule", r"\end{tabular}", ""])


def for_latex(text: str) -> str:
    """Return a text for a cell in LaTeX: its special characters escaped, no control characters."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"[\\&%$#_{}~^±–\[]", lambda found: LATEX_WORDS.get(found[0], rf"\{found[0]}"), plain)


def figure(cells: Sequence[Cell]) -> bytes:
    """Draw a PNG: score of the linear probes with its interval, bars of one dataset side by side."""
    from matplotlib.figure import Figure

    datasets, approaches = (list(dict.fromkeys(getattr(c, what) for c in cells)) for what in ("dataset", "approach"))
    drawn = Figure(figsize=(max(5, 1.2 + 0.5 * len(cells)), 4), layout="constrained")
    axes = drawn.subplots()
    width = 0.8 / len(approaches)
    measured = [cell for cell in cells if cell.is_measured]
    beside = {name: [cell.approach for cell in measured if cell.dataset == name] for name in datasets}
    for approach in approaches:
        own = [cell for cell in measured if cell.approach == approach]
        if not own:
            continue
        steps = [beside[cell.dataset].index(approach) - (len(beside[cell.dataset]) - 1) / 2 for cell in own]
        positions = [datasets.index(cell.dataset) + step * width for cell, step in zip(own, steps, strict=True)]
        heights = [drawn_height(cell.score) for cell in own]
        ends = [list(map(drawn_height, cell.score_interval)) for cell in own]
        below = [
            max(height - low, 0) for height, (low, _) in zip(heights, ends, strict=True)
        ]  # NaN where there is none; 0 against rounding
        above = [max(high - height, 0) for height, (_, high) in zip(heights, ends, strict=True)]
        axes.bar(positions, heights, 0.9 * width, yerr=[below, above], capsize=3, label=caption(approach))
    words = [SCORES[target] for target in SCORES if target in {cell.target for cell in measured}]
    space = " " if len(words) == 1 else "\n"
    axes.set(ylabel=f"linear probe, {', '.join(words)}{space}with 95 % interval", ylim=(0, 100))
    axes.set_xticks(range(len(datasets)), [caption(name) for name in datasets])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=150)
    return file.getvalue()


def drawn_height(score: float | None) -> float:
    """Return the height of a bar or of an end of its interval; NaN, which is not drawn, where it is unknown."""
    return math.nan if score is None else 100 * score


def caption(name: str) -> str:
    """Return a name as text in a figure: no control characters, and no formula between dollar signs."""
    return "".join(c for c in name if c.isprintable()).replace("$", r"\$")
