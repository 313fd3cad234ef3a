"""Folds of a table of embeddings, each in turn the test."""

from collections.abc import Iterator
from dataclasses import replace

from transferkit.data.embeddings import Embeddings
from transferkit.data.splits import deal_folds
from transferkit.data.targets import TARGETS
from transferkit.probe.own_paths import with_own_paths


def fold_tables(embeddings: Embeddings, folds: int, seed: int) -> Iterator[Embeddings]:
    """Yield the labeled rows with another fold as test each time, and the others as train; own splits are not used.

    Stratified, and groups stay together; each row is tested once, but for those of a class that only one fold would
    have, of which the smallest group always trains.

    Args:
        embeddings: of all images.
        folds: K, 2 or more.
        seed: seed of the folds.

    Raises:
        UserError: fewer groups, or rows, than folds.
    """
    embeddings = with_own_paths(embeddings)
    labeled = embeddings.select([row for row, label in enumerate(embeddings.labels) if label is not None])
    strata = TARGETS[labeled.kind].strata(labeled.labels)
    dealt = deal_folds(strata, labeled.paths, labeled.groups, folds, seed, "the table of embeddings")
    for fold in range(folds):
        yield replace(labeled, splits=["test" if number == fold else "train" for number in dealt])
