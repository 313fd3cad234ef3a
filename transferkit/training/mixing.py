"""Mixed batches: mixup (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from transferkit.data.batches import Batch


def mixed(batch: Batch, mixup: float, cutmix: float, classes: int, normalized: Callable[[Tensor], Tensor]) -> Batch:
    """Mix each row of a batch with the one before, as torchvision does; with both kinds, draw one for the batch.

    Args:
        batch: with ``pixels`` or cached ``embedding``, ``target``, and perhaps ``weight`` of each row in the loss.
        mixup: parameter of the Beta distribution of the shares; 0 for none.
        cutmix: that of the areas; 0 for none. It is for pixels only.
        classes: K; of labels or a number, whose targets are floats, the number of outputs.
        normalized: from pixels to what the network takes.

    Returns:
        The batch with ``input``, normalized pixels, or ``embedding`` mixed; and ``soft``, float (B, K), the shares of
        the classes, times the weights of the rows that they are of; of labels or a number the mixed targets, and
        ``weight`` is mixed, too. Without mixing, the batch as it is.
    """
    alphas = [(kind, alpha) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha]
    if not alphas or not len(batch["target"]):
        return batch
    target, rest = batch["target"], {name: value for name, value in batch.items() if name != "weight"}
    has_weight, is_class = "weight" in batch, not batch["target"].is_floating_point()
    if has_weight and is_class:
        target = F.one_hot(target, classes) * batch["weight"][:, None]
    elif has_weight:  # a further column, so that it is mixed by the same shares
        target = torch.cat([target, batch["weight"][:, None]], 1)
    columns = classes if is_class else target.shape[1]
    mix = v2.RandomChoice([kind(alpha=alpha, num_classes=columns) for kind, alpha in alphas])
    if "embedding" in batch:
        inputs, soft = mix(batch["embedding"][:, :, None, None], target)
        rest |= {"embedding": inputs.flatten(1)}
    else:
        inputs, soft = mix(normalized(batch["pixels"]), target)
        rest |= {"input": inputs}
    if has_weight and not is_class:
        return {**rest, "soft": soft[:, :-1], "weight": soft[:, -1]}
    return {**rest, "soft": soft}


def weighted_losses(
    logits: Tensor, batch: Batch, class_weights: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each row times its weight, and the weight, that of its class.

    A mixed row has, of each class, the loss and the weight that it would have with that target, by the class's share.

    Args:
        logits: (B, K).
        batch: with ``target`` (B,) or, if it is mixed, ``soft`` (B, K).
        class_weights: (K,), or None for equal ones.
        smoothing: of the labels, in [0, 1).

    Returns:
        Two tensors (B,).
    """
    device = logits.device
    weights = torch.ones(logits.shape[1], device=device) if class_weights is None else class_weights.to(device)
    if "soft" not in batch:
        weight = weights[batch["target"]]
        return F.cross_entropy(logits, batch["target"], label_smoothing=smoothing, reduction="none") * weight, weight
    shares = batch["soft"] * weights  # (B, K)
    weight = shares.sum(1)
    log_probability = logits.log_softmax(1)
    sharp = -(shares * log_probability).sum(1)
    return (1 - smoothing) * sharp - smoothing * weight * log_probability.mean(1), weight


def weigh_rows(batch: Batch, losses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return losses and weights (B,) times those of the rows, if they have any; those of mixed classes are within."""
    if "weight" not in batch:
        return losses, weight
    return losses * batch["weight"], weight * batch["weight"]
