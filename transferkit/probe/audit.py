"""What to mend in labeled images: likely label errors, outliers and others, each with a score. Nothing is changed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from transferkit import similarity
from transferkit.data import seen
from transferkit.data.embeddings import Embeddings
from transferkit.data.targets import require_class
from transferkit.images.quality import PictureStats
from transferkit.probe.out_of_fold import FOLDS, out_of_fold
from transferkit.probe.own_paths import with_own_paths
from transferkit.similarity.label_quality import confident_classes, neighbor_share, robust_z, self_confidence
from transferkit.similarity.temperature import fit_temperature

NEIGHBORS = 20
MEASURED = 2_000
"""Rows at most on which the usual distance of two images is measured."""
VOTE = 0.2
"""Weight of the neighbors' vote beside the probe's probability."""
DOUBTFUL, HARDLY = 0.5, 0.1
"""Quality below which a label is a likely error where confident learning says so, and where nobody has to."""
FAR = 4.0
"""Robust standard deviations from which an image is an outlier."""
OWN = 5
"""Nearest rows of the same class that tell whether an image is like its class."""
OF_CLASS = 5_000
"""Rows of a class at most among which these are looked for."""
CLOSE = 0.1
"""Difference of the two highest probabilities below which an image is ambiguous."""
DARK, BRIGHT = 0.2, 0.9
"""Brightness below which nearly all pixels of a dark picture lie, and above which those of a bright one do."""
FLAT, WIDE, SOFT = 2.5, 2.5, 0.1
"""Bits of entropy of a picture with little to see; times the usual aspect ratio; share of the usual sharpness."""
KINDS = (
    "label",
    "outlier",
    "off-class",
    "ambiguous",
    "burst",
    "blurred",
    "dark",
    "bright",
    "low-information",
    "odd-aspect",
)


class Issue(NamedTuple):
    """One thing to look at.

    Attributes:
        issue: one of ``KINDS``.
        score: how sure it is, in [0, 1].
        path: of the image.
        label: of the image, or None.
        split: of the image, or None.
        suggested: the class that it rather belongs to, or None.
        detail: what exactly, or empty.
    """

    issue: str
    score: float
    path: str
    label: str | None
    split: str | None
    suggested: str | None
    detail: str


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        issues: by kind in the order of ``KINDS``, the surest first.
        rows: images that were looked at.
        quality: path -> quality of the label in [0, 1], of the images whose label could be judged.
        remarks: how it was measured, and what could not be.
        kinds: of issues that were looked for.
        labeled: images with a label.
    """

    issues: list[Issue]
    rows: int
    quality: dict[str, float]
    remarks: list[str]
    kinds: tuple[str, ...] = KINDS
    labeled: int = 0

    def counts(self) -> dict[str, int]:
        """How many issues of each kind there are."""
        return {kind: sum(issue.issue == kind for issue in self.issues) for kind in self.kinds}


def audit_embeddings(
    table: Embeddings,
    pictures: dict[str, PictureStats] | None = None,
    *,
    folds: int = FOLDS,
    seed: int = 0,
    in_place: bool = False,
    fine_tuned: bool = False,
) -> Audit:
    """Look for what should be mended in labeled images.

    Labels are judged by a linear probe on the other folds, near-duplicates and groups kept in one, and by the nearest
    images that are no near-duplicates and of another group.

    Args:
        table: the embeddings; rows without label are only looked at as images.
        pictures: path -> measures of the picture, where they were read.
        folds: of the probe.
        seed: of the folds.
        in_place: scale the table's embeddings to length 1, for a caller that needs them no more: it saves a copy.
        fine_tuned: whether the extractor has learned the classes, see :func:`~transferkit.similarity.usual_threshold`;
            what the table's metadata say of it counts, too.

    Raises:
        UserError: no rows, NaN or infinity; several labels or a number per image.
    """
    require_class(table.kind, "an audit")
    table = with_own_paths(table)
    similarity.finite_rows(table.embedding, "embeddings", table.paths)
    found: list[Issue] = []
    unit = similarity.unit_rows(table.embedding, in_place=in_place)
    neighbors = nearest(unit, fine_tuned or seen.fine_tuned(table.metadata))
    same = neighbors.joined(table.groups)
    remarks = [f"near-duplicates: cosine of {neighbors.threshold:.4g} or more"]
    quality, issues = label_issues(table, unit, same, folds, seed, remarks)
    found += issues
    found += outliers(table, neighbors)
    taken = {issue.path for issue in found}
    found += [issue for issue in off_class(table, unit, neighbors) if issue.path not in taken]
    found += bursts(table, unit, neighbors)
    found += picture_issues(table, pictures or {})
    order = {kind: number for number, kind in enumerate(KINDS)}
    found.sort(key=lambda issue: (order[issue.issue], -issue.score, issue.path))
    if pictures is None:
        remarks.append("the pictures themselves were not looked at: a table of embeddings has none")
    kinds = KINDS if pictures is not None else KINDS[: KINDS.index("blurred")]
    labeled = sum(label is not None for label in table.labels)
    return Audit(found, len(table), quality, remarks, kinds, labeled)


