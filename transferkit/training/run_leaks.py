"""Near-duplicates of a tested run's images in other splits, where the run has their embeddings."""

from pathlib import Path

from transferkit.data.datamodule import ImageDataModule
from transferkit.data.embeddings import Embeddings
from transferkit.embed import cached_features, knows_some
from transferkit.runtime.files import unwritable
from transferkit.search.leaks import FILE, save_leaks
from transferkit.training.network import TransferNetwork


def leaks_of_run(module: TransferNetwork, data: ImageDataModule, run: Path) -> None:
    """Write ``leaks.json`` of a tested run, if the feature cache has its images of other splits.

    That of a frozen backbone does; a fine-tuned network would have to embed them first, which is not worth a pass.

    Args:
        module: the network that was tested.
        data: set up for the test.
        run: directory with the ``embeddings.parquet`` of the test.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        (run / FILE).unlink(missing_ok=True)  # of an earlier test
    except OSError as error:  # a folder
        raise unwritable(run / FILE, error) from error
    tested = Embeddings.load(run / "embeddings.parquet")
    others = [table for name, table in data.tables.items() if name not in (data.test_split, "predict")]
    extractor = module.as_extractor()
    if "train" not in data.tables or not all(knows_some(extractor, table) for table in others):
        return
    splits: dict[str, str | None] = dict.fromkeys(tested.paths, data.test_split)
    for name, table in data.tables.items():
        splits |= dict.fromkeys(table.paths, name) if name not in (data.test_split, "predict") else {}
    cached = [cached_features(extractor, table) for table in others]
    save_leaks(Embeddings.concat(map(bare, [tested, *cached])), splits, run)


def bare(table: Embeddings) -> Embeddings:
    """Return a table without metadata, which differ between a test and the cache."""
    return Embeddings(table.embedding, table.paths, table.labels, table.splits, {})
