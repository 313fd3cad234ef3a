"""Training: the LightningModule, regimes and optimizers, the Trainer, and the files of a run."""