class Neighbors(NamedTuple):
    """The nearest rows of each row.

    Attributes:
        cosine: `(N, k)`, descending.
        row: `(N, k)` int64.
        together: `(N, k)` bool, which of them are near-duplicates of the row, or of its given group.
        group: `(N,)` int64, equal for near-duplicates and all that they link: whole classes of images that are alike.
        threshold: cosine from which two rows are near-duplicates.
    """

    cosine: Tensor
    row: Tensor
    together: Tensor
    group: Tensor
    threshold: float

    def joined(self, groups: Sequence[str | None] | None) -> "Neighbors":
        """Return the same neighbors, with given groups joined to those of near-duplicates."""
        if groups is None:
            return self
        first_of: dict[str, int] = {}
        pairs = [(first_of.setdefault(name, row), row) for row, name in enumerate(groups) if name is not None]
        linked = [*enumerate(self.group.tolist()), *pairs]
        first, second = (torch.tensor(column) for column in zip(*linked, strict=True))
        group = similarity.joined_rows(len(groups), first, second)
        code = torch.tensor([-1 if name is None else first_of[name] for name in groups])
        same = (code[self.row] == code[:, None]) & (code[:, None] >= 0)
        return self._replace(group=group, together=self.together | same)

    def mean_distance(self, most: int = 10) -> Tensor:
        """Return the mean distance of each row to its nearest rows that are no near-duplicates, NaN without any."""
        apart = ~self.together
        rank = apart.cumsum(1)
        used = apart & (rank <= most)
        return ((1 - self.cosine) * used).sum(1) / used.sum(1)


def nearest(unit: Tensor, fine_tuned: bool = False) -> Neighbors:
    """Return the neighbors of unit rows `(N, D)`, and which of them are near-duplicates."""
    threshold = similarity.usual_threshold(unit[similarity.drawn_rows(len(unit), MEASURED, 0)], fine_tuned)
    cosine, row = similarity.top_k(unit, unit, NEIGHBORS, exclude_self=True, normalize=False)
    together = cosine >= threshold
    first, place = together.nonzero(as_tuple=True)
    group = similarity.joined_rows(len(unit), first, row[first, place])
    return Neighbors(cosine, row, together, group, threshold)


def label_issues(
    table: Embeddings, unit: Tensor, neighbors: Neighbors, folds: int, seed: int, remarks: list[str]
) -> tuple[dict[str, float], list[Issue]]:
    """Return the quality of each label that can be judged, and the likely errors and ambiguous images."""
    names, (code,) = similarity.class_codes(table.labels)
    judged = judgeable(code, neighbors.group, len(names))
    left_out = int((code >= 0).sum()) - len(judged)
    if left_out:
        remarks.append(f"labels of {left_out:,} images were not judged: their class has no other image to learn from")
    if len(judged) == 0 or len(torch.unique(code[judged])) < 2:
        remarks.append("labels were not judged: that takes two classes of two images each")
        return {}, []
    classes, target = torch.unique(code[judged], return_inverse=True)
    rows = unit if len(judged) == len(unit) else unit[judged]
    probability, c = out_of_fold(rows, target, len(classes), neighbors.group[judged], folds=folds, seed=seed)
    remarks.append(f"labels: linear probe of {folds} folds at C = {c:g}, and a vote of {NEIGHBORS} neighbors")
    share = neighbor_share(neighbors.cosine, neighbors.row, code, neighbors.together)[judged]
    own = self_confidence(probability, target).double()
    quality = torch.where(share.isnan(), own, (1 - VOTE) * own + VOTE * share)
    other = confident_classes(probability, target)
    wrong = ((other >= 0) & (other != target) & (quality < DOUBTFUL)) | (quality < HARDLY)
    rival = probability.scatter(1, target[:, None], -1).argmax(1)
    other = torch.where((other >= 0) & (other != target), other, rival)

    def name(row: int) -> str:
        return str(names[int(classes[row])])

    issues = []
    for row in wrong.nonzero().flatten().tolist():
        detail = f"probability of the label {own[row]:.3f}, neighbors' vote for it {share[row]:.2f}"
        issues.append(
            issue_of("label", 1 - float(quality[row]), table, int(judged[row]), name(int(other[row])), detail)
        )
    best, two = calibrated(probability, target).topk(2, 1)
    margin = best[:, 0] - best[:, 1]
    between = (margin < CLOSE) & (best.sum(1) > 0.8) & (two == target[:, None]).any(1) & ~wrong
    for row in between.nonzero().flatten().tolist():
        second = int(two[row][two[row] != target[row]][0])
        detail = f"{name(int(two[row, 0]))} {best[row, 0]:.2f}, {name(int(two[row, 1]))} {best[row, 1]:.2f}"
        score = 1 - float(margin[row]) / CLOSE
        issues.append(issue_of("ambiguous", score, table, int(judged[row]), name(second), detail))
    by_path = {table.paths[row]: float(value) for row, value in zip(judged.tolist(), quality.tolist(), strict=True)}
    return by_path, issues


