"""``check_backbone``: whether a backbone keeps the contract that everything else builds on.

In the spirit of scikit-learn's ``check_estimator``: for those who write a backbone of their own, and for every family
that transferkit opens.
"""

import copy
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from transferkit import backbones
from transferkit.backbones import Backbone
from transferkit.backbones.families import PROJECTION
from transferkit.extractor import Extractor
from transferkit.extractor.pretrained import read_json
from transferkit.training.library_answers import Skipped, in_library, library_embedding, library_preprocessing
from transferkit.training.optimizers import parameter_groups
from transferkit.training.regimes import unreached

log = logging.getLogger(__name__)

CLASSES = 3
ATOL = 1e-4  # times the largest value, or 1


def check_backbone(backbone: Backbone) -> dict[str, str]:
    """Check that a backbone keeps its contract.

    Checked are shapes and types, batch invariance, that the stages hold every parameter once and in order, every
    stage's output, gradients, the way through :meth:`Backbone.spec`, the preprocessing and the default embedding
    against the library's own, groups of parameters, and the export in the library and in transferkit.

    Args:
        backbone: with weights; it is left as it is.

    Returns:
        Name of each check -> ``passed``, or ``skipped`` and why.

    Raises:
        AssertionError: a check failed; the message names the backbone, the check and what is wrong.
    """
    backbone = copy.deepcopy(backbone).cpu().eval()
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 3, *backbone.preprocessing.image_size, generator=noise)
    results = {}
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            check(backbone, pixels)
            results[name] = "passed"
        except Skipped as reason:
            results[name] = f"skipped: {reason}"
        except AssertionError as error:
            raise AssertionError(f"{backbone.name}: {name}: {error}") from error
    return results


def require(condition: bool, message: str) -> None:
    """Raise an AssertionError with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def require_close(one: Tensor, other: Tensor, what: str, atol: float = ATOL) -> None:
    """Raise an AssertionError unless two tensors have one shape and nearly the same values."""
    require(one.shape == other.shape, f"{what}: {tuple(one.shape)} and {tuple(other.shape)}")
    difference = float((one - other).abs().max())
    limit = atol * max(1.0, float(other.abs().max()))
    require(difference <= limit, f"{what} differ by {difference:.1e}")


@torch.no_grad()
def check_shapes(backbone: Backbone, pixels: Tensor) -> None:
    """Embeddings are finite float32 (B, D), features a map (B, C, h, w) or tokens (B, T, C), also in one pass."""
    embedding, features = backbone(pixels), backbone.forward_features(pixels)
    require(tuple(embedding.shape) == (3, backbone.embed_dim), f"embedding {tuple(embedding.shape)}")
    require(embedding.dtype == features.dtype == torch.float32, f"{embedding.dtype} and {features.dtype}")
    require(features.ndim in (3, 4) and len(features) == 3, f"features {tuple(features.shape)}")
    require(bool(embedding.isfinite().all() and features.isfinite().all()), "values that are not finite")
    for one, other in zip(backbone.forward_both(pixels), (features, embedding), strict=True):
        require_close(one, other, "forward_both and the single passes")
    require(backbone.pooling in backbone.poolings, f"{backbone.pooling} is not in {backbone.poolings}")


@torch.no_grad()
def check_batch_invariance(backbone: Backbone, pixels: Tensor) -> None:
    """An image has the same embedding alone and in a batch, and another image another one."""
    together = backbone(pixels)
    require_close(torch.cat([backbone(pixels[index : index + 1]) for index in range(3)]), together, "batches")
    require(float((together[0] - together[1]).abs().max()) > 0, "two images have the same embedding")


@torch.no_grad()
def check_stages(backbone: Backbone, pixels: Tensor) -> None:
    """Every parameter is in one stage, every stage has modules, and the stages run in their order."""
    for name, _ in backbone.model.named_parameters():
        owners = [
            index
            for index, parts in enumerate(backbone.stages.values())
            if any(name == part or name.startswith(f"{part}.") for part in parts)
        ]
        require(owners in ([], [backbone.stage_of(name)]), f"{name} is in the stages {owners}")
    called: list[str] = []
    handles = []
    for stage in backbone.stages:
        modules = [m for m in backbone.stage_modules(stage) if not isinstance(m, nn.ModuleList)]
        require(bool(backbone.stage_modules(stage)), f"{stage} has no module")
        for module in modules[:1]:
            handles.append(module.register_forward_pre_hook(lambda m, inputs, stage=stage: called.append(stage)))
    backbone(pixels)
    for handle in handles:
        handle.remove()
    order = [stage for stage in backbone.stages if stage in called]
    require(list(dict.fromkeys(called)) == order, f"the stages run in the order {called}")


@torch.no_grad()
def check_forward_stage(backbone: Backbone, pixels: Tensor) -> None:
    """Every stage puts out a map or tokens of the batch; the last one, the features."""
    for stage in backbone.stages:
        output = backbone.forward_stage(pixels, stage)
        require(output.ndim in (3, 4) and len(output) == 3, f"{stage} puts out {tuple(output.shape)}")
    require_close(output, backbone.forward_features(pixels), "the last stage and the features")


def check_gradients(backbone: Backbone, pixels: Tensor) -> None:
    """Every stage learns, and what no gradient reaches comes after the pooled token or masks the input."""
    model = copy.deepcopy(backbone).requires_grad_(True)
    names = {parameter: name for name, parameter in model.model.named_parameters()}
    apart = {names[parameter] for parameter in unreached(model)}
    last = len(model.stages) - 1
    for name in apart:
        ends = model.stage_of(name) == last or "mask_token" in name
        require(ends, f"no gradient reaches {name}")
    reached = {model.stage_of(name) for name in names.values() if name not in apart}
    owning = {model.stage_of(name) for name in names.values()}
    require(reached == owning, f"no gradient reaches stage {sorted(owning - reached)}")


@torch.no_grad()
def check_spec(backbone: Backbone, pixels: Tensor) -> None:
    """The plain-typed description rebuilds the architecture, which with the weights gives the same numbers."""
    spec = json.loads(json.dumps(backbone.spec()))
    again = backbones.rebuild(given := copy.deepcopy(spec))
    require(given == spec, "rebuilding changes the description that it is given")
    again.load_state_dict(backbone.state_dict())
    require(torch.equal(again.eval()(pixels), backbone(pixels)), "the rebuilt backbone gives other numbers")
    require(again.stages == backbone.stages, "the rebuilt backbone has other stages")
    require(json.loads(json.dumps(again.spec())) == spec, "the rebuilt backbone describes itself otherwise")


def check_preprocessing(backbone: Backbone, pixels: Tensor) -> None:
    """The preprocessing gives the pixels that the library's own gives."""
    theirs = library_preprocessing(backbone)
    for height, width in ((61, 43), (150, 225)):
        noise = torch.Generator().manual_seed(height)
        image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=noise)
        require_close(backbone.preprocessing(image), theirs(image), "pixels", atol=2e-6)


