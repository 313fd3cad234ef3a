"""The reports of a benchmark, an evaluation and an audit: directories without predictions of a classifier."""

import math
import shlex
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from transferkit.data.embeddings import Embeddings
from transferkit.reports import audit_sections, data_sections, svg, target_sections
from transferkit.reports.content import UNREAD, Block, Cell, Chart, Charts, Headline, Remark, Report, Section, Table
from transferkit.reports.data_sections import Splits
from transferkit.reports.numbers import Number, count, decimal, p_value, percent
from transferkit.reports.result_files import (
    ImageSource,
    ResultFolder,
    find_images,
    mapping,
    place_of_images,
    versions_in,
)
from transferkit.reports.thumbnails import picture_uri

BENCHMARK, SIMILARITY, PER_CLASS, AUDIT = "benchmark.csv", "similarity.json", "per_class.csv", "audit.json"
SCORES = {"class": "top1", "labels": "map", "number": "r2"}  # column that a cell is judged by, by its target
WORDS = {"top1": "linear probe accuracy", **target_sections.WORDS}
PICTURE_BYTES = 2**20  # of one picture that is taken into a page


def benchmark_report(folder: ResultFolder) -> Report:
    """Return the report of a benchmark's directory."""
    rows = folder.rows(BENCHMARK)
    unread: tuple[Headline, list[Section], list[str]] = (UNREAD, [], [])
    top, sections, failed = folder.part(BENCHMARK, lambda: benchmark_parts(rows), unread)
    folder.missing += failed
    parts = ["transferkit", "benchmark", "--config", "CONFIG.yaml", "--out", str(folder.path)]
    sections.append(data_sections.provenance([shlex.join(parts)], [], {}, {}))
    return Report(folder.path.name, "Benchmark", top, sections, folder.missing)


def benchmark_parts(rows: list[dict[str, str]]) -> tuple[Headline, list[Section], list[str]]:
    """Return the headline, a section per dataset, and a line per cell that failed."""
    measured = [row for row in rows if row.get(score_name(row))]
    failed = [f"{row['approach']} on {row['dataset']}: {row['error']}" for row in rows if row.get("error")]
    datasets = list(dict.fromkeys(row["dataset"] for row in measured))
    sections = [dataset_section(name, [row for row in measured if row["dataset"] == name]) for name in datasets]
    return benchmark_headline(measured, datasets), sections, failed


def benchmark_headline(rows: list[dict[str, str]], datasets: list[str]) -> Headline:
    """Return which approach is the best on most datasets."""
    if not rows:
        return Headline(None, "nothing measured", "No cell of this benchmark could be measured.")
    best = [max((row for row in rows if row["dataset"] == name), key=score) for name in datasets]
    names = [row["approach"] for row in best]
    winner = max(dict.fromkeys(names), key=names.count)
    stats = [("datasets", count(len(datasets), BENCHMARK)), ("cells", count(len(rows), BENCHMARK))]
    first = best[0]
    words = " or ".join(dict.fromkeys(WORDS[score_name(row)] for row in best))
    sentence = f"{winner} has the highest {words} on {names.count(winner)} of {len(datasets)} datasets."
    sentence += " Whether a difference is more than chance is below." if "top1" in map(score_name, best) else ""
    title = f"best on {first['dataset']}: {first['approach']}"
    return Headline(number(first, score_name(first)), title, sentence, ends(first), stats)


def score_name(row: Mapping[str, str]) -> str:
    """Return the column that a cell is judged by; files of earlier versions have classes alone."""
    return SCORES.get(row.get("target") or "class", "top1")


def score(row: Mapping[str, str]) -> float:
    """Return what a cell is judged by."""
    return float(row[score_name(row)])


def number(row: Mapping[str, str], name: str) -> Number:
    """Return a measure of a cell: a share in percent, those of a number as they are."""
    of_number = row.get("target") == "number"
    return (decimal if of_number else percent)(float(row[name]), f"{BENCHMARK} {name}")


def ends(row: Mapping[str, str]) -> tuple[Number, Number] | None:
    """Return the interval of what a cell is judged by; None where there is none."""
    low, high = (f"{score_name(row)}_{end}" for end in ("low", "high"))
    return (number(row, low), number(row, high)) if row.get(low) and row.get(high) else None


