"""The report of a ranking of extractors."""

import shlex
from typing import Any

from transferkit.reports import data_sections, svg
from transferkit.reports.content import UNREAD, Cell, Chart, Charts, Headline, Remark, Report, Section, Table
from transferkit.reports.numbers import count, decimal, percent
from transferkit.reports.result_files import ResultFolder, mapping, versions_in

FILE = "rank.json"
COLUMNS = (
    "rank", "from", "to", "extractor", "linear probe", "kNN", "LogME", "H-score", "parameters", "width", "ImageNet"
)  # fmt: skip


def rank_report(folder: ResultFolder) -> Report:
    """Return the report of a directory that ``rank`` wrote."""
    content = folder.json(FILE)
    given, versions = mapping(content.get("images")), versions_in(content)
    unread: tuple[Headline, list[Section], list[str]] = (UNREAD, [], [])
    top, sections, names = folder.part(FILE, lambda: ranking_parts(content), unread)
    command = ["transferkit", "rank", str(given.get("source") or "IMAGES"), "--extractors", ",".join(names)]
    command += ["--out", str(folder.path)]
    sections.append(data_sections.provenance([shlex.join(command)], [], {}, versions))
    return Report(folder.path.name, "Ranking", top, sections, folder.missing, versions.get("transferkit", ""))


def ranking_parts(content: dict[str, Any]) -> tuple[Headline, list[Section], list[str]]:
    """Return the headline, the table, and the names of the extractors."""
    rows: list[dict[str, Any]] = content.get("rows", [])
    sections = [ranking_section(rows, content)] if rows else []
    return headline(rows, content), sections, [str(row["extractor"]) for row in rows]


def headline(rows: list[dict[str, Any]], content: dict[str, Any]) -> Headline:
    """Return the best extractor, and whether the images can tell."""
    if not rows:
        return Headline(None, "nothing measured", "No extractor of this ranking could be measured.")
    first = rows[0]
    source = f"{FILE} rows.0.linear.top1_interval"
    low, high = (percent(end, f"{source}.{side}") for side, end in enumerate(first["linear"]["top1_interval"]))
    said = ". ".join(line[:1].upper() + line[1:] for line in content.get("verdict", []))
    value = percent(first["linear"]["top1"], f"{FILE} rows.0.linear.top1")
    stats = [("extractors", count(len(rows), f"{FILE} rows"))]
    return Headline(value, f"linear probe of {first['extractor']}", f"{said}.", (low, high), stats)


def ranking_section(rows: list[dict[str, Any]], content: dict[str, Any]) -> Section:
    """Return the extractors with all that was measured and is known, the best first."""
    points = [(row["extractor"], row["linear"]["top1"], *row["linear"]["top1_interval"]) for row in rows]
    cells: list[list[Cell]] = []
    for place, row in enumerate(rows):
        at = f"{FILE} rows.{place}"
        imagenet = row["imagenet"]
        cells.append(
            [
                count(row["rank"], f"{at}.rank"),
                *(count(end, f"{at}.rank_interval.{side}") for side, end in enumerate(row["rank_interval"])),
                row["extractor"],
                percent(row["linear"]["top1"], f"{at}.linear.top1"),
                percent(row["knn"]["top1"], f"{at}.knn.top1"),
                decimal(row["log_me"], f"{at}.log_me"),
                decimal(row["h_score"], f"{at}.h_score"),
                count(row["parameters"], f"{at}.parameters"),
                count(row["width"], f"{at}.width"),
                None if imagenet is None else percent(imagenet, f"{at}.imagenet"),
            ]
        )
    tested = (content.get("splits") or {}).get("test", 0)
    lead = f"{tested:,} test images; the interval of a rank is that of 95% of 2,000 resamples of them."
    chart = Chart("Linear probe", svg.interval_plot(points), "Accuracy on test with its 95% interval.")
    warnings = [Remark(line) for line in content.get("warnings", [])]
    return Section("ranking", "Ranking", lead, [Charts([chart]), Table(COLUMNS, cells), *warnings])
