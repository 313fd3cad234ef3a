"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with run directories."""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from transferkit.cli import fit_help
from transferkit.cli import fit_report as report
from transferkit.cli.arguments import read_yaml
from transferkit.cli.console import next_command, note
from transferkit.cli.dialect import DIALECT
from transferkit.cli.fit_arguments import prepare
from transferkit.cli.fit_soup import check_ingredient, ingredient_of
from transferkit.cli.parsing import check_seed, rephrase
from transferkit.cli.run_results import first_predictions, predictions, results
from transferkit.cli.several_fits import fit_several
from transferkit.data.datamodule import ImageDataModule
from transferkit.data.splits import save_splits
from transferkit.errors import UserError
from transferkit.probe.audit_files import audit_run
from transferkit.reports.answers import Answering
from transferkit.reports.report import report_of
from transferkit.reports.result_files import ResultFolder, is_fine_tuned
from transferkit.runtime.processes import environment_variable
from transferkit.runtime.ranks import told_once
from transferkit.training import resume, run_directory
from transferkit.training.epoch_lines import progress_callbacks
from transferkit.training.fit_progress import epoch_number
from transferkit.training.module import TransferModule
from transferkit.training.patience import Patience
from transferkit.training.predict_images import TOP_K
from transferkit.training.predicting import OPTIONS, Predicting
from transferkit.training.prediction_writer import PredictionWriter
from transferkit.training.run_leaks import leaks_of_run
from transferkit.training.run_record import TIE_BREAK
from transferkit.training.trackers import offline_by_default, record_files, record_options
from transferkit.training.trainer import (
    TRAINER_DEFAULTS,
    as_list,
    chosen_metrics,
    make_trainer,
    quiet_libraries,
    users_loggers,
)
from transferkit.training.trainer_options import check_callbacks, check_options, class_fault, refusal

SAVED = ("seed_everything", "name", "patience", "soup", "model", "data", "trainer")
RUN = "TRANSFERKIT_RUN"  # the run directory, for the processes that Lightning starts


def main(arguments: list[str]) -> int:
    """Run one of the four verbs; return the exit status."""
    verb, *rest = ["--config" if argument == "-c" else argument for argument in arguments]
    if any(argument in fit_help.ASKS for argument in rest):
        print(fit_help.help_text(verb, rest))
        return 0
    DIALECT.options = fit_help.options_by_argument(verb)
    quiet_libraries()
    offline_by_default()
    if verb == "fit" and (several := fit_several(rest, main)) is not None:
        return several
    plan = prepare(verb, rest)
    try:
        cli = TransferCLI(plan.run, [verb, *plan.arguments], plan.progress)
    except ArgumentError as error:
        line = class_fault(str(error)) or rephrase(str(error), fit_help.known_options(verb), verb)
        raise UserError(line) from error
    if cli.interrupted:
        raise KeyboardInterrupt
    return 0


