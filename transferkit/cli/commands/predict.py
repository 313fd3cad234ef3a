"""``predict``: without Lightning, unless an option or the run asks for what its Trainer alone can do."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from transferkit.cli.arguments import all_options, as_root, check_sections, find_config, read_yaml, without_option
from transferkit.cli.console import note
from transferkit.cli.dialect import DIALECT
from transferkit.errors import UserError
from transferkit.training.run_directory import find_checkpoint, new_run, remove_unsaved, within_run

OWN: dict[str, Any] = {"data.root": str, "data.image_root": str, "data.on_error": str, "trainer.default_root_dir": str}
OWN |= {"ckpt_path": str, "name": str, "top_k": int}
SECTIONS = ("model", "data", "trainer")
# Values of the Trainer's options, the default first, under which it computes what predict_images() does.
USUAL: dict[str, tuple[Any, ...]] = {
    "accelerator": ("auto", "cpu"),
    "devices": ("auto", 1, "1"),
    "num_nodes": (1,),
    "precision": (None, 32, "32", "32-true"),
    "strategy": ("auto",),
    "callbacks": (None, []),
    "plugins": (None, []),
    "logger": (None, True, False),
    "fast_dev_run": (False,),
    "limit_predict_batches": (None, 1.0),
}
STARTED_TOGETHER = ("LOCAL_RANK", "WORLD_SIZE", "SLURM_NTASKS")  # the environment of one process among others


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    given = as_root("predict", ["--config" if argument == "-c" else argument for argument in arguments[1:]])
    files = [find_config(name) for name in all_options(given, "--config")]
    if options := usual_options(without_option(given, "--config")):
        DIALECT.options = {name.rpartition(".")[2]: f"--{name}" for name in options}
        try:
            if trained := find_trained(options, files):
                return predict(options, trained)
        except UserError:
            from transferkit.cli import fit_help  # here, since it imports Lightning

            DIALECT.options = fit_help.options_by_argument("predict")
            raise
    from transferkit.cli.commands import fit

    return fit.main(arguments)


def usual_options(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Return the options by their names; None if there are others than those of this module, or refused ones."""
    from jsonargparse import ArgumentError, ArgumentParser

    from transferkit.reports.answers import Answering
    from transferkit.training.predict_images import TOP_K
    from transferkit.training.predicting import OPTIONS, Predicting

    kinds: dict[str, Any] = dict(OWN)
    for kind, names in ((Predicting, OPTIONS), (Answering, [field.name for field in fields(Answering)])):
        kinds |= {name: get_type_hints(kind)[name] for name in names}
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith("-")}
    if not given <= {"--json", *(f"--{name}" for name in kinds)}:
        return None
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--json", action="store_true")
    for name, kind in kinds.items():
        default = getattr(Answering, name, getattr(Predicting, name, None))
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.set_defaults({"ckpt_path": "best", "top_k": TOP_K})
    try:
        parsed = parser.parse_args(list(arguments))
    except ArgumentError:
        return None
    options = {name: parsed[name] for name in ("json", *kinds)}
    return options if options["top_k"] > 0 else None


@dataclass(frozen=True)
class Trained:
    """What classifies the images.

    Attributes:
        run: its run; None for a checkpoint outside of a run, and for an export.
        place: where a new run is made if there is none, and its name.
        source: the checkpoint, or the directory of the export.
        data: the options of the run's data that hold for the images.
        accelerator: of the run.
    """

    run: Path | None
    place: tuple[Path, str]
    source: Path
    data: Mapping[str, Any]
    accelerator: str


