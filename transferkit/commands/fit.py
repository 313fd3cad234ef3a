"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with run directories."""

import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from transferkit.commands import report
from transferkit.commands.arguments import all_options, as_config, find_config, option, read_yaml, without_option
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.splits import save_splits
from transferkit.errors import UserError
from transferkit.files import atomic_path, discard
from transferkit.module import TransferModule
from transferkit.runs import find_checkpoint, new_run, update_metrics
from transferkit.training import (
    MONITOR,
    TRAINER_DEFAULTS,
    AtomicCheckpointIO,
    best_metrics,
    progress_callback,
    quiet_libraries,
    run_parts,
)

SAVED = ("seed_everything", "name", "model", "data", "trainer")


def main(arguments: list[str]) -> int:
    """Run one of the four verbs; the exit status."""
    verb, *rest = arguments
    quiet_libraries()
    asked = bool({"-h", "--help"} & set(rest))
    run, checkpoint, prepared = (None, None, rest) if asked else prepare(verb, rest)
    sys.argv = ["transferkit", verb, *prepared]  # LightningCLI and relaunched processes read it
    try:
        cli = TransferCLI(run, checkpoint)
    except ArgumentError as error:
        raise UserError(report.explain(str(error))) from error
    if cli.interrupted:
        raise KeyboardInterrupt
    return 0


def prepare(verb: str, arguments: list[str]) -> tuple[Path | None, Path | None, list[str]]:
    """Find configs, run and checkpoint; the arguments in the order that lets explicit ones win.

    A run's own config comes first, then the user's configs, then what the checkpoint decides, then
    the command line.

    Returns:
        The run to go on in (None: a new one), its checkpoint, and the arguments for the parser.
    """
    files = [find_config(name) for name in all_options(arguments, "--config")]
    explicit = without_option(without_option(arguments, "--config"), "--ckpt_path")
    configs = [argument for file in files for argument in ("--config", str(file))]
    name = option(arguments, "--name") or next((config_name(file) for file in reversed(files)), None)
    which = option(arguments, "--ckpt_path")
    if verb == "fit" and which is None:
        named = [] if option(explicit, "--name") else as_config({"name": name or "fit"})
        return None, None, [*configs, *named, *explicit]
    root = Path(option(arguments, "--trainer.default_root_dir") or ".")
    run, checkpoint = find_checkpoint(root, name, which or "best")
    saved = read_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    if verb == "fit":
        refuse_changes(explicit, saved, checkpoint)
        return run, checkpoint, [*as_config(saved), *explicit, "--ckpt_path", str(checkpoint)]
    if option(explicit, "--model.backbone") or option(explicit, "--model.weights"):
        raise UserError(f"--model.backbone and --model.weights are decided by the checkpoint {checkpoint}; leave them out")
    model = {"backbone": str(checkpoint), "weights": "DEFAULT", "regime": "frozen", "pooling": None}
    decided = {"model": {**saved.get("model", {}), **model, "preprocessing": None, "architecture": None}}
    head = [*as_config(saved), *configs, *as_config(decided)]
    return run, checkpoint, [*head, *explicit, "--ckpt_path", str(checkpoint)]


def refuse_changes(explicit: list[str], saved: dict[str, Any], checkpoint: Path) -> None:
    """A resumed fit keeps its model and data: its optimiser state and splits belong to them.

    Raises:
        UserError: an option of the command line says otherwise.
    """
    for argument in explicit:
        key = argument.split("=", 1)[0].removeprefix("--")
        section, _, field = key.partition(".")
        if section not in ("model", "data") or not field:
            continue
        value = yaml.safe_load(option(explicit, f"--{key}") or "")
        if saved.get(section, {}).get(field) != value:
            raise UserError(
                f"--{key} {value} differs from the run that {checkpoint} resumes "
                f"({saved.get(section, {}).get(field)}); leave it out, or start a new fit with --model.backbone {checkpoint}"
            )


def config_name(file: Path) -> str:
    """The run's name that a config stands for: its ``name``, or that of the file."""
    return str(read_yaml(file).get("name") or file.stem)


