"""One's own dataset, split function, transform, DataLoader and callback, with Lightning's own Trainer."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from transferkit import ImageDataModule, TransferModule
from transferkit.data.loaders import LoaderDataModule


class PrintEpoch(pl.Callback):
    """Print the accuracy of every epoch."""

    def on_validation_epoch_end(self, trainer, pl_module):
        """Print it."""
        print(f"epoch {trainer.current_epoch}: {trainer.callback_metrics.get('val/acc', 0):.3f}")


def trainer():
    """Return a plain Trainer."""
    return pl.Trainer(max_epochs=1, logger=CSVLogger("logs"), callbacks=[PrintEpoch()], enable_progress_bar=False)


def every_fourth(paths, labels):
    """Validate on every fourth image."""
    return ["val" if number % 4 == 0 else "train" for number in range(len(paths))]


dataset = ImageFolder("photos/train")  # any dataset of (image, label)
data = ImageDataModule.from_images(dataset, split=every_fourth, transform=v2.RandomHorizontalFlip(), num_workers=0)
trainer().fit(TransferModule(backbone="resnet18"), datamodule=data)

to_pixels = v2.Compose([v2.PILToTensor(), v2.Resize((224, 224))])  # uint8; floats count as normalized already
train, val = (DataLoader(ImageFolder(f"photos/{name}", to_pixels), batch_size=4) for name in ("train", "val"))
module = TransferModule(backbone="resnet18", optimizer="adamw")
trainer().fit(module, datamodule=LoaderDataModule(train, val, class_names=dataset.classes))
module.as_extractor().save_pretrained("own-extractor", overwrite=True)
assert torch.isfinite(module.head.weight).all()
