"""The grid: each cell is measured once, saved at once, and measured again when what it depends on changes."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from transferkit.data.embeddings import Embeddings
from transferkit.data.image_table import ImageTable, open_images
from transferkit.data.integrity import raise_broken
from transferkit.data.seen import backbone_seen
from transferkit.embed import cached_features, describe, feature_key, knows_some
from transferkit.embed.samples import quantization_of
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.probe import PROTOCOL, ProbeResult, probe_targets, save_probe
from transferkit.probe.benchmark.benchmark_table import score_text, write_results
from transferkit.probe.benchmark.cells import (
    MEASURES,
    Approach,
    Cell,
    Dataset,
    cell_folder,
    locked,
    not_in_table,
    over_seeds,
    read_cell,
    write_cell,
)
from transferkit.runtime.files import atomic_path, discard
from transferkit.runtime.json_files import finite
from transferkit.similarity import class_codes, unit_rows
from transferkit.similarity.geometry import class_sums, pair_means

log = logging.getLogger(__name__)

Opener = Callable[[Approach], Extractor]


def run(
    out: Path,
    approaches: Mapping[str, Approach],
    datasets: Mapping[str, Dataset],
    open_extractor: Opener,
    *,
    resume: bool = True,
    on_error: Literal["fail", "skip"] = "fail",
    options: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (),
) -> list[Cell]:
    """Measure every missing cell, then write the table and the figure.

    An error is recorded in its cell, does not stop the others, and the cell is tried again the next time.

    Args:
        out: directory of cells and results; one benchmark at a time writes into it.
        approaches: name -> extractor; all are compared with the first.
        datasets: name -> images, as `open_images` takes them.
        open_extractor: opens an approach's extractor on the device to use.
        resume: keep the cells whose key has not changed.
        on_error: unreadable images: ``fail`` makes the cell fail, ``skip`` leaves them out.
        options: arguments of `probe_targets`, plain types.
        seeds: further seeds of the drawn splits, beside that of ``options``: each is a cell of its own, and the
            returned one has mean and spread over all. The images are embedded once.

    Returns:
        The cells of the first seed, the approaches on one dataset side by side.

    Raises:
        UserError: another benchmark has locked the directory, or it cannot be written.
    """
    with locked(out):
        for leftover in (out / "cells").glob(".*.tmp"):  # of a run that was killed
            discard(leftover)
        for name, approach in approaches.items():
            extractor = None
            for (dataset, source), seed in product(datasets.items(), (None, *seeds)):
                asked = {**(options or {}), **({} if seed is None else {"seed": seed})}
                folder = cell_folder(out, name, dataset, seed)
                old = read_cell(folder) if resume else None
                cell = Cell(name, dataset, seed=asked.get("seed", 0))
                try:
                    extractor = extractor or open_extractor(approach)
                    table = open_images(source.images, source.image_root, source.multilabel or None)
                    cell = replace(cell, target=table.kind)
                    if extractor.precision == "int8":
                        extractor.run_with(extractor.engine, "int8", quantization_of(extractor, table))
                    key = cell_key(describe(extractor, table), table, {**asked, "on_error": on_error})
                    if old is not None and old.key == key:
                        log_cell(old, "kept")
                        continue
                    cell, result = measure(replace(cell, key=key), old, extractor, table, on_error, asked)
                    save(cell, folder, result)
                except Exception as error:  # of any kind: the other cells can still be measured
                    prefix = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                    cell = replace(cell, key=None, error=f"{prefix}{' '.join(str(error).split())}")
                    save(cell, folder)
                log_cell(cell, "measured")
        cells: list[Cell] = []
        folders: set[Path] = set()
        for dataset, name in product(datasets, approaches):
            places = [cell_folder(out, name, dataset, seed) for seed in (None, *seeds)]
            folders.update(places)
            first, *others = map(read_cell, places)
            cells += [over_seeds(first, others)] if first else []
        if left := not_in_table(out, folders):
            log.warning("%s saved cells of %s are not in this table: this call does not name them", left, out)
        write_results(out, cells, left)
    return cells


def cell_key(metadata: Mapping[str, Any], table: ImageTable, options: Mapping[str, Any]) -> str:
    """Return SHA-256 over embedding space and images, labels, splits, protocol and its options."""
    named = {{"coarse_to_fine": "fast"}.get(name, name): value for name, value in options.items()}  # as in old keys
    parts = [
        feature_key(metadata),
        table.labels,
        table.splits,
        PROTOCOL,
        named,
        *([table.groups] if table.groups else []),
        *([table.kind] if table.kind != "class" else []),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def measure(
    cell: Cell,
    old: Cell | None,
    extractor: Extractor,
    table: ImageTable,
    on_error: str,
    options: Mapping[str, Any],
) -> tuple[Cell, ProbeResult]:
    """Embed and probe.

    Args:
        cell: the cell with its names and key.
        old: the earlier cell, whose speed is kept if it was measured when the same embeddings were extracted.
        extractor: on the device to use.
        table: labeled images.
        on_error: as in `run`.
        options: arguments of `probe_targets`.

    Raises:
        UserError: unreadable images with ``fail``, or data that cannot be probed.
    """
    in_cache = knows_some(extractor, table)
    start = time.perf_counter()
    features = cached_features(extractor, table)
    speed: float | None = len(table) / (time.perf_counter() - start)
    name = feature_key(features.metadata)
    if in_cache:
        speed = old.images_per_second if old and old.features == name else None
    broken = features.metadata["broken"]
    if broken and on_error == "fail":
        raise_broken(broken, table.source, of=len(table))
    result = probe_targets(features, device=extractor.device, **options)
    result.warn_of_seen(backbone_seen(extractor.record))
    splits = result.report["splits"]
    measured = replace(
        cell,
        features=name,
        library=extractor.spec()["source"],
        parameters=sum(parameter.numel() for parameter in extractor.backbone.parameters()),
        embed_dim=extractor.embed_dim,
        images_per_second=speed,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        warnings=result.report["warnings"],
        c=result.classifier.c,
        standardization=result.classifier.standardization,
        weights_sha256=features.metadata["weights_sha256"],
        preprocessing=features.metadata["preprocessing"],
        **figures(result.report, features),
    )
    return measured, result


def figures(report: Mapping[str, Any], features: Embeddings) -> dict[str, Any]:
    """Return the fields of a cell that hold what a probe of the kind of target measures."""
    linear = report["linear"]
    if features.kind != "class":
        named = {name: linear[name] for name in MEASURES[features.kind]}
        return {"measures": finite(named), "intervals": finite(linear.get("intervals", {}))}
    return {
        "top1": linear["top1"],
        "top1_interval": linear["top1_interval"],
        "mean_per_class": linear["mean_per_class"],
        "knn_top1": report["knn"]["top1"],
        "knn_k": report["knn"]["k"],
        "class_mean_top1": report["nearest_class_mean"]["top1"],
        "few_shot": {str(p["n_per_class"]): (p["mean"], p["std"]) for p in report["few_shot"]["curve"]},
        "cosine_gap": cosine_gap(features),
    }


def cosine_gap(features: Embeddings) -> float:
    """Return the mean cosine within classes minus that between classes, over all labeled images."""
    labeled = [row for row, label in enumerate(features.labels) if label is not None]
    names, (classes,) = class_codes([features.labels[row] for row in labeled])
    means, _ = pair_means(class_sums(unit_rows(features.embedding[labeled]), classes, len(names)))
    return float(means.intra - means.inter)


def save(cell: Cell, folder: Path, result: ProbeResult | None = None) -> None:
    """Write a cell atomically: a directory that `load_predictions` reads, too."""
    with atomic_path(folder, folder=True) as temporary:
        if result is not None:
            save_probe(result, temporary)
        write_cell(cell, temporary)


def log_cell(cell: Cell, how: str) -> None:
    """Log one line about a cell."""
    if not cell.is_measured:
        log.warning("%s on %s: failed: %s", cell.approach, cell.dataset, cell.error)
    else:
        log.info("%s on %s: %s (%s)", cell.approach, cell.dataset, score_text(cell), how)
