"""What a Hugging Face directory or repository holds: configuration, preprocessing, weights.

The local cache is read first, so that a cached model needs no network; a missing network is reported at once.
"""

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from transferkit.backbones.hub_faults import hub_fault, nearest
from transferkit.backbones.loading import check_finite, check_keys, is_head, own_names
from transferkit.backbones.other_layouts import layout_of
from transferkit.backbones.weights import read_state_dict
from transferkit.errors import UserError, first_line
from transferkit.images.preprocessing import Preprocessing, is_complete
from transferkit.runtime.reachability import require_network

if TYPE_CHECKING:  # seconds to import: elsewhere where it is needed, so that torchvision's models do without
    from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

VIT = "google/vit-base-patch16-224-in21k"
PREPROCESSOR = "preprocessor_config.json"
# Part of the names of repositories with code of their own -> one of that kind whose class transformers has.
IN_TRANSFORMERS = {"radio": "nvidia/C-RADIOv4-H", "aimv2": "apple/aimv2-large-patch14-224-lit"}
Content = TypeVar("Content")


def repository(name: str) -> dict[str, Any]:
    """Return transformers' arguments for a directory, a hub id, or a hub id with a revision: ``owner/model@v1``."""
    place, revision = split_revision(name)
    return {"pretrained_model_name_or_path": place, **({"revision": revision} if revision else {})}


def split_revision(name: str) -> tuple[str, str | None]:
    """Return the name without its revision, and the revision: a branch, tag or commit after ``@``."""
    place, at, revision = name.partition("@")
    return (name, None) if not at or Path(name).exists() else (place, revision or None)


def is_hub_id(name: str) -> bool:
    """Return whether a name can be that of a hub repository, ``owner/model`` or ``owner/model@REVISION``."""
    return name.partition("@")[0].count("/") == 1 and not name.startswith((".", "/", "~"))


def read_local_or_hub(name: str, what: str, read: Callable[[bool], Content]) -> Content:
    """Return ``read(True)`` from a directory or the local cache, or else ``read(False)`` from the hub.

    Args:
        name: directory or hub id.
        what: what is read, for messages.
        read: takes transformers' ``local_files_only``.

    Raises:
        UserError: it is missing or broken, or the hub cannot be reached.
    """
    try:
        return read(True)
    except OSError as error:  # not in the cache
        if Path(name).is_dir():
            if what == "weights" and (layout := layout_of(Path(name))):
                raise UserError(f"{name} is {layout}") from error
            raise UserError(f"{name} has no usable {what}: {first_line(error)}; complete the folder") from error
    except Exception as error:  # transformers raises whatever a broken file makes it raise
        if "trust_remote_code" in str(error):
            raise own_code(name) from error
        raise UserError(f"the {what} of {name} cannot be used: {first_line(error)}") from error
    from huggingface_hub import constants

    near = "" if is_in_cache(name) else nearest(name)
    remedy = f"check its name{near}, or " if near else ""
    remedy += 'give a local directory as `backbone`, a filled HF_HOME, or `weights="none"` for random weights' + (
        "" if name == VIT else f" of {VIT}"
    )
    require_network(constants.ENDPOINT, f"{name} ({what})", remedy)
    try:
        return read(False)
    except Exception as error:
        raise (own_code(name) if "trust_remote_code" in str(error) else hub_fault(name, what, error)) from error


def is_in_cache(name: str) -> bool:
    """Return whether anything of a hub repository is in the local cache, so that its name is right."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{split_revision(name)[0].replace('/', '--')}").is_dir()


def own_code(name: str) -> UserError:
    """Return the error for a repository whose model is code of its own."""
    inside = next((known for part, known in IN_TRANSFORMERS.items() if part in name.lower()), None)
    near = f", such as {inside}" if inside else ""
    return UserError(f"{name} brings its own code, which is never run; give a model that transformers has itself{near}")


def read_config(name: str, weights: str, architecture: dict[str, Any] | None) -> "PreTrainedConfig":
    """Read the configuration, with changes to the architecture.

    Raises:
        UserError: it is missing or broken, or the architecture does not have an option.
    """
    from transformers import AutoConfig, ViTConfig

    if architecture and weights != "none":
        raise UserError(f'architecture changes of {name} need `weights="none"`; its weights fit only as it is')
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        if layout := layout_of(Path(name)):
            raise UserError(f"{name} is {layout}")
        inner = sorted(Path(name).glob("*/config.json"), key=lambda file: file.stat().st_mtime)
        newest = f", such as {inner[-1].parent}" if inner else ""  # of the checkpoints of a Trainer
        raise UserError(f"{name} is not a model directory (it has no config.json); give one that has{newest}")
    config: PreTrainedConfig
    if weights == "none" and name == VIT:  # transformers' defaults are this very model's: no hub needed
        config = ViTConfig()
    else:
        config = read_local_or_hub(
            name,
            "configuration",
            lambda local: AutoConfig.from_pretrained(
                **repository(name), local_files_only=local, trust_remote_code=False
            ),
        )
    if not architecture:
        return config
    known = config.to_dict()
    for option in architecture:
        if option not in known and option not in config.attribute_map:
            near = difflib.get_close_matches(option, known, n=3)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise UserError(f"architecture: a {config.model_type} model has no option {option!r}{hint}")
    try:
        return type(config).from_dict(known | architecture)
    except Exception as error:  # as above
        raise UserError(f"architecture: {architecture} does not fit {name}: {first_line(error)}") from error


def read_preprocessing(name: str, config: "PreTrainedConfig", weights: str, given: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that the weights were trained with; for random ones ``vit`` at the model's size.

    Args:
        name: directory or hub id.
        config: the configuration; timm's weights have the preprocessing in it.
        weights: ``DEFAULT``, ``none`` or a path.
        given: fields that differ; where they are complete, the weights need not bring any.

    Raises:
        UserError: it is missing, broken, or cannot be honored.
    """
    if weights == "none":
        size = getattr(getattr(config, "vision_config", config), "image_size", None) or 224
        size = size if isinstance(size, int) else tuple(size)
        return Preprocessing.vit().replace(image_size=size).override(given)
    try:
        return recorded_preprocessing(name, config, may_ask_hub=not is_complete(given)).override(given)
    except UserError:
        if is_complete(given):
            return Preprocessing.from_fields(given)
        raise


