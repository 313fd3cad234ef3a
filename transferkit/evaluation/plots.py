"""Figures of a table of embeddings: cosines of its class means, a histogram of cosines, and maps of its rows."""

from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from transferkit import similarity
from transferkit.data.embeddings import Embeddings
from transferkit.reports import figures

DRAWN = 5_000
"""Most rows in the histogram and in the map; the titles state the number."""
CLASSES_DRAWN = 500
"""Most classes in the matrix of class means: a pixel each, and bounded memory."""
TSNE_DRAWN = 2_000
"""Most rows in a t-SNE map, which takes half a minute."""


class Side(NamedTuple):
    """Unit rows `(N, D)` and their classes `(N,)`, -1 where unknown."""

    rows: Tensor
    classes: Tensor

    def at(self, chosen: Tensor) -> "Side":
        """Select rows by index or mask."""
        return Side(self.rows[chosen], self.classes[chosen])


def draw(
    table: Embeddings, reference: Embeddings | None, folder: Path, *, tsne: bool = False, seed: int = 0
) -> list[Path]:
    """Draw the cosines of class means, a histogram of cosines, and maps, as far as a table has labels.

    Args:
        table: the queries.
        reference: rows that the first two figures compare them with; None compares them with each other.
        folder: directory of the PNG files.
        tsne: whether to draw a t-SNE map too.
        seed: of the rows drawn if there are too many.

    Returns:
        The files written.
    """
    tables = (table,) if reference is None else (table, reference)
    names, codes = similarity.class_codes(*(side.labels for side in tables))
    labels = [str(name) for name in names]
    sides = [Side(similarity.unit_rows(side.embedding), classes) for side, classes in zip(tables, codes, strict=True)]
    query, other = sides[0], sides[-1]
    known = [side if side.classes.min() >= 0 else side.at(side.classes >= 0) for side in sides]
    plots = {"map_pca": principal_map(query, labels, seed)}
    if tsne and len(table) > 3:
        plots["map_tsne"] = neighbour_map(query, labels, seed)
    if all(len(side.rows) for side in known):
        plots["class_means"] = class_matrix(known[0], known[-1], labels)
        plots["cosine_histogram"] = histogram(known[0], known[-1], True, seed)
    else:
        plots["cosine_histogram"] = histogram(query, other, False, seed)
    for name, figure in sorted(plots.items()):
        figures.save(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in sorted(plots)]


def class_matrix(query: Side, reference: Side, labels: list[str]) -> Figure:
    """Draw the cosines of the class means of the queries with those of the references."""
    all_of = [torch.unique(side.classes) for side in (query, reference)]
    drawn = [classes[similarity.drawn_rows(len(classes), CLASSES_DRAWN, 0)] for classes in all_of]
    title = "cosine of class means"
    if drawn[0].shape < all_of[0].shape:
        title += f", {len(drawn[0]):,} of {len(all_of[0]):,} classes"
    means = [
        similarity.class_means(*side, len(labels))[classes]
        for side, classes in zip((query, reference), drawn, strict=True)
    ]
    rows, columns = ([labels[code] for code in classes.tolist()] for classes in drawn)
    figure = figures.class_cosines(similarity.cosine_matrix(*means), rows, columns, title)
    if query is not reference:
        figure.axes[0].set(xlabel="references", ylabel="queries")
    return figure


def histogram(query: Side, reference: Side, labelled: bool, seed: int) -> Figure:
    """Draw a histogram of the cosines of pairs, separately for pairs of the same class."""
    chosen = query.at(similarity.drawn_rows(len(query.rows), DRAWN, seed))
    against = chosen if query is reference else reference.at(similarity.drawn_rows(len(reference.rows), DRAWN, seed))
    counts = similarity.cosine_counts(*chosen, *against)
    series = {"same class": counts.intra, "different classes": counts.inter}
    if not labelled:
        series = {"all": counts.intra + counts.inter}
    return figures.cosine_histogram(series, f"cosine of pairs, {share_of(chosen, query)}")


def principal_map(query: Side, labels: list[str], seed: int) -> Figure:
    """Draw the rows along the two principal axes."""
    points, share = similarity.principal_axes(query.rows)
    chosen = similarity.drawn_rows(len(points), DRAWN, seed)
    drawn = query.at(chosen)
    x, y = (f"axis {axis}: {part:.0%} of the variance" for axis, part in enumerate(share.tolist(), 1))
    return figures.scatter(points[chosen], drawn.classes, labels, f"PCA, {share_of(drawn, query)}", (x, y))


def neighbour_map(query: Side, labels: list[str], seed: int) -> Figure:
    """Draw the rows by t-SNE."""
    drawn = query.at(similarity.drawn_rows(len(query.rows), TSNE_DRAWN, seed))
    points = similarity.neighbour_map(drawn.rows, seed=seed)
    return figures.scatter(points, drawn.classes, labels, f"t-SNE, {share_of(drawn, query)}", ("", ""))


def share_of(part: Side, whole: Side) -> str:
    """Return how many of the rows are drawn, as text."""
    return f"{len(part.rows):,} of {len(whole.rows):,} rows"
