"""Backbones from Hugging Face transformers (Dosovitskiy et al. 2020 for ViT, arXiv:2010.11929)."""

import inspect
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.base import Backbone, choose_pooling
from transferkit.backbones.weights import check_keys, first_line, read_state_dict, require_network
from transferkit.errors import UserError
from transferkit.preprocessing import Preprocessing

log = logging.getLogger(__name__)

VIT = "google/vit-base-patch16-224-in21k"


class TransformersBackbone(Backbone):
    """A transformers image model that takes ``pixel_values`` alone.

    Poolings: ``cls`` (the class token after the last norm; first where there is one), ``mean`` (of the
    patch tokens or over the map), ``cls+mean`` (both, 2 x width), ``pooler`` (the model's own pooled output).

    Args:
        name: hub id or directory it was built from.
        model: the base model; built with its pooling layer only for pooling ``pooler``.
        preprocessing: what the weights expect.
        pooling: one of ``poolings``.
    """

    def __init__(self, name: str, model: nn.Module, preprocessing: Preprocessing, pooling: str | None = None) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.preprocessing = preprocessing
        self.prefix = prefix_tokens(model)
        self.takes_interpolation = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self.stages = find_stages(model)
        output = self.try_blank(self.run)
        self.poolings = poolings_of(model, output)
        self.pooling = choose_pooling(name, pooling, self.poolings)
        self.embed_dim = self.pool(output).shape[1]

    def run(self, pixels: Tensor) -> Any:
        """The model's own output object for normalised pixels (B, 3, H, W)."""
        if not self.takes_interpolation:
            return self.model(pixel_values=pixels)
        native = getattr(self.model.config, "image_size", None)
        size = (native, native) if isinstance(native, int) else tuple(native or ())
        return self.model(pixel_values=pixels, interpolate_pos_encoding=tuple(pixels.shape[-2:]) != size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.pool(self.run(pixels))

    def pool(self, output: Any) -> Tensor:
        """One embedding an image from the model's output object: (B, D)."""
        if self.pooling == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled.flatten(1)  # (B, D)
        hidden: Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]  # (B, D)
        mean = hidden.mean((2, 3)) if hidden.ndim == 4 else hidden[:, self.prefix :].mean(1)
        return mean if self.pooling == "mean" else torch.cat((hidden[:, 0], mean), 1)  # (B, D) or (B, 2D)

    def forward_features(self, pixels: Tensor) -> Tensor:
        hidden: Tensor = self.run(pixels).last_hidden_state
        return hidden if hidden.ndim == 4 else hidden[:, self.prefix :]

    def spec(self) -> dict[str, Any]:
        config = {key: value for key, value in self.model.config.to_diff_dict().items() if key != "dtype"}
        return {
            "source": "transformers",
            "name": self.name,
            "architecture": config,
            "pooling": self.pooling,
            "preprocessing": self.preprocessing.to_dict(),
        }


def build(
    name: str, weights: str = "DEFAULT", pooling: str | None = None, architecture: dict[str, Any] | None = None
) -> TransformersBackbone:
    """Build a transformers backbone with its weights, in float32 whatever the file stores.

    Args:
        name: hub id (``google/vit-base-patch16-224-in21k``) or a local directory.
        weights: ``DEFAULT`` (the directory's or hub's), ``none`` (random), or a path.
        pooling: one of the backbone's poolings.
        architecture: changes to the configuration, with ``none`` only.

    Raises:
        UserError: not an image model, weights that do not fit, no network for a hub model.
    """
    config = read_config(name, weights, architecture)
    kind = model_class(name, config)
    options = {"add_pooling_layer": pooling == "pooler"} if takes_pooler(kind) else {}
    scheme = read_preprocessing(name, config, weights)
    if weights == "none":
        model = kind(config, **options)
    else:
        model = load(kind, name, weights, config, options)
    return TransformersBackbone(name, model.float(), scheme, pooling)


def rebuild(spec: dict[str, Any]) -> TransformersBackbone:
    """The architecture that a :meth:`TransformersBackbone.spec` describes, with random weights."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(**spec["architecture"])
    kind = model_class(spec["name"], config)
    options = {"add_pooling_layer": spec["pooling"] == "pooler"} if takes_pooler(kind) else {}
    scheme = Preprocessing.from_dict(spec["preprocessing"])
    return TransformersBackbone(spec["name"], kind(config, **options).float(), scheme, spec["pooling"])


def model_class(name: str, config: Any) -> Any:
    """transformers' base model class for a configuration.

    Raises:
        UserError: it has none, or one that does not take pixels alone or gives another answer each time.
    """
    from transformers import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING:
        raise UserError(f"{name} is a {config.model_type} model, which transformers cannot open as a backbone")
    kind = MODEL_MAPPING[type(config)]
    kind = kind[0] if isinstance(kind, (tuple, list)) else kind
    if kind.main_input_name != "pixel_values":
        raise UserError(f"{name} is a {config.model_type} model: it takes {kind.main_input_name}, not pixels alone")
    if hasattr(config, "mask_ratio"):
        raise UserError(f"{name} is a {config.model_type} model, which masks patches at random; use its plain ViT")
    return kind


def read_config(name: str, weights: str, architecture: dict[str, Any] | None) -> Any:
    """The configuration of a directory, of the hub's cache, or of the hub."""
    from transformers import AutoConfig, ViTConfig

    if architecture and weights != "none":
        raise UserError(f"architecture changes of {name} need --model.weights none; its weights fit only as it is")
    if weights == "none" and name == VIT:  # transformers' defaults are this very model's: no hub needed
        return ViTConfig(**(architecture or {}))
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True, **(architecture or {}))
    except (OSError, ValueError, KeyError) as error:
        if Path(name).is_dir():
            raise UserError(f"{name} is not a Hugging Face model directory: {first_line(error)}") from error
    from huggingface_hub import constants

    remedy = (
        "give a local directory (--model.backbone DIR), a filled HF_HOME, "
        "or --model.weights none for random weights" + ("" if name == VIT else f" of {VIT}")
    )
    require_network(constants.ENDPOINT, f"{name}", remedy)
    try:
        return AutoConfig.from_pretrained(name, **(architecture or {}))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{name} cannot be loaded from the hub: {first_line(error)}") from error


