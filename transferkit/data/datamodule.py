"""The DataModule: images from a source, split, preprocessed and batched."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from transferkit.data.batches import (
    BATCH_SIZE,
    Batch,
    EmbeddingBatchDataset,
    EpochBatchSampler,
    ImageBatchDataset,
    default_batch_size,
    loader_of,
    loading_processes,
)
from transferkit.data.class_weights import loss_weights
from transferkit.data.exclusion import leave_out
from transferkit.data.groups import check_whole
from transferkit.data.image_table import ImageTable, check_trainable, open_images
from transferkit.data.integrity import MOST_NAMED, raise_broken, verify_together
from transferkit.data.memory_table import Split, table_of_images
from transferkit.data.option_ranges import check_counts, check_fractions, check_mixing, check_values, make_plain
from transferkit.data.sample_weights import SampleWeights, read_sample_weights
from transferkit.data.splits import (
    HELD_OUT,
    assign_fold,
    assign_splits,
    check_folds,
    few_shot,
    load_splits,
    select_classes,
)
from transferkit.data.stage_checks import check_split
from transferkit.data.targets import TARGETS, Kind, check_kind, check_same_kind, one_form, require_class
from transferkit.errors import UserError, listed
from transferkit.images.augmentation import Augmentation, OwnTransform, Preset
from transferkit.images.preprocessing import Preprocessing
from transferkit.runtime.ranks import joined

log = logging.getLogger(__name__)

FEATURE_BATCH = 4096  # rows per batch when embeddings are evaluated: without pixels they take little memory


class ImageDataModule(LightningDataModule):
    """Images for training and evaluation; the module that it is connected to sets its preprocessing.

    Args:
        root: class folders, a folder with train/val[/test], a CSV or Parquet manifest, or ``digits``.
        image_root: the folder of a manifest's paths; by default its own.
        val_fraction: share of train that becomes val, stratified, groups of a manifest together, unless given.
        test_fraction: share that becomes test, stratified, unless test is given.
        split_seed: seed of these splits and of ``n_per_class``.
        splits: ``splits.parquet`` of an earlier run, to repeat its splits exactly.
        classes: keep these classes only.
        n_per_class: keep this many training images per class (few-shot).
        augmentation: random changes of training images.
        on_error: unreadable images: ``fail``, or ``skip`` them.
        cache: ``auto`` runs frozen stages once; ``off`` in each epoch.
        views: augmented passes to cache; 0 augments anew in each epoch.
        class_weights: ``balanced`` (inverse class frequency) or one weight per class, for the loss.
        multilabel: a manifest's label is several, ``cat|dog`` or a list.
        batch_size: images per step and process; by default 32, fewer for few images.
        num_workers: loading processes; by default one per core but one, at most 8.
        folds: train K times, each time with another fold as val.
        fold: only this one of the folds, from 0.
        exclude: table of each ``path`` to leave out; of a reviewed audit those to ``drop``.
        mixup: blend pairs of training images by Beta(A, A); 0 for none.
        cutmix: paste one image into another by Beta(A, A); 0 for none.
        balanced: draw each class equally often per epoch.
        sample_weights: table of ``path`` and ``weight`` in the loss, or ``quality``, as of an audit.
    """

    def __init__(
        self,
        root: str = "",
        val_fraction: float = HELD_OUT,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        splits: str | None = None,
        classes: list[str] | None = None,
        n_per_class: int | None = None,
        augmentation: Preset = "none",
        on_error: Literal["fail", "skip"] = "fail",
        cache: Literal["auto", "off"] = "auto",
        views: int = 0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        image_root: str | None = None,
        exclude: str | None = None,
        folds: int | None = None,
        fold: int | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        balanced: bool = False,
        multilabel: bool = False,
        sample_weights: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        make_plain(self.hparams)
        check_values(ImageDataModule, self.hparams)
        check_counts(batch_size=batch_size, num_workers=num_workers, views=views, n_per_class=n_per_class)
        check_fractions(val_fraction=val_fraction, test_fraction=test_fraction)
        check_folds(folds, fold, splits)
        check_mixing(mixup=mixup, cutmix=cutmix)
        self.image_root, self.exclude, self.folds, self.fold = image_root, exclude, folds, fold
        self.root, self.splits, self.classes, self.n_per_class = root, splits, classes, n_per_class
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed
        self.augmentation, self.views, self.cache, self.mixup, self.cutmix = augmentation, views, cache, mixup, cutmix
        self.on_error, self.class_weights, self.balanced = on_error, class_weights, balanced
        self.sample_weights = sample_weights
        self.multilabel = multilabel
        self.kind: Kind = "class"
        self.batch_size, self.num_workers = batch_size or BATCH_SIZE, num_workers
        self.preprocessing = Preprocessing.imagenet()
        self.seed, self.one_batch = 0, False
        self.tables: dict[str, ImageTable] = {}
        self.features: dict[str, list[Tensor]] = {}
        self.feature_batch: int | None = None
        self.class_names: list[str] = []
        self.given: ImageTable | None = None
        self.transform: Callable[[Tensor], Any] | None = None

    @classmethod
    def from_images(
        cls,
        images: Any,
        labels: Sequence[Any] | None = None,
        *,
        splits: Sequence[str | None] | None = None,
        split: Split | None = None,
        targets: Sequence[Any] | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        **options: Any,
    ) -> "ImageDataModule":
        """Take images that Python holds, one's own split function and transform.

        Args:
            images: folder or manifest; or a list, iterator or dataset, as for ``Extractor.embed``.
            labels: class of each image, or its classes if ``multilabel``; by default that of the folder or the dataset.
            splits: ``train``, ``val``, ``test`` or None of each image; of None, val and test are drawn.
            split: a function that returns the splits of paths and labels.
            targets: number of each image, instead of labels.
            transform: random change of a training image, uint8 (3, H, W), before the preprocessing.
            options: of the constructor.

        Raises:
            UserError: an image cannot be read; labels or splits do not fit the images.
        """
        if transform is not None and options.get("augmentation", "none") != "none":
            raise UserError("`augmentation` and transform are given; give one of them")
        data = cls(**options)
        data.given = table_of_images(images, labels, splits, split, data.image_root, targets, data.multilabel)
        data.transform = transform
        data.root = data.given.source
        return data

    def open(self) -> ImageTable:
        """Return the table of all images."""
        return self.given or open_images(self.root, self.image_root, self.multilabel)

    @property
    def caches_features(self) -> bool:
        """Whether a frozen backbone may be run once, before training."""
        still = self.augmentation == "none" or self.views > 0
        return self.cache == "auto" and still and not self.transform and not self.cutmix

    @property
    def is_still(self) -> bool:
        """Whether an image is the same in each epoch, so that frozen stages may run once."""
        return self.augmentation == "none" and not (self.transform or self.mixup or self.cutmix)

    def configure(
        self,
        preprocessing: Preprocessing | None = None,
        seed: int | None = None,
        splits: str | None = None,
        features: Mapping[str, Sequence[Tensor]] | None = None,
        one_batch: bool | None = None,
        feature_batch: int | None = None,
    ) -> None:
        """Set what the module or the command decides; None leaves a value as it is.

        Args:
            preprocessing: of the module.
            seed: seed of order and augmentation.
            splits: ``splits.parquet`` of an earlier run.
            features: split -> its cached embeddings (N, D), one per view, in row order; empty to decode images again.
            one_batch: whether one training batch contains all rows.
            feature_batch: rows per batch when ``features`` are evaluated; by default many.
        """
        self.preprocessing = preprocessing or self.preprocessing
        self.seed = self.seed if seed is None else seed
        self.splits = splits or self.splits
        if features is not None:
            self.features, self.feature_batch = {name: list(views) for name, views in features.items()}, feature_batch
        self.one_batch = self.one_batch if one_batch is None else one_batch

    def setup(self, stage: str) -> None:
        """List, check and split the images; no image is decoded yet.

        After a fit its splits are kept. Data that was not fitted, and for which ``splits`` records nothing,
        is evaluated as a whole unless it has splits of its own.

        Raises:
            UserError: the data cannot be trained on or evaluated.
        """
        if not self.root:
            raise UserError("no data given; add `root=DIR` (class folders, a manifest, or digits)")
        if stage == "predict":
            if "predict" not in self.tables:
                self.tables["predict"] = self.open()
            return
        if not self.tables.keys() - {"predict"}:
            table = self.read_splits(stage) if stage == "fit" or self.splits else self.read_all(stage)
            self.table, self.kind = table, table.kind
            self.tables |= {name: self.union([name]) for name in ("train", "val", "test") if name in table.splits}
            self.class_names = table.class_names
        self.check_stage(stage)

    def read_splits(self, stage: str) -> ImageTable:
        """Return all images with the splits to train, select and test on."""
        table = self.open()
        if stage == "fit":
            check_kind(table.kind, self.multilabel, self.root)
        if self.splits:
            table = load_splits(table, self.splits)
        table = leave_out(table, self.exclude)
        if self.classes:
            table = select_classes(table, self.classes)
        if stage == "fit":
            check_whole(table.groups, table.splits, self.root)
        if self.splits:
            return table
        check_trainable(table)
        val_fraction = 0.0 if self.folds else self.val_fraction
        table = assign_splits(table, val_fraction, self.test_fraction, self.split_seed)
        if self.folds:
            if self.fold is None:
                raise UserError(f"`folds={self.folds}` are fitted one by one; give the number of one as `fold`, from 0")
            table = assign_fold(table, self.folds, self.fold, self.split_seed)
        if self.n_per_class is not None:
            table, note = few_shot(table, self.n_per_class, self.split_seed)
            if note:
                log.warning(note)
        return table

    def read_all(self, stage: str) -> ImageTable:
        """Return images that were not trained on, with their own splits, or all in the split of the stage."""
        table = leave_out(self.open(), self.exclude)
        if self.classes:
            table = select_classes(table, self.classes)
        if not any(table.splits):
            table = replace(table, splits=("val" if stage == "validate" else "test",) * len(table))
        return table

    def check_stage(self, stage: str) -> None:
        """Validate that there are images with labels for a stage."""
        check_split(self.tables, self.test_split if stage == "test" else "val", self.root, stage == "fit")
        if stage == "fit" and self.views and not (self.cache == "auto" and self.augmentation != "none"):
            log.warning("`views=%d` has no effect without augmentation and cache", self.views)

    def union(self, names: Sequence[str]) -> ImageTable:
        """Return the images of several splits as one table, in path order."""
        rows = [row for row, split in enumerate(self.table.splits) if split in names]
        return self.table.select(rows)

    def check_images(self, names: Sequence[str]) -> None:
        """Decode every image of the named splits once, unless it is remembered, and apply ``on_error``.

        Several processes share the work.

        Raises:
            UserError: images cannot be read, with ``on_error="fail"``.
        """
        with joined() as ranks:
            found = [verify_together(self.tables[name], ranks) for name in names]
            broken = {path: str(fault) for part in found for path, fault in part.items()}
            ranks.run_on_all(lambda: self.check_broken(broken, names))

    def check_broken(self, broken: Mapping[str, str], names: Sequence[str] | None = None) -> None:
        """Leave unreadable images out of the splits, or raise.

        Args:
            broken: path -> why it cannot be read.
            names: splits whose images were looked at; all by default.

        Raises:
            UserError: there are some, with ``on_error="fail"``; or a class has none left to train on.
        """
        if not broken:
            return
        if self.on_error == "fail":
            raise_broken(broken, self.root, of=sum(len(self.tables[name]) for name in names or self.tables))
        where = f" of {' and '.join(names)}" if names else ""
        log.warning("skipped %d unreadable images%s: %s", len(broken), where, listed(sorted(broken), MOST_NAMED))
        classes = self.tables["train"].class_names if "train" in self.tables else []
        for name, table in self.tables.items():
            self.tables[name] = table.select(row for row, path in enumerate(table.paths) if path not in broken)
            if not len(self.tables[name]):
                raise UserError(f"no readable image is left in {name} of {self.root}; scan it to see why")
        lost = sorted(set(classes) - set(self.tables["train"].class_names)) if classes else []
        if lost:
            raise UserError(f"no readable training image is left of {', '.join(lost)}; repair some or drop the class")

    @property
    def test_split(self) -> str:
        """The split that ``test`` measures: test if there is one, otherwise val."""
        return "test" if "test" in self.tables else "val"

    def set_class_names(self, names: Sequence[str], kind: Kind = "class") -> None:
        """Use the classes, in order, that a head was trained on.

        Raises:
            UserError: the data has another class, or another kind of target.
        """
        evaluated = [table for name, table in self.tables.items() if name != "predict"]
        for table in evaluated:
            check_same_kind(table.kind, kind, self.root)
        known = set(map(one_form, names))
        unknown = sorted({label for table in evaluated for label in table.class_names if one_form(label) not in known})
        if unknown:
            raise UserError(
                f"{self.root} has classes the checkpoint was not trained on: {', '.join(unknown)}; "
                f"it knows {', '.join(names)}; remove the others, or leave them out with `classes`"
            )
        self.class_names, self.kind = list(names), kind

    def targets(self, name: str) -> Tensor:
        """Return what is learned of each row of a split, see :mod:`transferkit.data.targets`; of classes int64 (N,)."""
        return TARGETS[self.kind].encode(self.tables[name].labels, self.class_names)

    def loss_weights(self) -> Tensor | None:
        """Return the weight of each class in the loss, see :func:`~transferkit.data.class_weights.loss_weights`."""
        return loss_weights(self.class_weights, self.targets("train"), self.class_names, self.kind)

    def row_weights(self) -> SampleWeights | None:
        """Return the weight of each training image in the loss; None for equal ones."""
        if self.sample_weights is None:
            return None
        return read_sample_weights(
            self.sample_weights, self.tables["train"], self.targets("train"), self.loss_weights()
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return shuffled, augmented training batches."""
        return self.loader("train", self.augmentation, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return validation batches in path order."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return test batches in path order."""
        return self.loader(self.test_split)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return batches to predict, in path order."""
        return self.loader("predict")

    def loader(self, name: str, preset: Preset = "none", shuffle: bool = False) -> DataLoader[Batch]:
        """Return a loader over one split, from its cached embeddings if there are any."""
        targets = self.targets(name)
        weights = weighted.rows if shuffle and (weighted := self.row_weights()) else None
        dataset: EmbeddingBatchDataset | ImageBatchDataset
        if name in self.features:
            dataset, workers = EmbeddingBatchDataset(self.features[name], targets, weights), 0
        else:
            own = self.transform if shuffle else None
            transform = OwnTransform(own, self.preprocessing) if own else Augmentation(preset, self.preprocessing)
            dataset = ImageBatchDataset(self.tables[name], targets, transform, self.seed, weights)
            workers = self.workers()
        trainer: Any = self.trainer
        whole = trainer is None or trainer.limit_val_batches == 1.0  # otherwise it limits batches of `batch_size`
        many = self.feature_batch or FEATURE_BATCH
        size = many if name in self.features and not shuffle and whole else self.batch_size
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if shuffle and self.hparams["batch_size"] is None:
            size = default_batch_size(len(dataset), world_size)
        if shuffle and self.one_batch:  # each process fits the head on all rows
            size, shuffle, rank, world_size = len(dataset), False, 0, 1
        if self.balanced:
            require_class(self.kind, "`balanced`")
        balance = targets if shuffle and self.balanced else None
        sampler = EpochBatchSampler(len(dataset), size, shuffle, self.seed, rank, world_size, balance)
        if trainer:  # Lightning draws the first order of a resumed fit before it sets the epoch
            sampler.resume(trainer.fit_loop)
        return loader_of(dataset, sampler, workers)

    def workers(self) -> int:
        """Return the number of loading processes; by default one per core but one, at most 8, 0 for built-in images."""
        return loading_processes(self.tables.values()) if self.num_workers is None else self.num_workers
