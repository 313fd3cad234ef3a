"""Training: the LightningModule, its regimes and optimizers, the Trainer and what a run leaves."""
