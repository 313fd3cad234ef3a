"""The callbacks that the options of a module bring into its fits."""

from lightning.pytorch import Callback

from transferkit.training.backbone_rates import BackboneRateChoice
from transferkit.training.ema import MovingAverage
from transferkit.training.network import TransferNetwork
from transferkit.training.stages import GradualUnfreezing


def own_callbacks(network: TransferNetwork) -> list[Callback]:
    """Return the callbacks of a fit with the options of the network's hyperparameters."""
    options = network.hparams
    asked = {
        "stages": network.regime == "stages" and GradualUnfreezing(network),
        "rate": options["lr_backbone"] == "auto" and BackboneRateChoice(),
        "ema": options["ema"] is not None and MovingAverage(options["ema"]),
    }
    return [callback for callback in asked.values() if isinstance(callback, Callback)]