def calibrated(probability: Tensor, target: Tensor) -> Tensor:
    """Return out-of-fold probabilities that come true: a probe of few images says less than it knows.

    Args:
        probability: `(N, K)`.
        target: `(N,)` int64, the classes of the labels.
    """
    logits = probability.double().clamp(min=torch.finfo(torch.float64).tiny).log()
    return (logits / fit_temperature(logits, target)).softmax(1)


def judgeable(code: Tensor, group: Tensor, classes: int) -> Tensor:
    """Return the rows whose class has an image of another group, `(J,)` int64: others cannot be learned."""
    pairs = torch.unique(torch.stack([code, group], 1)[code >= 0], dim=0)
    groups = pairs[:, 0].bincount(minlength=max(1, classes))
    learned: Tensor = (code >= 0) & (groups[code.clamp(min=0)] > 1)
    return learned.nonzero().flatten()


def issue_of(
    kind: str, score: float, table: Embeddings, row: int, suggested: str | None = None, detail: str = ""
) -> Issue:
    """Return the issue of one row."""
    label = table.labels[row]
    return Issue(kind, min(1.0, max(0.0, score)), table.paths[row], label, table.splits[row], suggested, detail)


def outliers(table: Embeddings, neighbors: Neighbors) -> list[Issue]:
    """Return images that are far from their nearest neighbors."""
    distance = neighbors.mean_distance()
    z = robust_z(distance)
    return [
        issue_of(
            "outlier", 1 - FAR / float(z[row]), table, row, None, f"{float(z[row]):.1f} deviations farther than usual"
        )
        for row in (z > FAR).nonzero().flatten().tolist()
    ]


def off_class(table: Embeddings, unit: Tensor, neighbors: Neighbors, seed: int = 0) -> list[Issue]:
    """Return images that are far from the nearest others of their own class, in deviations of that class."""
    _, (code,) = similarity.class_codes(table.labels)
    issues = []
    for number in torch.unique(code[code >= 0]).tolist():
        rows = (code == number).nonzero().flatten()
        if len(rows) < 2 * OWN:
            continue
        references = rows[similarity.drawn_rows(len(rows), OF_CLASS, seed)]
        cosine, _ = similarity.top_k(unit[rows], unit[references], NEIGHBORS + 1, normalize=False)
        apart = cosine < neighbors.threshold  # the row itself is not
        used = apart & (apart.cumsum(1) <= OWN)
        distance = ((1 - cosine) * used).sum(1) / used.sum(1)
        z = robust_z(distance)
        for place in (z > FAR).nonzero().flatten().tolist():
            detail = f"{float(z[place]):.1f} deviations farther from its class than usual"
            issues.append(issue_of("off-class", 1 - FAR / float(z[place]), table, int(rows[place]), None, detail))
    return issues


def bursts(table: Embeddings, unit: Tensor, neighbors: Neighbors) -> list[Issue]:
    """Return every image of a group of near-duplicates but its first."""
    order = neighbors.group.argsort(stable=True)
    _, sizes = torch.unique_consecutive(neighbors.group[order], return_counts=True)
    linked = [rows.tolist() for rows in torch.split(order, sizes.tolist()) if len(rows) > 1]
    issues = []
    for first, *others in similarity.groups_within(unit, linked, neighbors.threshold):
        cosine = unit[others] @ unit[first]
        for row, value in zip(others, cosine.tolist(), strict=True):
            detail = f"one of {len(others) + 1} near-duplicates, as {table.paths[first]}"
            issues.append(issue_of("burst", value, table, row, None, detail))
    return issues


def picture_issues(table: Embeddings, pictures: dict[str, PictureStats]) -> Iterable[Issue]:
    """Return what is odd about the pictures themselves."""
    rows = [row for row, path in enumerate(table.paths) if path in pictures]
    if not rows:
        return []
    stats = [pictures[table.paths[row]] for row in rows]
    usual_sharpness, usual_aspect = (
        median([getattr(each, name) for each in stats]) for name in ("sharpness", "aspect")
    )
    issues = []
    for row, each in zip(rows, stats, strict=True):
        limits: list[tuple[str, float, float, str]] = [  # kind, value, limit that it should reach, what it is
            ("dark", each.high, DARK, "brightness"),
            ("low-information", each.entropy, FLAT, "bits of entropy"),
            ("blurred", each.sharpness, SOFT * usual_sharpness, "variance of the Laplacian"),
            ("bright", 1 - each.low, 1 - BRIGHT, "below white"),
            ("odd-aspect", usual_aspect / each.aspect, 1 / WIDE, "of the usual aspect ratio"),
        ]
        for kind, value, limit, what in limits:
            if value < limit:
                issues.append(issue_of(kind, 1 - value / limit, table, row, None, f"{value:.3g} {what}"))
    return issues


def median(values: Sequence[float]) -> float:
    """Return the middle value."""
    return float(torch.tensor(values, dtype=torch.float64).median())