class TransferCLI(LightningCLI):
    """LightningCLI for TransferModule and ImageDataModule, with a run directory of its own.

    Args:
        run: the run to go on in, or None for a new one.
        checkpoint: the checkpoint that is resumed or evaluated.
    """

    def __init__(self, run: Path | None, checkpoint: Path | None) -> None:
        self.run, self.checkpoint, self.interrupted = run, checkpoint, False
        self.is_new = run is None
        super().__init__(
            TransferModule,
            ImageDataModule,
            save_config_callback=None,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "prog": "transferkit"},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """``--name``, under which the run is kept."""
        parser.add_argument("--name", default="fit", type=str, help="runs/<name>/<number>/ is the run's directory")

    def _parse_ckpt_path(self) -> None:
        """Leave explicit values alone: the checkpoint's are no defaults here (Lightning issue 21455)."""

    def before_instantiate_classes(self) -> None:
        """An evaluation or a resumed fit repeats the splits of its run, unless it looks at other data."""
        config = self.config[self.subcommand]
        recorded = self.run / "splits.parquet" if self.run else None
        if recorded and recorded.is_file() and config.data.splits is None:
            saved = read_yaml(recorded.with_name("config.yaml")).get("data", {})
            fields = ("root", "classes", "val_fraction", "test_fraction", "split_seed", "n_per_class")
            if all(config.data[field] == saved.get(field) for field in fields):
                config.data.splits = str(recorded)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Check what can be checked, then make the run directory and the Trainer that fills it."""
        self.model.meet(self.datamodule, self.subcommand)
        options = dict(self.config_init[self.subcommand].trainer)
        if self.run is None:
            self.run = new_run(Path(options["default_root_dir"] or "."), self.config[self.subcommand].name)
        callbacks, loggers = run_parts(self.run)
        if options.get("enable_progress_bar") is not False and sys.stderr.isatty():
            callbacks.append(progress_callback())
        else:
            options["enable_progress_bar"] = False
        options["callbacks"] = [*(options.get("callbacks") or []), *callbacks]
        if options.get("logger") is None:
            options["logger"] = loggers if self.subcommand in ("fit", "test") else False
        options["plugins"] = [*(options.get("plugins") or []), AtomicCheckpointIO()]
        return Trainer(**options)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb; what it leaves on an interruption can be resumed, on bad input is nothing."""
        assert self.run is not None
        try:
            super()._run_subcommand(subcommand)
        except (KeyboardInterrupt, SystemExit):
            self.interrupted = True
            report.interrupted(subcommand, self.run)
        except UserError:
            if self.is_new and not any((self.run / "checkpoints").glob("*.ckpt")):
                discard(self.run)
            raise

    def before_fit(self) -> None:
        """Record configuration and splits."""
        assert self.run is not None
        config = {key: value for key, value in self.config_dump_of("fit").items() if key in SAVED}
        if self.trainer.is_global_zero:
            save_splits(self.datamodule.table, self.run / "splits.parquet")
            with atomic_path(self.run / "config.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        report.starting(self.model, self.datamodule, self.run)

    def config_dump_of(self, subcommand: str) -> dict[str, Any]:
        """The parsed configuration of a verb as plain types."""
        content = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        return dict(content[subcommand])

    def after_fit(self) -> None:
        """Write and print the metrics of the best checkpoint."""
        assert self.run is not None
        values = best_metrics(self.trainer)
        if self.trainer.is_global_zero:
            update_metrics(self.run, values)
            report.metrics(values, f"best.ckpt: the epoch of the highest {MONITOR}")
            report.paths(self.run)
            report.next_step(f"transferkit test --ckpt_path {self.run / 'checkpoints' / 'best.ckpt'}")

    def after_validate(self) -> None:
        """Write and print the metrics."""
        self.after_evaluation("val")

    def after_test(self) -> None:
        """Write and print the metrics and what else was written."""
        self.after_evaluation(self.datamodule.test_split)

    def after_evaluation(self, split: str) -> None:
        """Write and print the metrics of one split."""
        assert self.run is not None
        values = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if self.trainer.is_global_zero:
            update_metrics(self.run, values)
            note = f"{len(self.datamodule.tables[split])} images of split {split}"
            if self.subcommand == "test" and split == "val":
                note += " (there is no test split; the best checkpoint was chosen on these)"
            report.metrics(values, note)
            report.paths(self.run)

    def after_predict(self) -> None:
        """Print where the predictions are."""
        assert self.run is not None
        if self.trainer.is_global_zero:
            report.predictions(self.run / "predictions.parquet")
            report.paths(self.run)

    def validate(self, model: TransferModule, **kwargs: Any) -> None:
        """Validate; the metrics are printed once, by us."""
        self.trainer.validate(model, **{**kwargs, "verbose": False})

    def test(self, model: TransferModule, **kwargs: Any) -> None:
        """Test; the metrics are printed once, by us."""
        self.trainer.test(model, **{**kwargs, "verbose": False})

    def predict(self, model: TransferModule, **kwargs: Any) -> None:
        """Predict without keeping every batch in memory: the results are written by the callback."""
        self.trainer.predict(model, **{**kwargs, "return_predictions": False})
