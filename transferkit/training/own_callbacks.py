"""The callbacks that the options of a module bring into its fits."""

from lightning.pytorch import Callback

from transferkit.training.ema import MovingAverage
from transferkit.training.network import TransferNetwork
from transferkit.training.stages import GradualUnfreezing


def own_callbacks(network: TransferNetwork) -> list[Callback]:
    """Return the callbacks of a fit with the options of the network's hyperparameters."""
    callbacks: list[Callback] = [GradualUnfreezing(network)] if network.regime == "stages" else []
    ema = network.hparams["ema"]
    return callbacks if ema is None else [*callbacks, MovingAverage(ema)]