def find_trained(options: Mapping[str, Any], files: Sequence[Path] = ()) -> Trained | None:
    """Return what to predict with; None if its run, a config or this machine asks for Lightning's Trainer.

    Args:
        options: of the command line.
        files: configs, the last of which wins.

    Raises:
        UserError: there is no such run or checkpoint.
    """
    from transferkit.data.image_table import kept_image_root
    from transferkit.extractor.core import RECORD
    from transferkit.training.resume import data_for

    if any(name in os.environ for name in STARTED_TOGETHER) or has_several_gpus():
        return None
    config = merged(files)
    if not config.keys() <= {*SECTIONS, "name", "seed_everything"}:
        return None
    root = options["data.root"] or config["data"].get("root")
    folder = Path(options["trainer.default_root_dir"] or config["trainer"].get("default_root_dir") or ".")
    name = options["name"] or config.get("name") or next((file.stem for file in files[-1:]), None)
    which = options["ckpt_path"]
    source, run, saved = Path(which).expanduser(), None, dict[str, Any]()
    if which not in ("best", "last") and source.is_dir():
        source = within_run(source)
        which = str(source)
    if source.suffix == ".safetensors" or (source.is_dir() and not (source / RECORD).is_file()):
        return None
    if not source.is_dir():
        run, source = find_checkpoint(folder, name, which)
        saved = read_yaml(run / "config.yaml") if run else {}
    sections = {section: saved.get(section) or {} for section in SECTIONS}
    if not all(
        isinstance(of_run, dict) and config[section].keys() <= of_run.keys() for section, of_run in sections.items()
    ):
        return None  # an unknown option, or a broken config of the run
    if options["data.root"] and kept_image_root(".", options["data.root"]) is None:
        config["data"].pop("image_root", None)  # that of a config is not for these images
    data = {**data_for(sections["data"], root), **config["data"]}
    data |= {"root": root or data.get("root"), "on_error": options["data.on_error"] or data.get("on_error", "fail")}
    data["image_root"] = options["data.image_root"] or data.get("image_root")
    trainer = {**sections["trainer"], **config["trainer"]}
    # in text, since 1 batch is not 1.0 of all
    usual = all(repr(trainer.get(option, values[0])) in map(repr, values) for option, values in USUAL.items())
    if not usual or not data["root"] or data.get("cache", "auto") != "auto" or data["on_error"] not in ("fail", "skip"):
        return None
    return Trained(run, (folder, name or "predict"), source, data, trainer.get("accelerator", "auto"))


def merged(files: Sequence[Path]) -> dict[str, Any]:
    """Return the content of configs, with all sections; the last one wins.

    Raises:
        UserError: a section that is not a mapping.
    """
    found: dict[str, Any] = {section: {} for section in SECTIONS}
    for file in files:
        check_sections(file)
        for key, value in read_yaml(file).items():
            found[key] = {**found[key], **(value or {})} if key in SECTIONS else value
    return found


def has_several_gpus() -> bool:
    """Return whether a Trainer would start a process for each of several GPUs."""
    import torch

    return torch.accelerator.is_available() and torch.accelerator.device_count() > 1


def predict(options: Mapping[str, Any], trained: Trained) -> int:
    """Classify the images, write the tables and print the first predictions.

    Args:
        options: by their names.
        trained: what classifies.

    Raises:
        UserError: images or the checkpoint cannot be read, or something cannot be computed as asked.
    """
    from transferkit.cli.run_results import first_predictions, predictions, results
    from transferkit.data.image_table import open_images
    from transferkit.extractor import Extractor
    from transferkit.reports.answers import Answering
    from transferkit.runtime.processes import find_device
    from transferkit.training.predict_images import predict_images
    from transferkit.training.predicting import OPTIONS, Predicting

    begin = time.time()
    answering = Answering(**{field.name: options[field.name] for field in fields(Answering)})
    predicting = Predicting(**{name: options[name] for name in OPTIONS})
    extractor = Extractor.from_pretrained(trained.source).to(find_device(trained.accelerator))
    if extractor.head is None:
        raise UserError(f"{trained.source} has no classifier; give a checkpoint of fit, or a probe's classifier")
    answering.require(extractor.calibration)
    data = trained.data
    table = open_images(data["root"], data["image_root"], bool(data.get("multilabel")))
    run = trained.run or new_run(*trained.place)
    try:
        written = predict_images(extractor, table, run, options["top_k"], answering, predicting, data["on_error"])
    except BaseException:
        if not trained.run:
            remove_unsaved(run)
        raise
    if not options["json"]:
        first_predictions(written[0])
    note(f"predictions: {written[0]} and {written[1].name}")
    more = {"predictions": predictions(written[0], options["top_k"])} if options["json"] else {}
    results(run, begin, {}, options["json"], more)
    return 0