def dataset_section(name: str, rows: list[dict[str, str]]) -> Section:
    """Return the approaches on one dataset."""
    ordered = sorted(rows, key=lambda row: -score(row))
    if score_name(ordered[0]) != "top1":
        return other_section(name, ordered)
    points = [(row["approach"], float(row["top1"]), float(row["top1_low"]), float(row["top1_high"])) for row in ordered]
    figure = svg.interval_plot(points)
    columns: tuple[str, ...]
    cells: list[list[Cell]] = []
    several = any(row.get("top1_seeds_mean") for row in ordered)
    for row in ordered:
        low, high = ends(row) or (None, None)
        against: list[Cell] = [None, None]
        if row.get("difference"):
            against = [
                percent(float(row["difference"]), f"{BENCHMARK} difference", signed=True),
                p_value(float(row["mcnemar_p"]), f"{BENCHMARK} mcnemar_p"),
            ]
        cells.append([row["approach"], number(row, "top1"), low, high, number(row, "knn_top1"), *against])
        if several:
            names = ("top1_seeds_mean", "top1_seeds_std")
            cells[-1] += [number(row, name) if row.get(name) else None for name in names]
    columns = ("approach", "linear probe", "from", "to", "kNN", "difference to the first", "p")
    columns += ("mean over seeds", "standard deviation") if several else ()
    lead = f"{int(float(ordered[0]['test'])):,} test images. The difference is measured on the same images. "
    lead += "The intervals are for the draw of the test images alone."
    chart = Chart("Linear probe", figure, "Accuracy on test with its 95% interval.")
    return Section(f"dataset-{name}", name, lead, [Charts([chart]), Table(columns, cells)])


def other_section(name: str, rows: list[dict[str, str]]) -> Section:
    """Return the approaches on one dataset of several labels, or a number, per image; the best first."""
    target = rows[0]["target"]
    measures = [key for key in target_sections.WORDS if rows[0].get(key)]
    cells: list[list[Cell]] = []
    for row in rows:
        low, high = ends(row) or (None, None)
        interval: list[Cell] = [low, high] if target == "number" else []
        cells.append([row["approach"], *(number(row, key) for key in measures), *interval])
    columns = ("approach", *(WORDS[key] for key in measures))
    columns += ("R² from", "to (95%)") if target == "number" else ()
    kind = target_sections.FIRST[score_name(rows[0])]
    return Section(
        f"dataset-{name}", name, f"{int(float(rows[0]['test'])):,} test images, {kind}.", [Table(columns, cells)]
    )


def evaluation_report(
    folder: ResultFolder, embeddings: Embeddings | None, images: str | None = None, image_root: str | None = None
) -> tuple[Report, ImageSource]:
    """Return the report of a directory that ``evaluate`` wrote.

    Args:
        folder: the directory.
        embeddings: the table that was evaluated, where it is at hand.
        images: where its images are; None where nobody says.
        image_root: of a manifest.
    """
    values = folder.json(SIMILARITY)
    source = find_images(images, image_root, folder.path)
    per_class = folder.rows("per_class.csv")
    sections: list[Section] = []
    if per_class and (worst := folder.part(PER_CLASS, lambda: class_metrics(per_class), None)):
        sections.append(worst)
    if embeddings is None:
        folder.missing.append(
            "near-duplicates and the map: the embeddings are not at hand (transferkit evaluate has them)"
        )
    elif source.table is None:
        folder.missing.append(f"thumbnails: {source.reason}")
    if embeddings is not None:
        sections.append(data_sections.near_duplicates(embeddings))
        sections.append(data_sections.embedding_map(embeddings, None))
        splits: Splits = {
            "label": list(embeddings.labels),
            "split": [split or "no split" for split in embeddings.splits],
        }
        counted = data_sections.data_counts(splits, "embeddings", embeddings.kind)
        sections += [counted] if counted else []
    sections.append(Section("metrics", "All metrics", "", [data_sections.metric_table(values, SIMILARITY)]))
    pictures = picture_charts(folder)
    if pictures:
        sections.append(Section("pictures", "Pictures", "", [Charts(pictures)]))
    made = dict(embeddings.metadata) if embeddings is not None else {}
    facts: list[tuple[str, Cell]] = [
        (name, str(made[key]))
        for key, name in {"extractor": "extractor", "pooling": "pooling", "weights_sha256": "weights SHA-256"}.items()
        if made.get(key)
    ]
    versions = versions_in(made)
    commands = [shlex.join(["transferkit", "evaluate", "FILE.parquet", "--out", str(folder.path)])]
    sections.append(data_sections.provenance(commands, facts, {}, versions))
    version = versions.get("transferkit", "")
    return Report(
        folder.path.name, "Evaluation", evaluation_headline(values), sections, folder.missing, version
    ), source


