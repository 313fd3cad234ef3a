"""The user's own DataLoaders, as data for a TransferModule."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from transferkit.data.batches import Batch
from transferkit.data.datamodule import ImageDataModule
from transferkit.errors import UserError


class LoaderDataModule(ImageDataModule):
    """DataLoaders that one has already; module and Trainer use them as they are.

    A batch is a pair (images, class numbers), or a mapping with ``image`` and ``label``. Images of type uint8,
    ``(B, 3, H, W)``, are preprocessed here as the weights expect; floats are what the network sees, normalized
    already. Nothing is cached, and nothing is known of single images: there are no tables, splits and weights.

    Args:
        train: yields shuffled training batches.
        val: yields batches to select on.
        class_names: of the class numbers, in order.
        test: yields batches to report on; by default those of val.
        predict: yields batches to predict, whose labels may be missing.
    """

    def __init__(
        self,
        train: Iterable[Any] | None = None,
        val: Iterable[Any] | None = None,
        class_names: Sequence[str] = (),
        test: Iterable[Any] | None = None,
        predict: Iterable[Any] | None = None,
    ) -> None:
        super().__init__(cache="off")
        self.root = "your DataLoader"
        self.loaders = {"train": train, "val": val, "test": val if test is None else test, "predict": predict}
        self.class_names = [str(name) for name in class_names]

    def setup(self, stage: str) -> None:
        """Check that there is a loader for a stage.

        Raises:
            UserError: there is none, or fewer than two classes are named.
        """
        needed = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, (stage,))
        for name in needed:
            if self.loaders[name] is None:
                raise UserError(f"{name} is missing; give LoaderDataModule({name}=...)")
        if stage == "fit" and len(self.class_names) < 2:
            raise UserError(f"class_names has {len(self.class_names)} names; give one per class, two or more")

    def check_images(self, names: Sequence[str]) -> None:
        """Do nothing: the loader reads the images."""

    def loss_weights(self) -> Tensor | None:
        """Return None: all classes weigh the same."""
        return None

    def loader(self, name: str, *_: Any, **__: Any) -> Any:
        """Return the user's loader of a split."""
        return self.loaders[name]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Return a batch as the module takes it.

        Raises:
            UserError: it is not images with class numbers.
        """
        if isinstance(batch, Mapping):
            images, target = batch.get("image", batch.get("pixels")), batch.get("label", batch.get("target"))
        elif isinstance(batch, Tensor):
            images, target = batch, None
        else:
            images, target = (*batch, None)[:2]
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise UserError(f"a batch of your DataLoader has images of {shape}; give a tensor (B, 3, H, W)")
        target = torch.full((len(images),), -1) if target is None else torch.as_tensor(target)
        if target.shape != (len(images),) or (target >= max(1, len(self.class_names))).any():
            raise UserError(
                f"a batch of your DataLoader has labels of {tuple(target.shape)}, up to {int(target.max())}, for "
                f"{len(images)} images and {len(self.class_names)} class_names; give one class number per image"
            )
        row = torch.arange(len(images))
        if images.is_floating_point():
            return {"inputs": images, "target": target.long(), "row": row}
        pixels = torch.stack([self.preprocessing.resize_crop(image) for image in images])
        return {"pixels": pixels, "target": target.long(), "row": row}