@torch.no_grad()
def check_embedding(backbone: Backbone, pixels: Tensor) -> None:
    """The default pooling, and the projection, give what the library itself calls the image's embedding."""
    if backbone.pooling not in (backbone.poolings[0], PROJECTION):
        raise Skipped(f"its pooling is {backbone.pooling}, its default {backbone.poolings[0]}")
    require_close(backbone(pixels), library_embedding(backbone, pixels), "the embedding and the library's own")


def check_parameter_groups(backbone: Backbone, pixels: Tensor) -> None:
    """Every learning parameter is in one group of the optimizer; only matrices are decayed."""
    head = nn.Linear(backbone.embed_dim, CLASSES)
    groups = parameter_groups(backbone, head, 1e-3, 1e-4, 0.5, 0.1)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    learning = [*head.parameters(), *(p for p in backbone.model.parameters() if p.requires_grad)]
    require(sorted(grouped) == sorted(map(id, learning)), "a parameter is in no group, or in two")
    for group in groups:
        flat = [tuple(p.shape) for p in group["params"] if p.ndim < 2] if group["weight_decay"] else []
        require(not flat, f"{group['name']} decays vectors {flat}")


@torch.no_grad()
def check_export(backbone: Backbone, pixels: Tensor) -> None:
    """An export opens in transferkit and in the library with the same numbers."""
    head = nn.Linear(backbone.embed_dim, CLASSES)
    extractor = Extractor(copy.deepcopy(backbone), head=head, class_names=["a", "b", "c"])
    with tempfile.TemporaryDirectory(prefix="check-backbone-") as folder:
        path = Path(folder, "export")
        extractor.save_pretrained(path)
        again = Extractor.from_pretrained(path)
        require_close(again.backbone(pixels), backbone(pixels), "embeddings of the export")
        require(again.preprocessing == backbone.preprocessing, "the export has another preprocessing")
        layout = read_json(path / "transferkit.json")["layout"]
        expected = head(backbone(pixels)) if layout == "classifier" else backbone(pixels)
        theirs = in_library(backbone, path, layout)
        if theirs is not None:
            require_close(theirs(pixels), expected, f"the library's numbers of the export ({layout})")


CHECKS: tuple[Callable[[Backbone, Tensor], None], ...] = (
    check_shapes,
    check_batch_invariance,
    check_stages,
    check_forward_stage,
    check_gradients,
    check_spec,
    check_preprocessing,
    check_embedding,
    check_parameter_groups,
    check_export,
)
