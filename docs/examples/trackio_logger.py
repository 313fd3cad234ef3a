"""A fit that trackio records on this machine, beside the run's own TensorBoard files: metrics, options and files."""

import trackio
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from transferkit import fit


class Trackio(Logger):
    """Record with trackio; also as ``--trainer.logger trackio_logger.Trackio --trainer.logger.project photos``."""

    name, version = "trackio", 0

    def __init__(self, project):
        super().__init__()
        self.run = trackio.init(project, embed=False)  # without space_id, nothing leaves the machine

    @rank_zero_only
    def log_hyperparams(self, params):
        """Record the options."""
        self.run.config.update({name: str(value) for name, value in params.items()})

    @rank_zero_only
    def log_metrics(self, metrics, step=None):
        """Record the metrics of a step."""
        trackio.log(metrics, step=step)

    def log_artifacts(self, folder):
        """Keep configuration, metrics, report and card."""
        made = trackio.Artifact("run", type="run")
        made.add_dir(folder)
        trackio.log_artifact(made)


if __name__ == "__main__":
    run = fit("photos", max_epochs=2, num_workers=0, logger=Trackio("photos"), name="tracked")
    trackio.finish()
    print(run.metrics["val/acc"])  # trackio show --project photos
