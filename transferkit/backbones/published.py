"""Published accuracies of weights, where the library that opens them knows one."""


def imagenet_accuracy(name: str, weights: str = "DEFAULT") -> float | None:
    """Return the published top-1 accuracy on ImageNet-1K, in [0, 1], of torchvision's weights; None if unknown.

    Args:
        name: of the extractor.
        weights: ``DEFAULT`` or another entry of the model's weights.
    """
    from torchvision import models

    if name not in models.list_models(module=models):
        return None
    entries = models.get_model_weights(name)
    if weights not in entries.__members__:
        return None
    figures = entries[weights].meta.get("_metrics", {}).get("ImageNet-1K", {})
    return figures["acc@1"] / 100 if "acc@1" in figures else None