class TransferCLI(LightningCLI):
    """LightningCLI for TransferModule and ImageDataModule, with a run directory of its own.

    Args:
        run: the run to continue in, or None for a new one.
        arguments: verb and options.
        progress: how far the resumed fit is.
    """

    def __init__(self, run: Path | None, arguments: list[str], progress: resume.Progress) -> None:
        self.run, self.progress, self.interrupted = run, progress, False
        self.is_new = run is None
        self.first_step: int | None = None  # the global step at which training began
        self.scratch: TemporaryDirectory[str] | None = None  # instead of the run, for a fast_dev_run
        self.arguments = arguments
        self.begin = time.time()
        options = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            TransferModule,
            ImageDataModule,
            save_config_callback=None,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={**options, "prog": "transferkit", **dict.fromkeys(fit_help.VERBS, options)},
        )

    def setup_parser(self, *arguments: Any) -> None:
        """Add the options that only predict has."""
        super().setup_parser(*arguments)
        predict = self._subcommand_parsers["predict"]
        predict.add_argument("--top_k", default=TOP_K, type=int)
        for kind, names in ((Predicting, OPTIONS), (Answering, [field.name for field in fields(Answering)])):
            for name in names:
                predict.add_argument(f"--{name}", default=getattr(kind, name), type=get_type_hints(kind)[name])

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--name``, the name of the run, ``--json``, ``--patience`` and ``--soup``."""
        parser.add_argument("--name", default="fit", type=str)
        parser.add_argument("--json", action="store_true")
        parser.add_argument("--patience", default=None, type=int)
        parser.add_argument("--soup", default=None, type=str)
        parser.link_arguments("seed_everything", fit_help.LINKED, compute_fn=int)  # check_seed() checks it

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the prepared arguments; ``sys.argv`` stays as it is, for the processes that Lightning starts with it.

        Raises:
            UserError: the seed or ``top_k`` is out of range.
        """
        self.config = parser.parse_args(self.arguments)
        options = self.config[self.config.subcommand]
        check_seed("seed_everything", options.seed_everything)
        self.top_k: int = options.get("top_k", TOP_K)
        if self.top_k < 1:
            raise UserError(f"--top_k is {self.top_k}; give 1 or more")
        given = {field.name: options[field.name] for field in fields(Answering) if field.name in options}
        self.answering = Answering(**given)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: a checkpoint's values must not replace explicit ones (Lightning issue 21455)."""

    def before_instantiate_classes(self) -> None:
        """Check that a resumed fit keeps its model and data and has epochs left.

        Raises:
            UserError: an option contradicts this.
        """
        if self.run and self.subcommand == "fit":
            self._dump_config()
            saved, wanted = read_yaml(self.run / "config.yaml"), self.config_dump
            resume.check_same_fit(saved, wanted, self.run)
            resume.check_progress(saved.get("trainer") or {}, wanted["trainer"], self.progress)

    def instantiate_classes(self) -> None:
        """Create module, data and Trainer.

        Raises:
            UserError: they cannot be created with these options, or do not fit each other.
        """
        with self.refusals():
            super().instantiate_classes()
            self.model.order_seed += ingredient_of(self.config[self.subcommand].soup)

    def recorded_splits(self) -> str | None:
        """Return the splits of the run that is resumed or evaluated, if it has any for this data."""
        assert self.subcommand is not None
        recorded = self.run / "splits.parquet" if self.run else None
        recorded = recorded if recorded and recorded.is_file() else None
        saved = read_yaml(recorded.with_name("config.yaml"))["data"] if recorded else None
        return resume.recorded_splits(self.config[self.subcommand].data.as_dict(), saved, recorded, self.subcommand)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Check data and options, then create the run directory and the Trainer that writes into it.

        Raises:
            UserError: data, options or devices that cannot be used.
        """
        if self.subcommand != "fit" and self.model.head is None:
            raise UserError(
                f"{self.model.hparams['backbone']} has no classifier; give a checkpoint of fit, or a probe's classifier"
            )
        self.answering.require(self.model.calibration)
        self.datamodule.configure(splits=self.recorded_splits())
        self.model.connect(self.datamodule, self.subcommand)
        options = {**self.config_init[self.subcommand].trainer, **kwargs}
        check_options(options)
        callbacks = as_list(options.pop("callbacks"))
        check_callbacks(callbacks, self.model.logged_names)
        if options["fast_dev_run"]:
            self.scratch = TemporaryDirectory(prefix="transferkit-")
            self.run = Path(self.scratch.name)
        self.run = self.run or self.make_run(Path(options["default_root_dir"] or "."))
        options["enable_progress_bar"], progress = progress_callbacks(options["enable_progress_bar"], callbacks)
        callbacks += progress
        callbacks.append(LambdaCallback(on_train_start=self.announce))
        if (patience := self.config[self.subcommand].patience) is not None:
            callbacks.append(Patience(patience))
        options["tensorboard"] = self.subcommand in ("fit", "test")
        # Lightning rejects false beside checkpoint callbacks
        checkpoints = options.pop("enable_checkpointing") is not False and not self.scratch
        return make_trainer(self.run, checkpoints, self.top_k, self.answering, **options, callbacks=callbacks)

    def make_run(self, root: Path) -> Path:
        """Create a run directory, the same one in every process that Lightning starts."""
        if int(os.environ.get("LOCAL_RANK", 0)) and RUN in os.environ:
            return Path(os.environ[RUN])
        return run_directory.new_run(root, self.config[self.subcommand].name)

    def forget_run(self) -> None:
        """Remove a new run that holds no checkpoint."""
        if self.run and self.is_new and not self.scratch:
            run_directory.remove_unsaved(self.run)

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Turn a library's rejection of its input into one line; on any exception, remove a new run without checkpoint.

        Raises:
            UserError: instead of the library's own exception.
        """
        try:
            yield
        except BaseException as error:
            self.forget_run()
            if isinstance(error, UserError):
                raise told_once(error) from error.__cause__
            if not isinstance(error, Exception):
                raise
            trainer = getattr(self, "trainer", None)
            stepped = trainer is not None and self.first_step not in (None, trainer.global_step)
            refused = refusal(error, before_training=not stepped and (trainer is None or self.subcommand == "fit"))
            if refused is None:
                raise
            raise told_once(refused) from error

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb; an interrupted one can be resumed, and bad input leaves no files."""
        assert self.run is not None
        try:
            with self.refusals(), environment_variable(RUN, str(self.run)):
                super()._run_subcommand(subcommand)
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the former into the latter
            self.interrupted = True
            report.interrupted(subcommand, self.run)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            report.interrupted(subcommand, self.run)
            raise UserError(
                "a process that loads images was killed, perhaps out of memory; start fewer: --data.num_workers 1"
            ) from error
        finally:
            if self.scratch:
                self.scratch.cleanup()

    def before_fit(self) -> None:
        """Record configuration and splits of a new run, so that a failure to write them shows before any work."""
        if self.is_new:
            self.record()

    def announce(self, *_: Any) -> None:
        """Print what is trained on what and, now that the fit has begun, record the options of a resumed run."""
        self.first_step = self.trainer.global_step
        check_ingredient(self.config[self.subcommand].soup, self.model.solves)
        record_options(self.trainer, users_loggers(self.trainer), self.config_dump)
        if self.trainer.is_global_zero:
            report.starting(self.model, self.datamodule, None if self.scratch else self.run)
        if not self.is_new:
            self.record()

    def record(self) -> None:
        """Write ``splits.parquet`` and ``config.yaml``."""
        if not self.trainer.is_global_zero or self.run is None:
            return
        given = {key: value for key, value in self.config_dump.items() if key in SAVED}
        config = {key: value for key, value in given.items() if key not in ("patience", "soup") or value is not None}
        save_splits(self.datamodule.table, self.run / "splits.parquet")
        run_directory.write_config(self.run, config)

    def _dump_config(self) -> None:
        """Keep the parsed configuration of the verb as plain types (a hook that Lightning calls, too).

        Callbacks that cannot be serialized are left out.
        """
        if hasattr(self, "config_dump"):
            return
        config = self.config.clone()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", r"(?s).*Unable to serialize")
            try:
                content = yaml.safe_load(self.parser.dump(config, skip_none=False))
            except (ArgumentError, TypeError, ValueError, UserWarning, yaml.YAMLError):
                config[self.subcommand].trainer.callbacks = None
                note("the callbacks cannot be saved in config.yaml; give them again to resume")
                content = yaml.safe_load(self.parser.dump(config, skip_none=False))
        self.config_dump = dict(content[self.subcommand])

    def after_fit(self) -> None:
        """Write and print the metrics of the best checkpoint, or of the last one if none was validated."""
        assert self.run is not None
        if not self.trainer.is_global_zero:
            return
        if self.scratch:
            values = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            return self.tell(values)
        name, values, epoch = chosen_metrics(self.run)
        if not self.trainer.global_step:
            note("no step was taken, so nothing is trained: a limit of time or a callback ended the fit before it")
        known = run_directory.read_metrics(self.run)
        if known.get("test/epoch", epoch) != epoch:
            note(f"the test results in {self.run} belong to another checkpoint; test again")
            known = {name: value for name, value in known.items() if not name.startswith("test/")}
        run_directory.write_metrics(self.run, known | values)
        if name == "best.ckpt":
            chosen = f"chosen by the highest {self.model.task.monitor}, then the lowest {TIE_BREAK}"
            note(f"best.ckpt: epoch {epoch} of {epoch_number(self.trainer)}, {chosen}")
        elif name:
            note("no validation ran, so there is no best.ckpt; test and export take last.ckpt")
        self.write_report()
        self.tell(values)
        report.copies(self.datamodule)
        if name:
            next_command("test", "--ckpt_path", self.run / "checkpoints" / name)

    def tell(self, values: dict[str, float], predicted: list[dict[str, Any]] | None = None) -> None:
        """Print metrics, the run and the files written into it."""
        assert self.run is not None and self.subcommand is not None
        run, as_json = None if self.scratch else self.run, self.config[self.subcommand].json
        results(run, self.begin, values, as_json, {} if predicted is None else {"predictions": predicted})

    def write_report(self) -> None:
        """Write ``report.html`` of what the run holds by now; after a test with likely label errors and outliers."""
        assert self.run is not None
        if self.subcommand == "test":
            audit_run(self.run, is_fine_tuned(ResultFolder(self.run).yaml("config.yaml")))
            leaks_of_run(self.model, self.datamodule, self.run)
        report_of(self.run, images=self.datamodule.root, image_root=self.datamodule.image_root)
        record_files(users_loggers(self.trainer), self.run, run_directory.checkpoint_of(self.run))

    def after_validate(self) -> None:
        """Write and print the metrics."""
        self.after_evaluation("val")

    def after_test(self) -> None:
        """Write and print the metrics and the written files."""
        self.after_evaluation(self.datamodule.test_split)

    def after_evaluation(self, split: str) -> None:
        """Write and print the metrics of one split."""
        assert self.run is not None and self.subcommand is not None
        if not self.trainer.is_global_zero:
            return
        checkpoint = self.config_init[self.subcommand].ckpt_path
        values = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if self.model.epoch is not None:  # unknown for a probe's classifier
            values["test/epoch" if self.subcommand == "test" else "val/epoch"] = self.model.epoch
        if not self.scratch:
            run_directory.write_metrics(self.run, run_directory.read_metrics(self.run) | values)
            self.write_report()
        chosen = self.subcommand == "test" and split == "val"
        remark = " (there is no test split; the best checkpoint was chosen on these)" if chosen else ""
        note(f"{len(self.datamodule.tables[split])} images of split {split}{remark}")
        self.tell(values)
        if checkpoint:
            next_command(*(["test", "--ckpt_path"] if self.subcommand == "validate" else ["export"]), checkpoint)

    def after_predict(self) -> None:
        """Print the predictions, or the first of them and the file with all."""
        if not self.trainer.is_global_zero:
            return
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]  # set in its constructor
        (written,) = (callback.written for callback in callbacks if isinstance(callback, PredictionWriter))
        as_json = self.config[self.subcommand].json
        predicted = predictions(written[0], self.top_k) if as_json else None
        if not as_json:
            first_predictions(written[0])
        if not self.scratch:
            note(f"predictions: {written[0]} and {written[1].name}")
        self.tell({}, predicted)

    def validate(self, model: TransferModule, **kwargs: Any) -> None:
        """Validate; the metrics are printed once, by :meth:`tell`."""
        self.trainer.validate(model, **{**kwargs, "verbose": False})

    def test(self, model: TransferModule, **kwargs: Any) -> None:
        """Test; the metrics are printed once, by :meth:`tell`."""
        self.trainer.test(model, **{**kwargs, "verbose": False})

    def predict(self, model: TransferModule, **kwargs: Any) -> None:
        """Predict without keeping every batch in memory: a callback writes the results."""
        model.predicting = Predicting(**{name: self.config.predict[name] for name in OPTIONS})
        self.trainer.predict(model, **{**kwargs, "return_predictions": False})
