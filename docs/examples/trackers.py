"""One fit recorded by MLflow and in a CSV file, beside the run's own TensorBoard files; nothing leaves the machine."""

from lightning.pytorch.loggers import CSVLogger, MLFlowLogger

from transferkit import fit
from transferkit.training.trackers import offline_by_default

offline_by_default()  # before a logger is made; WANDB_MODE=online in the environment wins
mlflow = MLFlowLogger("photos", save_dir="tracked")
run = fit("photos", max_epochs=2, num_workers=0, logger=[mlflow, CSVLogger("logs")], name="tracked")
print(mlflow.experiment.get_run(mlflow.run_id).data.metrics["val/acc"], run.metrics["val/acc"])
print(sorted(file.path for file in mlflow.experiment.list_artifacts(mlflow.run_id)))  # config, metrics, report, card
