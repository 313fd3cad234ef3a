"""Arguments of fit, validate, test and predict before the parser runs: images, configs, run, and what is measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transferkit.cli.arguments import (
    all_options,
    as_config,
    as_root,
    check_sections,
    find_config,
    read_setting,
    read_yaml,
    without_option,
)
from transferkit.data.image_table import kept_image_root
from transferkit.errors import UserError
from transferkit.extractor.checkpoint_reader import KEY, load
from transferkit.extractor.core import RECORD
from transferkit.probe.saved_probe import CLASSIFIER
from transferkit.training import resume
from transferkit.training.metrics_table import read_rows
from transferkit.training.run_directory import find_checkpoint, within_run
from transferkit.training.trainer_options import automatic_precision


@dataclass(frozen=True)
class Plan:
    """The run and the options that the arguments mean.

    Attributes:
        run: the run to continue in; None for a new one.
        arguments: for the parser, in an order in which explicit ones win.
        progress: how far the checkpoint's fit is.
    """

    run: Path | None
    arguments: list[str]
    progress: resume.Progress = field(default_factory=resume.Progress)


def prepare(verb: str, arguments: Sequence[str]) -> Plan:
    """Find images, configs, run and checkpoint.

    A run's own config comes first, then the user's configs, then what the checkpoint decides, then
    the command line.

    Raises:
        UserError: no such config, run or checkpoint, or an option that the checkpoint decides.
    """
    arguments = as_root(verb, arguments)
    files = [find_config(name) for name in all_options(arguments, "--config")]
    for file in files:
        check_sections(file)
    explicit = without_option(without_option(arguments, "--config"), "--ckpt_path")
    regime = read_setting(arguments, files, "model.regime")
    precision = automatic_precision(read_setting(arguments, files, "trainer.accelerator"), regime)
    if all_options(explicit, "--trainer.precision")[-1:] == ["auto"]:  # Lightning's parser does not know it
        explicit = [
            *without_option(explicit, "--trainer.precision"),
            "--trainer.precision",
            precision,
        ]
    configs = [argument for file in files for argument in config_of(file, precision)]
    typed = all_options(arguments, "--data.root") if arguments[-1:] != ["--data.root"] else []
    if typed and kept_image_root(".", typed[-1]) is None:  # that of a config is not for these images
        configs += as_config({"data": {"image_root": None}})
    name = read_setting(arguments, files, "name") or (files[-1].stem if files else None)
    which = read_setting(arguments, files, "ckpt_path")
    asks = any(argument.startswith("--print_config") for argument in explicit)
    begin = [*as_config({"name": name or verb}), *configs]
    if which is None and (verb == "fit" or asks):
        return Plan(None, [*begin, *explicit])
    path = Path(which or "best").expanduser()
    if which not in (None, "best", "last") and path.is_dir():
        path = within_run(path, resumes=verb == "fit")
        which = str(path)
    if which not in (None, "best", "last") and (path.is_dir() or path.suffix == ".safetensors"):
        backbone = read_setting(arguments, files, "model.backbone")
        model = of_directory(verb, path, backbone, explicit)
        return Plan(None, [*begin, *as_config({"model": model, "ckpt_path": None}), *explicit])
    root = Path(read_setting(arguments, files, "trainer.default_root_dir") or ".")
    run, checkpoint = find_checkpoint(root, name, which or "best")
    content = load(checkpoint)
    saved = read_yaml(run / "config.yaml") if run else {}
    if run and not all(isinstance(saved.get(section), dict) for section in ("model", "data")):
        raise UserError(
            f"{run / 'config.yaml'} lacks model or data; start a new fit with --model.backbone {checkpoint}"
        )
    if verb == "fit":
        if not run:
            raise UserError(
                f"{checkpoint} is not in a run to resume; start a new fit with --model.backbone {checkpoint}"
            )
        read_rows(run / "metrics.csv")  # a broken one is refused before any work
        resumed = [*as_config(saved), *configs, *explicit, "--ckpt_path", str(checkpoint)]
        return Plan(run, resumed, resume.progress_of(content, checkpoint))
    check_undecided(explicit, ("backbone", "weights", "architecture"), checkpoint)
    if saved:
        saved = {**saved, "data": resume.data_for(saved["data"], read_setting(arguments, files, "data.root"))}
    decided = as_config({"model": resume.decided_by(checkpoint, content[KEY]["l2_normalize"])})
    first = [*as_config({"name": name or verb} | saved), *configs, *decided]
    return Plan(run, [*first, *explicit, "--ckpt_path", str(checkpoint)])


def of_directory(verb: str, path: Path, backbone: str | None, explicit: Sequence[str]) -> dict[str, Any]:
    """Return the options of the model for an exported directory or a probe's classifier.

    Args:
        verb: ``fit``, ``validate``, ``test`` or ``predict``.
        path: the directory (of an export or a probe), or the classifier's file.
        backbone: the backbone given with the classifier.
        explicit: the command line.

    Raises:
        UserError: neither an export nor a classifier, or options that contradict it.
    """
    if verb == "fit":
        how = f"--model.backbone EXTRACTOR --model.head {path}" if path.suffix else f"--model.backbone {path}"
        raise UserError(f"{path} is not a checkpoint to resume; start a new fit with {how}")
    classifier = path / CLASSIFIER if path.is_dir() else path
    if (path / RECORD).is_file():
        check_undecided(explicit, ("backbone", "weights", "architecture", "head"), path)
        return resume.decided_by(path, None)
    if not classifier.is_file():
        reason = f"it lacks {RECORD}" if path.is_dir() else "there is no such file"
        raise UserError(
            f"{path} is not an exported directory or classifier ({reason}); give one, or --ckpt_path best or last"
        )
    check_undecided(explicit, ("head",), classifier)
    if backbone is None:
        raise UserError(f"{classifier} is only a classifier; add the probed extractor: --model.backbone EXTRACTOR")
    return {"head": str(classifier), "regime": "frozen", "l2_normalize": None}


def check_undecided(explicit: Sequence[str], options: Sequence[str], by: Path) -> None:
    """Raise on options of the model that what is measured decides.

    Raises:
        UserError: such an option; it is named.
    """
    for option in options:
        if all_options(explicit, f"--model.{option}"):
            kind = "checkpoint" if by.suffix == ".ckpt" else "--ckpt_path"
            raise UserError(f"--model.{option} is decided by the {kind} {by}; leave it out")


def config_of(file: Path, precision: str) -> list[str]:
    """Return the arguments of a config: the file, or its content with this precision where it says ``auto``."""
    content = read_yaml(file)
    if (content.get("trainer") or {}).get("precision") != "auto":
        return ["--config", str(file)]
    return as_config({**content, "trainer": {**content["trainer"], "precision": precision}})
