"""Which extractor suits some images: probes of each on the same rows, and what is known without a probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transferkit.data.embeddings import Embeddings
from transferkit.data.groups import units_of
from transferkit.errors import UserError
from transferkit.probe.own_paths import with_own_paths
from transferkit.probe.protocol import ProbeResult, check_same_images, probe_embeddings
from transferkit.similarity.cosine import class_codes
from transferkit.similarity.rank_intervals import difference_interval, rank_intervals, resampled_accuracies
from transferkit.similarity.transferability import log_me, shrunk_h_score


class Known(NamedTuple):
    """What is known of an extractor before it sees an image.

    Attributes:
        extractor: its name.
        parameters: number of them, without a classifier.
        width: of the embedding.
        imagenet: published top-1 accuracy on ImageNet-1K, or None.
    """

    extractor: str
    parameters: int
    width: int
    imagenet: float | None


@dataclass(frozen=True)
class Candidate:
    """An extractor, measured.

    Attributes:
        known: of the extractor.
        result: of its probe.
        log_me: see :func:`~transferkit.similarity.transferability.log_me`, on the rows that the probe was fitted on.
        h_score: see :func:`~transferkit.similarity.transferability.shrunk_h_score`, on the same rows.
        units: what each test row is drawn with by a bootstrap.
    """

    known: Known
    result: ProbeResult
    log_me: float
    h_score: float
    units: list[str]

    @property
    def linear(self) -> dict[str, Any]:
        """Scores of the linear probe."""
        return dict(self.result.report["linear"])

    @property
    def knn(self) -> dict[str, Any]:
        """Scores of kNN."""
        return dict(self.result.report["knn"])


def measure_candidate(
    known: Known, embeddings: Embeddings, *, coarse_to_fine: bool, seed: int, val_fraction: float, test_fraction: float
) -> Candidate:
    """Probe the embeddings of one extractor; arguments as of :func:`probe_embeddings`.

    Raises:
        UserError: the embeddings cannot be probed.
    """
    embeddings = with_own_paths(embeddings)
    result = probe_embeddings(
        embeddings,
        coarse_to_fine=coarse_to_fine,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        shots=(),
    )
    fitted = [
        row for row, split in zip(result.splits.paths, result.splits.splits, strict=True) if split in ("train", "val")
    ]
    rows = torch.tensor([embeddings.row_of[path] for path in fitted])
    _, (target,) = class_codes([embeddings.labels[row] for row in rows.tolist()])
    features = embeddings.embedding[rows]
    unit_of = dict(zip(embeddings.paths, units_of(embeddings.paths, embeddings.groups), strict=True))
    units = [unit_of[path] for path in result.predictions.paths]
    return Candidate(known, result, log_me(features, target), shrunk_h_score(features, target), units)


def rank_candidates(candidates: Sequence[Candidate], *, seed: int = 0) -> dict[str, Any]:
    """Return the candidates by the accuracy of their linear probes, with intervals of the ranks, as plain types.

    Args:
        candidates: two or more, of the same images.
        seed: of the bootstrap, which draws groups as a whole.

    Raises:
        UserError: they were tested on different images.
    """
    if len(candidates) < 2:
        raise UserError("one extractor has no rank; give two or more as `extractors`")
    ordered = sorted(candidates, key=lambda c: (-c.linear["top1"], -c.knn["top1"], c.known.extractor))
    first, second = ordered[:2]
    for other in ordered[1:]:
        check_same_images(first.result.predictions, other.result.predictions)
    correct: Tensor = torch.stack([each.result.predictions.correct for each in ordered])
    accuracies = resampled_accuracies(correct, first.units, seed=seed)
    intervals, ends = rank_intervals(accuracies), difference_interval(accuracies, 0, 1)
    rows = [
        {
            "rank": 1 + sum(other.linear["top1"] > each.linear["top1"] for other in ordered),
            "rank_interval": [intervals.low[place], intervals.high[place]],
            "first_share": intervals.first[place],
            **each.known._asdict(),
            "linear": {name: each.linear[name] for name in ("top1", "top1_interval", "C", "standardisation")},
            "knn": {name: each.knn[name] for name in ("top1", "top1_interval", "k")},
            "log_me": each.log_me,
            "h_score": each.h_score,
        }
        for place, each in enumerate(ordered)
    ]
    pair = {"difference": first.linear["top1"] - second.linear["top1"], "interval": list(ends)}
    return {
        "rows": rows,
        "first_and_second": {**pair, "told_apart": ends[0] > 0},
        "splits": first.result.report["splits"],
        "class_names": first.result.report["class_names"],
        "warnings": [f"{e.known.extractor}: {line}" for e in ordered for line in e.result.report["warnings"]],
    }


def verdict(ranking: dict[str, Any]) -> list[str]:
    """Return what a reader should take from a ranking, one sentence each."""
    rows, pair = ranking["rows"], ranking["first_and_second"]
    first, second = rows[0]["extractor"], rows[1]["extractor"]
    low, high = (100 * end for end in pair["interval"])
    difference = f"{100 * pair['difference']:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
    tested = ranking["splits"]["test"]
    if pair["told_apart"]:
        lines = [f"{first} is better than {second} on these images ({difference}, {tested} test images)"]
    else:
        among = [row["extractor"] for row in rows if row["rank_interval"][0] == 1]
        others = f"; any of {', '.join(among)} may be the best" if len(among) > 2 else ""
        lines = [f"{tested} test images cannot tell {first} from {second} ({difference}){others}"]
    known = [row for row in rows if row["imagenet"] is not None]
    if len(known) > 1:
        expected = max(known, key=lambda row: row["imagenet"])
        best = f", where {first} is first" if expected["rank"] > 1 else ", too"
        lines.append(
            f"by published ImageNet accuracy one would take {expected['extractor']}: rank {expected['rank']} here{best}"
        )
    return lines
