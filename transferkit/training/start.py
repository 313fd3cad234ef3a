"""The extractor that a fit starts from, with the head that it starts from."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from transferkit.backbones.families import PROJECTION
from transferkit.data.seen import BACKBONE, backbone_seen
from transferkit.errors import UserError
from transferkit.extractor import Extractor
from transferkit.probe import LinearClassifier
from transferkit.training.regimes import Regime

WORDS = "zeroshot"  # the head that the class names make

POOR_START = (
    "%s was fitted on z-scores: its weights are large for features that hardly vary, a poor start for fine-tuning; "
    '`regime="lp-ft"` fits a better one'
)

log = logging.getLogger(__name__)

# Largest size of a probe's weights where the backbone learns, as a share of the size of a new head's (uniform, variance
# 1 / (3 width)). Small features give a probe large weights, up to 40 times as large as a new head's, and training
# ends before such a head has adapted: 5 epochs end at 96.4 % with 4.2 times, 97.1 % with 1, 97.6 % with a third or a
# tenth, a new head at 97.9 % (digits, ResNet18 of CIFAR-10, the head at a new head's rate). The head of a frozen fit
# is as large: as it is, no epoch of four draws was better than the start, 93.2 %; softened, they end at 97.6 % on
# average, whether the head learns at the rate of the backbone or of a new head.
LARGEST_WEIGHTS = 1 / 3


def finetune_start(classifier: LinearClassifier, extractor: Extractor) -> Extractor:
    """Return the extractor with a probe's classifier as its head, in the scale that fine-tuning starts from."""
    start = classifier.as_head_of(extractor)
    if start.head and classifier.kind == "class":  # other logits are not for comparison alone
        soften(start.head)
    return start


def open_start(
    source: str,
    weights: str,
    pooling: str | None,
    preprocessing: dict[str, Any] | None,
    architecture: dict[str, Any] | None,
    *,
    regime: Regime,
    head: str | None,
    l2_normalize: bool | None,
    revision: str | None = None,
) -> Extractor:
    """Open the extractor that a fit starts from.

    Args:
        source: what to open, as are ``weights``, ``pooling``, ``preprocessing`` and ``architecture``; see
            :meth:`~transferkit.extractor.Extractor.from_pretrained`.
        weights: ``DEFAULT``, ``none`` or a path.
        pooling: how features become one embedding; None is the backbone's default.
        preprocessing: fields to override.
        architecture: changes to the architecture, for random weights only.
        regime: which parts learn.
        head: a probe's classifier to start from; ``zeroshot`` for one of the class names, made once they are known;
            ``none`` for a new head; None for the extractor's own, if it has one.
        l2_normalize: whether the head reads L2-normalized embeddings; None is what the extractor's head reads.
        revision: branch, tag or commit of a hub repository.

    Returns:
        The extractor with the head to start from; without a head where a new one is to be made.

    Raises:
        UserError: the extractor or the classifier cannot be opened, or the options contradict each other.
    """
    if regime == "lp-ft":
        if head not in (None, "none"):
            raise UserError(f'`regime="lp-ft"` fits its own head by a probe; leave out `head={head}`, or give "full"')
        head = "none"
    if regime == "scratch":
        if weights not in ("DEFAULT", "none"):
            raise UserError(f'`regime="scratch"` takes no `weights="{weights}"`; give `regime="full"`')
        weights = "none"
    classifier = LinearClassifier.load(head) if head not in (None, "none", WORDS) else None
    if head == WORDS and pooling is None and not Path(source).is_file():
        pooling = PROJECTION
    extractor = Extractor.from_pretrained(source, weights, pooling, preprocessing, architecture, revision)
    if head == WORDS and extractor.backbone.wordless:
        raise UserError(f'`head="{WORDS}"` needs words: {extractor.backbone.wordless}')
    if classifier and regime == "frozen":
        return classifier.as_head_of(extractor)
    if classifier:
        if classifier.kind == "class" and classifier.standardization == "zscore":
            log.warning(POOR_START, head)
        return finetune_start(classifier, extractor)
    reads_unit = extractor.l2_normalize if l2_normalize is None else l2_normalize
    if head is None and extractor.head:
        if reads_unit == extractor.l2_normalize:
            if regime != "frozen" and is_solved(extractor.record):
                soften(extractor.head)
            return extractor
        log.warning(
            "`l2_normalize=%s` differs from what the head of %s was trained with; starting from a new head",
            l2_normalize,
            source,
        )
    return Extractor(
        extractor.backbone,
        extractor.preprocessing,
        l2_normalize=reads_unit,
        record={"epoch": extractor.record.get("epoch"), BACKBONE: backbone_seen(extractor.record)},
    )


def is_solved(record: Mapping[str, Any]) -> bool:
    """Return whether the head of an extractor is one of classes on a frozen backbone, as a probe's is."""
    return record.get("regime") == "frozen" and record.get("target", "class") == "class"


def soften(head: nn.Linear) -> None:
    """Scale the logits of a probe's head down to :data:`LARGEST_WEIGHTS`; its predictions stay as they are."""
    size = head.weight.detach().square().mean().sqrt()
    scale = float((LARGEST_WEIGHTS / (3 * head.in_features) ** 0.5 / size.clamp(min=1e-30)).clamp(max=1.0))
    head.load_state_dict({"weight": head.weight * scale, "bias": head.bias * scale})