def recorded_preprocessing(name: str, config: "PreTrainedConfig", may_ask_hub: bool) -> Preprocessing:
    """Read ``preprocessor_config.json``, ``processor_config.json`` or timm's ``pretrained_cfg``.

    Raises:
        UserError: all are missing, or one cannot be read or honored.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    def read(local: bool) -> dict[str, Any]:
        return ImageProcessingMixin.get_image_processor_dict(**repository(name), local_files_only=local)[0]

    try:
        return Preprocessing.from_hf(read(True), config.model_type)
    except OSError as error:
        file = Path(name, PREPROCESSOR)
        if file.exists():
            raise UserError(f"{file} cannot be read: {first_line(error)}; repair or delete it") from error
    if isinstance(timm := getattr(config, "pretrained_cfg", None), Mapping):
        return Preprocessing.from_timm(timm)
    if may_ask_hub and not Path(name).is_dir():
        return Preprocessing.from_hf(read_local_or_hub(name, PREPROCESSOR, read), config.model_type)
    raise UserError(
        f"{name} has no {PREPROCESSOR}, which says how images are prepared for its weights; put it there, or give "
        "`preprocessing={image_size: 224, interpolation: bicubic, mean: [R, G, B], std: [R, G, B]}`"
    )


def load_model(
    kind: "type[PreTrainedModel]",
    name: str,
    weights: str,
    config: "PreTrainedConfig",
    options: dict[str, Any],
    needs_pooler: bool = True,
) -> "PreTrainedModel":
    """Load a model in float32 with its weights; heads are dropped.

    Args:
        kind: transformers' class.
        name: directory or hub id, read for weights ``DEFAULT``.
        weights: ``DEFAULT`` or a path.
        config: the configuration.
        options: further arguments of the class.
        needs_pooler: whether weights without the pooling layer are refused; else it is left out.

    Raises:
        UserError: the weights are missing or broken; a tensor is missing, unexpected, of another shape, or not finite.
    """
    own = weights == "DEFAULT"
    origin = name if own else weights
    state = None
    if not own:
        names = names_in_files(kind, config, options)
        state = own_names(read_state_dict(weights), names, weights)
        if any(".attn.qkv." in key for key in state) and not any(".attn.qkv." in key for key in names):
            raise UserError(
                f"{weights} has the names of timm's networks, not of transformers' {config.model_type}; "
                "give a network of timm's beside it, such as vit_small_patch16_224"
            )
    shared = {
        "config": config,
        "state_dict": state,
        "dtype": torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported, and refused below by name
        **options,
    }

    def read(local: bool) -> Any:  # the model and the report
        place = repository(name) if own else {"pretrained_model_name_or_path": None}
        return kind.from_pretrained(**place, local_files_only=local, **shared)

    with quiet():  # its report is replaced by the checks below
        model: PreTrainedModel
        model, report = read_local_or_hub(origin, "weights", read)
    dropped = sorted(key for key in report["unexpected_keys"] if is_head(key))
    if not own and dropped:
        log.warning("dropped %s of %s: not part of the backbone", ", ".join(dropped), weights)
    missing = set(report["missing_keys"])
    if not needs_pooler and missing and all(key.startswith("pooler.") for key in missing):  # of pretraining alone
        model.add_module("pooler", None)
        missing = set()
    check_keys(
        origin,
        missing=missing,
        unexpected=() if own else set(report["unexpected_keys"]) - set(dropped),
        misshapen=[key for key, *_ in report["mismatched_keys"]],
    )
    check_finite(origin, model.state_dict())
    return model


def names_in_files(kind: "type[PreTrainedModel]", config: "PreTrainedConfig", options: dict[str, Any]) -> set[str]:
    """Return the names of a model's tensors, and those under which transformers saves them, which may differ.

    Raises:
        UserError: the configuration contradicts itself.
    """
    from transformers.core_model_loading import revert_weight_conversion

    try:
        with torch.device("meta"):
            model = kind(config, **options)
            own = model.state_dict()
            return {*own, *revert_weight_conversion(model, own)}
    except Exception as error:  # whatever a configuration makes a model raise
        raise UserError(f"a {config.model_type} model cannot be built: {first_line(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' messages below errors, and its progress bars."""
    from transformers.utils import logging as theirs

    settings: Any = theirs  # its switches have no annotations
    level, bar = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        settings.set_verbosity(level)
        if bar:
            settings.enable_progress_bar()