def evaluation_headline(values: Mapping[str, float]) -> Headline:
    """Return how often the nearest image has the same label."""
    wanted = {"map_at_r": "MAP@R", "r_precision": "R-precision", "nmi": "NMI", "cosine_gap": "cosine gap"}
    stats = [
        (title, decimal(values[key], f"{SIMILARITY} {key}")) for key, title in wanted.items() if is_number(values, key)
    ]
    if not is_number(values, "precision_at_1"):
        return Headline(
            None, "no labels", "Without labels, only how evenly the embeddings spread was measured.", None, stats
        )
    share = percent(values["precision_at_1"], f"{SIMILARITY} precision_at_1")
    sentence = "The share of images whose nearest neighbor is of their class."
    return Headline(share, "nearest image has the same label", sentence, None, stats)


def is_number(values: Mapping[str, float], name: str) -> bool:
    """Whether a metric was measured."""
    value = values.get(name)
    return isinstance(value, int | float) and math.isfinite(value)


def class_metrics(rows: list[dict[str, str]]) -> Section:
    """Return the metrics of each class, the worst first by the first of them."""
    names = [name for name in rows[0] if name not in ("class", "label")]
    key = next((name for name in ("precision_at_1", "map_at_r") if name in names), names[0])
    title = next((name for name in rows[0] if name in ("class", "label")), names[0])
    wanted = ("rows", "queries", "precision_at_1", "map_at_r", "intra_class_cosine")
    chosen = [name for name in wanted if name in names] or names[:5]
    ordered = sorted(rows, key=lambda row: (float(row[key] or math.inf), row[title]))
    cells: list[list[Cell]] = [
        [row[title], *(decimal(float(row[name]), f"per_class.csv {name}") if row[name] else None for name in chosen)]
        for row in ordered[:20]
    ]
    lead = f"By {key}, the lowest first." + (f" 20 of {len(rows):,} classes." if len(rows) > 20 else "")
    return Section("classes", "Worst classes", lead, [Table(("class", *chosen), cells)])


def picture_charts(folder: ResultFolder) -> list[Chart]:
    """Return the pictures that lie in the directory."""
    charts = []
    for path in sorted(folder.path.glob("*.png")):
        if path.stat().st_size <= PICTURE_BYTES:
            words = path.stem.replace("_", " ").replace("-", " ")
            image = Markup('<img class="picture" alt="{}" src="{}">').format(words, picture_uri(path))
            charts.append(Chart(words, image))
    return charts


def audit_report(
    folder: ResultFolder, images: str | None = None, image_root: str | None = None
) -> tuple[Report, ImageSource]:
    """Return the report of an audit's directory.

    Args:
        folder: the directory.
        images: where its images are; by default where they were audited.
        image_root: of a manifest.
    """
    content = folder.json("audit.json")
    given = mapping(content.get("images"))
    source = find_images(*place_of_images(images, image_root, given), folder.path)
    if source.table is None:
        folder.missing.append(f"thumbnails: {source.reason}")
    unread: tuple[Headline, list[str], list[Block]] = (UNREAD, [], [])
    top, kinds, remarks = folder.part(AUDIT, lambda: audit_parts(content), unread)
    sections = [each for each in audit_sections.from_folder(folder, kinds) if each]
    if remarks:
        sections.append(Section("remarks", "How it was measured", "", remarks))
    out = str(folder.path)
    audit = ["transferkit", "audit", str(given.get("source") or "IMAGES")]
    audit += ["--image_root", str(given["image_root"])] if given.get("image_root") else []
    network = [(name, given.get(name)) for name in ("extractor", "weights", "pooling")]
    options = [part for name, value in network if value not in (None, "DEFAULT") for part in (f"--{name}", str(value))]
    commands = [shlex.join([*audit, *options, "--out", out]), shlex.join([*audit, "--apply", f"{out}/audit.csv"])]
    versions = versions_in(content)
    sections.append(data_sections.provenance(commands, [], {}, versions))
    return Report(folder.path.name, "Audit", top, sections, folder.missing, versions.get("transferkit", "")), source


def audit_parts(content: Mapping[str, Any]) -> tuple[Headline, list[str], list[Block]]:
    """Return the headline, the kinds of issues that were looked for, and how it was measured."""
    found = content.get("counts", {})
    kinds = [kind for kind in audit_sections.TITLES if kind in found]
    numbers = {kind: count(found[kind], f"{AUDIT} counts.{kind}") for kind in kinds}
    stats = [(audit_sections.TITLES[kind][1].lower(), number) for kind, number in numbers.items() if found[kind]]
    sentence = f"{content.get('rows', 0):,} images were looked at. "
    sentence += "Nothing was changed: review audit.csv, then apply it."
    remarks: list[Block] = [Remark(str(line)) for line in content.get("remarks", [])]
    return Headline(numbers.get("label"), "likely label errors", sentence, None, stats), kinds, remarks