def load(kind: Any, name: str, weights: str, config: Any, options: dict[str, Any]) -> nn.Module:
    """Load weights and refuse those that leave a tensor of the backbone without a value."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # its load report is replaced by the checks below
    logging.disable_progress_bar()
    shared = {"dtype": torch.float32, "output_loading_info": True, "trust_remote_code": False, **options}
    try:
        if weights == "DEFAULT":
            offline = {"local_files_only": True}
            try:
                model, report = kind.from_pretrained(name, **offline, **shared)
            except OSError:
                if Path(name).is_dir():
                    raise
                model, report = kind.from_pretrained(name, **shared)
        else:
            state = read_state_dict(weights)
            model, report = kind.from_pretrained(None, config=config, state_dict=state, **shared)
    except UserError:
        raise
    except Exception as error:
        origin = name if weights == "DEFAULT" else weights
        raise UserError(f"the weights of {origin} cannot be loaded: {first_line(error)}") from error
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
    unexpected = [key for key in report["unexpected_keys"] if not is_head(key)]
    dropped = sorted(set(report["unexpected_keys"]) - set(unexpected))
    if weights != "DEFAULT" and dropped:
        log.warning("dropped %s of %s: not part of the backbone", ", ".join(dropped), weights)
    missing = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    check_keys(name if weights == "DEFAULT" else weights, missing, unexpected if weights != "DEFAULT" else ())
    return model  # type: ignore[no-any-return]


def is_head(key: str) -> bool:
    """Whether a tensor belongs to a head or pooler that a backbone leaves out."""
    heads = ("classifier", "cls_classifier", "distillation_classifier", "pooler", "head", "lm_head", "decoder", "fc")
    return any(part in heads for part in key.split(".")) or key.endswith("mask_token")


def read_preprocessing(name: str, config: Any, weights: str) -> Preprocessing:
    """The preprocessing of a directory or hub repository, or the ``vit`` scheme at the model's own size."""
    from transformers.image_processing_base import ImageProcessingMixin

    size = getattr(config, "image_size", None) or 224
    fallback = Preprocessing.vit().replace(image_size=size if isinstance(size, int) else tuple(size))
    if weights == "none":
        return fallback
    try:
        content, _ = ImageProcessingMixin.get_image_processor_dict(name, local_files_only=weights != "DEFAULT")
    except (OSError, ValueError):
        if Path(name).is_dir() or weights != "DEFAULT":
            return fallback
        raise UserError(f"{name} has no preprocessor_config.json; its preprocessing is unknown") from None
    return Preprocessing.from_hf(content)


def poolings_of(model: nn.Module, output: Any) -> tuple[str, ...]:
    """The poolings a model offers, its default first, from one output of it."""
    pooler = ("pooler",) if output.get("pooler_output") is not None or takes_pooler(type(model)) else ()
    if output.last_hidden_state.ndim == 3 and prefix_tokens(model):
        return ("cls", "mean", "cls+mean", *pooler)
    return (*pooler, "mean") if output.get("pooler_output") is not None else ("mean", *pooler)


def takes_pooler(kind: type[nn.Module]) -> bool:
    """Whether a model class builds its pooling layer only when asked."""
    return "add_pooling_layer" in inspect.signature(kind.__init__).parameters


def prefix_tokens(model: nn.Module) -> int:
    """How many tokens stand before the patches: class, distillation and register tokens."""
    names = [name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()]
    registers = getattr(model.config, "num_register_tokens", 0) or 0 if "register_tokens" in names else 0
    return sum(token in names for token in ("cls_token", "class_embedding", "distillation_token")) + int(registers)


def find_stages(model: nn.Module) -> dict[str, list[str]]:
    """Stages of a transformers model: everything before its outermost list of blocks, then each block.

    What follows the blocks (a last norm, a pooler) joins the last stage. ViT: embeddings, block 0 ... 11.
    """
    lists = [(name, list(m.named_children())) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    prefix, blocks = next(((name, children) for name, children in lists if children), ("", []))
    children = [name for name, _ in model.named_children()]
    place = children.index(prefix.split(".")[0]) if prefix else len(children)
    stages = {"embeddings": children[:place]} | {f"block {key}": [f"{prefix}.{key}"] for key, _ in blocks}
    if blocks:
        stages[list(stages)[-1]] += children[place + 1 :]
    return stages
