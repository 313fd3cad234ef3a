"""A linear head made of words: each class is the direction of the texts that name it (Radford et al. 2021)."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferkit.errors import UserError, listed
from transferkit.extractor.core import ExtractorCore

# The seven that Radford et al. chose for ImageNet (arXiv:2103.00020, github.com/openai/CLIP), and the plain one.
TEMPLATES = (
    "a photo of a {}.",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def word_head(
    extractor: ExtractorCore, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES, batch_size: int = 64
) -> nn.Linear:
    """Return the head whose logits are those of the whole model for images and texts, scale and bias included.

    Of several templates, the mean of a class's unit text embeddings is taken, at unit length. The head reads unit
    embeddings of images, see :func:`reads_unit_rows`.

    Args:
        extractor: of a model of images and texts, with an embedding in the shared space.
        class_names: classes; underscores are read as spaces.
        templates: sentences with ``{}`` in the place of the class; ``("{}",)`` takes the name alone.
        batch_size: texts per forward pass.

    Raises:
        UserError: the extractor cannot be asked by words; class names are empty or double; a template has no ``{}``.
    """
    check_names(class_names)
    check_templates(templates)
    tower = extractor.text
    texts = [template.replace("{}", spoken(name)) for name in class_names for template in templates]
    rows = extractor.embed_text(texts, batch_size).reshape(len(class_names), len(templates), -1)  # (K, T, D)
    head = nn.Linear(extractor.embed_dim, len(class_names))
    with torch.no_grad():
        head.weight.copy_(tower.scale * F.normalize(rows.mean(1)))
        head.bias.fill_(tower.bias)
    return head.to(extractor.device)


def reads_unit_rows(extractor: ExtractorCore) -> bool:
    """Return whether a head of words has to normalize the embeddings that it reads: the projection's have length 1."""
    return extractor.pooling != "projection"


def probabilities(logits: Tensor, sigmoid: bool) -> Tensor:
    """Return what the model's authors make of its logits: a sigmoid for each class (SigLIP), or a softmax over all.

    Args:
        logits: (N, classes).
        sigmoid: see :class:`~transferkit.backbones.text_tower.TextTower`.
    """
    return logits.sigmoid() if sigmoid else logits.softmax(1)


def spoken(name: str) -> str:
    """Return a class name as one writes it in a sentence.

    >>> spoken("tiger_beetle")
    'tiger beetle'
    """
    return " ".join(name.replace("_", " ").split())


def check_names(class_names: Sequence[str]) -> None:
    """Refuse class names that no sentence can hold.

    Raises:
        UserError: there are none; one is empty, or given twice.
    """
    if not class_names:
        raise UserError("there are no classes to tell apart; give `classes`, or images in class folders")
    if empty := [number for number, name in enumerate(class_names, 1) if not spoken(name)]:
        raise UserError(
            f"class {empty[0]} of {len(class_names)} in `classes` has an empty name; leave it out or name it"
        )
    if twice := [name for name, count in Counter(class_names).items() if count > 1]:
        raise UserError(f"`classes` has {listed(twice)} twice; name each class once")


def check_templates(templates: Sequence[str]) -> None:
    """Refuse templates without a place for the class.

    Raises:
        UserError: there are none, or one has no ``{}``.
    """
    if not templates:
        raise UserError("`templates` is empty; give sentences with {} in the place of the class")
    if wrong := [template for template in templates if "{}" not in template]:
        raise UserError(f"the template {wrong[0][:60]!r} has no {{}}; write it in the place of the class")
