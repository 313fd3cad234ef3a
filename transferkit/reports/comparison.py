"""Two runs or probes side by side: what changed, and whether it is more than chance."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from transferkit.data.targets import WORDS
from transferkit.errors import UserError
from transferkit.reports import data_sections, svg
from transferkit.reports.content import (
    Block,
    Card,
    Cell,
    Chart,
    Charts,
    Gallery,
    Headline,
    Remark,
    Report,
    Section,
    Table,
)
from transferkit.reports.mistakes import PredictionTable
from transferkit.reports.numbers import Number, counted, decimal, p_value, percent
from transferkit.reports.result_files import (
    NO_PLACE,
    PREDICTIONS,
    ImageSource,
    ResultFolder,
    find_images,
    mapping,
    place_of_images,
)
from transferkit.reports.target_comparison import (
    ALIKE,
    BETTER,
    SHOWN,
    TargetTable,
    compare_targets,
    largest_changes,
    shared_rows,
    targets_of,
)
from transferkit.similarity.paired import PairedComparison, compare_paired

LEVEL = 0.05
OF_PROBE = ("top1", "top5", "mean_per_class", "ece", "ece_calibrated", "map", "f1_macro", "f1_micro", "mae", "r2")
MADE = ("extractor", "pooling", "precision", "weights_sha256")  # of the embeddings of a probe


def comparison_report(
    first: ResultFolder, second: ResultFolder, images: str | None = None, image_root: str | None = None
) -> tuple[Report, ImageSource]:
    """Return the report of two directories with predictions of the same images, and where the images are.

    Args:
        first: the one compared with.
        second: the other.
        images: where the images are now.
        image_root: of a manifest.

    Raises:
        UserError: a directory without predictions, predictions of two kinds, or no image in common.
    """
    names = names_of(first, second)
    one, other = (targets_of(folder) or predictions_of(folder) for folder in (first, second))
    if isinstance(one, PredictionTable) and isinstance(other, PredictionTable):
        top, sections, missing = compare_classes(one, other, names)
    elif isinstance(one, TargetTable) and isinstance(other, TargetTable) and one.kind == other.kind:
        top, sections, missing = compare_targets(one, other, names)
    else:
        kinds = [WORDS[table.kind if isinstance(table, TargetTable) else "class"] for table in (one, other)]
        raise UserError(f"{first.path} predicts {kinds[0]}, {second.path} {kinds[1]}; give two that predict the same")
    source = images_of(first, second, images, image_root)
    if source.table is None:
        missing.append(f"thumbnails: {source.reason}")
    sections += [metrics_side_by_side(first, second, names), options_side_by_side(first, second, names)]
    command = shlex.join(["transferkit", "report", str(first.path), str(second.path)])
    sections.append(
        data_sections.provenance(
            [command], [(names[0], str(first.path)), (names[1], str(second.path))], {}, versions_of(first, second)
        )
    )
    shown = [section for section in sections if section]
    return Report(f"{names[0]} and {names[1]}", "Comparison", top, shown, missing), source


def compare_classes(
    one: PredictionTable, other: PredictionTable, names: tuple[str, str]
) -> tuple[Headline, list[Section | None], list[str]]:
    """Return headline and sections of two tables of one class per image, and what is missing.

    Raises:
        UserError: no image in common.
    """
    rows, alone = shared_rows(
        list(zip(one.paths, one.labels, strict=True)), list(zip(other.paths, other.labels, strict=True)), names
    )
    a, b = (take(table, own) for table, own in zip((one, other), rows, strict=True))
    compared = compare_paired(torch.from_numpy(a.correct), torch.from_numpy(b.correct))
    sections: list[Section | None] = [
        differences(compared, len(a)),
        class_changes(a, b, names),
        changed("lost", f"Right in {names[0]}, wrong in {names[1]}", a, b, a.correct & ~b.correct),
        changed("gained", f"Wrong in {names[0]}, right in {names[1]}", a, b, b.correct & ~a.correct),
    ]
    return headline(compared, a, b, names), sections, alone


def predictions_of(folder: ResultFolder) -> PredictionTable:
    """Return the predictions of a directory.

    Raises:
        UserError: there are none.
    """
    found = folder.predictions()
    if found is None and (folder.path / PREDICTIONS).is_file():
        raise UserError(
            f"{folder.path / PREDICTIONS} has no predictions of labeled images; give a run or probe of some"
        )
    if found is None:
        raise UserError(
            f"{folder.path} holds no predictions to compare; test the run first, or give a probe's directory"
        )
    return found


def take(table: PredictionTable, rows: Sequence[int]) -> PredictionTable:
    """Return some rows of a table."""
    paths, labels, preds = ([column[row] for row in rows] for column in (table.paths, table.labels, table.preds))
    return PredictionTable(paths, labels, preds, table.probability[list(rows)])


def names_of(first: ResultFolder, second: ResultFolder) -> tuple[str, str]:
    """Return short names of two directories that differ."""
    one, other = first.path.absolute().parts, second.path.absolute().parts
    depth = next((depth for depth in range(1, max(len(one), len(other))) if one[-depth:] != other[-depth:]), 1)
    depth = max(depth, 2) if first.kind == second.kind == "run" else depth
    return "/".join(one[-depth:]), "/".join(other[-depth:])


def images_of(first: ResultFolder, second: ResultFolder, images: str | None, image_root: str | None) -> ImageSource:
    """Return where the images are, by whichever directory knows."""
    found = ImageSource(None, NO_PLACE)
    for folder in (first, second):
        data = mapping(folder.yaml("config.yaml").get("data") or folder.json("probe.json").get("images"))
        name = "root" if "root" in data else "source"
        place, root = place_of_images(images, image_root, data, name)
        if place:
            found = find_images(place, root, folder.path)
        if found.table is not None:
            break
    return found


def verdict(compared: PairedComparison, names: tuple[str, str]) -> str:
    """Return what the difference means."""
    if compared.mcnemar_p >= LEVEL:
        return ALIKE[0]
    return BETTER.format(names[1] if compared.difference > 0 else names[0])


def headline(compared: PairedComparison, a: PredictionTable, b: PredictionTable, names: tuple[str, str]) -> Headline:
    """Return the difference, its interval and the verdict."""
    low, high = compared.interval
    sentence = (
        f"{verdict(compared, names)} On the same {len(a):,} images {names[1]} is right on "
        f"{compared.only_second:,} that {names[0]} gets wrong, and wrong on {compared.only_first:,} that it gets right."
    )
    stats = [
        (names[0], percent(float(a.correct.mean()), "first")),
        (names[1], percent(float(b.correct.mean()), "second")),
        ("McNemar's p", p_value(compared.mcnemar_p, "mcnemar_p")),
    ]
    ends = percent(low, "interval low", signed=True), percent(high, "interval high", signed=True)
    return Headline(
        percent(compared.difference, "difference", signed=True), "difference in accuracy", sentence, ends, stats
    )


def differences(compared: PairedComparison, total: int) -> Section:
    """Return how the difference was tested."""
    low, high = compared.interval
    figure = svg.interval_plot([("difference", compared.difference, low, high)], zero=True)
    lead = (
        f"Paired bootstrap over {total:,} images, 95% interval; McNemar's exact test of the "
        f"{compared.only_first + compared.only_second:,} images on which they differ."
    )
    return Section("test", "Is it more than chance?", lead, [Charts([Chart("Second minus first", figure)])])


def class_changes(a: PredictionTable, b: PredictionTable, names: tuple[str, str]) -> Section:
    """Return the classes whose accuracy changed most."""
    totals = Counter(a.labels)
    right = [Counter(label for label, ok in zip(t.labels, t.correct, strict=True) if ok) for t in (a, b)]
    change = {name: (right[1][name] - right[0][name]) / totals[name] for name in totals}
    order = sorted((name for name in totals if change[name]), key=lambda name: (-abs(change[name]), name))
    found = [
        (name, right[0][name] / totals[name], right[1][name] / totals[name], change[name], totals[name])
        for name in order
    ]
    lead = f"{len(order):,} of {len(totals):,} classes changed; the largest changes first."
    return largest_changes("class", "Classes that changed", lead, found, names)


def changed(anchor: str, title: str, a: PredictionTable, b: PredictionTable, which: Any) -> Section:
    """Return the images that one gets right and the other does not."""
    rows = which.nonzero()[0].tolist()
    cards = []
    for row in rows[:SHOWN]:
        path, label = a.paths[row], a.labels[row]
        lines: list[tuple[str, str | Number]] = [("", label), ("first", a.preds[row]), ("second", b.preds[row])]
        cards.append(Card(path, f"{path}: {label}, {a.preds[row]}, then {b.preds[row]}", lines))
    lead = f"{counted(len(rows), 'image')}." if rows else "No image."
    return Section(anchor, title, lead, [Gallery(cards, "", max(0, len(rows) - SHOWN))] if cards else [])


def metrics_side_by_side(first: ResultFolder, second: ResultFolder, names: tuple[str, str]) -> Section | None:
    """Return the metrics that both have."""
    one, other = (measured(folder) for folder in (first, second))
    keys = [key for key in one if key in other]
    if not keys:
        return None
    rows: list[list[Cell]] = [
        [key, decimal(one[key], "first"), decimal(other[key], "second"), decimal(other[key] - one[key], "change")]
        for key in keys
    ]
    return Section("metrics", "Metrics", "", [Table(("metric", *names, "change"), rows)])


def measured(folder: ResultFolder) -> dict[str, float]:
    """Return the test metrics of a run, or those of a probe's classifier."""
    found = folder.json("metrics.json")
    linear = mapping(folder.json("probe.json").get("linear"))
    values = {name: value for name, value in found.items() if name.startswith("test/")}
    values |= {name: linear.get(name) for name in OF_PROBE}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def versions_of(first: ResultFolder, second: ResultFolder) -> dict[str, str]:
    """Return the versions of the libraries that two probes recorded, both where they differ."""
    one, other = (folder.json("probe.json").get("versions") or {} for folder in (first, second))
    pairs = {name: dict.fromkeys(str(each.get(name, "–")) for each in (one, other)) for name in one | other}
    return {name: ", then ".join(values) for name, values in pairs.items()}


def options_side_by_side(first: ResultFolder, second: ResultFolder, names: tuple[str, str]) -> Section:
    """Return the options in which the two differ."""
    one, other = (flat(options_of(folder)) for folder in (first, second))
    keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
    rows: list[list[Cell]] = [[key, str(one.get(key, "–")), str(other.get(key, "–"))] for key in keys]
    lead = "Where their configurations differ." if rows else "Their configurations are the same."
    blocks: list[Block] = [Table(("option", *names), rows)] if rows else [Remark("No option differs.")]
    return Section("options", "Options", lead, blocks)


def options_of(folder: ResultFolder) -> dict[str, Any]:
    """Return the configuration of a run or probe."""
    probe = folder.json("probe.json")
    made = mapping(probe.get("embeddings"))
    kept = {key: value for key, value in made.items() if key in MADE}
    return folder.yaml("config.yaml") or {**kept, **mapping(probe.get("options"))}


def flat(content: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested options with dotted names."""
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{before}{key}"
        values |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return values
