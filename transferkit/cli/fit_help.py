"""The help of fit, validate, test and predict; the options of Lightning's Trainer only on request."""

import inspect
from collections.abc import Sequence
from typing import Any, get_type_hints

import docstring_parser

from transferkit.cli.help_layout import Option, lines, page, words, written

OF_TRAINER = ("--help-trainer", "--help_trainer")
ASKS = ("-h", "--help", *OF_TRAINER)
VERBS = {
    "fit": "Train a linear head on a frozen backbone, or fine-tune, and save the best epoch in a run directory.",
    "validate": "Measure a checkpoint on the validation split; the metrics go into its run directory.",
    "test": "Measure a checkpoint on the test split; metrics, predictions and embeddings go into its run directory.",
    "predict": "Classify images that need no labels: a table of predictions (CSV and Parquet) and embeddings.",
}
RESUME = "last, best or a checkpoint: resume its fit, in its run directory"
EVALUATE = (
    "best (default) or last of the newest run of that --name, of any without one; or a checkpoint, an exported "
    "directory, or a probe's classifier.safetensors together with its --model.backbone"
)
SOUP = "average up to N fits from one start, chosen on val; I/N is one of them"
PATIENCE = "end a fit after this many epochs without a better one"
TOP_K = "number of classes per image in the table and with --json, the most probable first"
ENGINE = "what runs the network: auto is openvino on a CPU if it is installed, otherwise torch"
TITLE_OF_TRUST = "When to trust a prediction (after a test on data with a val split):"
FIRST = {"fit": ("data.root", "model.backbone", "model.regime", "trainer.max_epochs", "config")}
FIRST |= dict.fromkeys(("validate", "test"), ("data.root", "ckpt_path", "name", "config", "json"))
FIRST |= {"predict": ("data.root", "ckpt_path", "top_k", "name", "json")}
OF_A_CLASSIFIER = {
    f"model.{name}" for name in ("backbone", "weights", "pooling", "preprocessing", "architecture", "revision")
}
LINKED = "model.seed"  # takes its value from seed_everything, so it is not an option of its own
OWN_TEXTS = {"trainer.max_epochs": "epochs of training"}  # Lightning's text names another default


def section(name: str, kind: type, defaults: dict[str, Any]) -> list[Option]:
    """Return the options of a section, from the signature and the docstring of its class.

    Args:
        name: ``model``, ``data`` or ``trainer``; nothing for options without a section.
        kind: the class.
        defaults: defaults that differ from the signature's.
    """
    constructor: Any = vars(kind)["__init__"]
    doc = constructor.__doc__ if name == "trainer" else kind.__doc__
    texts = {p.arg_name: " ".join((p.description or "").split()) for p in docstring_parser.parse(doc or "").params}
    hints = get_type_hints(constructor)
    found = []
    for field, parameter in inspect.signature(kind).parameters.items():
        option = f"{name}.{field}" if name else field
        text = OWN_TEXTS.get(option, texts.get(field, "").rstrip("."))
        found.append(Option(option, text, words(hints.get(field)), written(defaults.get(field, parameter.default))))
    return [option for option in found if option.name != LINKED]


def trust() -> list[Option]:
    """Return the options of predict for a calibrated classifier."""
    from transferkit.reports.answers import Answering

    return section("", Answering, {})


def single(verb: str) -> list[Option]:
    """Return the options without a section."""
    return [
        Option("config", "a YAML file with any of these options, or the name of a shipped one; explicit options win"),
        Option("ckpt_path", RESUME if verb == "fit" else EVALUATE),
        Option("name", "runs/<name>/<number>/ is the run's directory; by default the config's name, or the verb"),
        Option("patience", PATIENCE),
        Option("soup", SOUP),
        Option("seed_everything", "seed of everything random", default="0"),
        *([Option("top_k", TOP_K, default="5")] if verb == "predict" else []),
        *(engine_options() if verb == "predict" else []),
        *(trust() if verb == "predict" else []),
        Option("json", "print one JSON object"),
        Option("print_config", "print the resulting configuration and exit"),
        Option("debug", "show tracebacks"),
    ]


def engine_options() -> list[Option]:
    """Return what embeds the images of predict."""
    return [
        Option("engine", ENGINE, ("torch", "openvino", "onnx", "auto"), "torch; openvino for int8"),
        Option("precision", "of the network, as for embed", ("32", "bf16", "int8"), "32"),
        Option("int8_images", "images that int8 measures ranges on; by default those to predict"),
    ]


def every_option(verb: str) -> list[Option]:
    """Return a verb's options."""
    return [option for group in (*sections().values(), single(verb)) for option in group]


def known_options(verb: str = "fit") -> list[str]:
    """Return the names of a verb's options, with their sections, and the sections."""
    return [option.name for option in every_option(verb)] + list(sections())


def options_by_argument(verb: str) -> dict[str, str]:
    """Return argument of the library -> option of the verb; if two sections have it, that of the first."""
    named = {name.rpartition(".")[2]: f"--{name}" for name in reversed(known_options(verb))}
    return {"source": "--model.backbone", "seed": "--seed_everything"} | named


def sections() -> dict[str, list[Option]]:
    """Return the options of model, data and trainer."""
    from lightning.pytorch import Trainer

    from transferkit.data.datamodule import ImageDataModule
    from transferkit.training.module import TransferModule
    from transferkit.training.trainer import TRAINER_DEFAULTS

    return {
        "model": section("model", TransferModule, {}),
        "data": section("data", ImageDataModule, {}),
        "trainer": section("trainer", Trainer, dict(TRAINER_DEFAULTS)),
    }


def help_text(verb: str, arguments: Sequence[str]) -> str:
    """Return the text of ``--help`` or ``--help-trainer``.

    Args:
        verb: the verb.
        arguments: the command line, which contains one of the two.
    """
    groups = sections()
    if any(argument in OF_TRAINER for argument in arguments):
        title = f"Options of Lightning's Trainer for transferkit {verb}, from its documentation:"
        return "\n".join([title, "", *lines(groups["trainer"])])
    of_all = {option.name: option for option in every_option(verb)}
    model = [option for option in groups["model"] if verb == "fit" or option.name in OF_A_CLASSIFIER]
    remark = "" if verb == "fit" else " (for a probe's classifier; a checkpoint and an export have their own)"
    trusting = trust() if verb == "predict" else []
    titled = {
        "Used most (IMAGES is short for --data.root IMAGES):": [of_all[name] for name in FIRST[verb]],
        f"Model{remark}:": [option for option in model if option.name not in FIRST[verb]],
        "Data:": [option for option in groups["data"] if option.name not in FIRST[verb]],
        TITLE_OF_TRUST: trusting,
        "Run:": [option for option in single(verb) if option.name not in FIRST[verb] and option not in trusting],
    }
    more = f"Lightning's Trainer has more, such as --trainer.devices: transferkit {verb} --help-trainer"
    return page(f"{verb} [IMAGES] [options]", VERBS[verb], titled, more)
