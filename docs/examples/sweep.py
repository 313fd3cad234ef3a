"""An Optuna sweep over ``fit``: each trial is a command, its result one JSON object."""

import json
import subprocess
import sys

import optuna


def objective(trial: optuna.Trial) -> float:
    """Return the accuracy on val of one fit."""
    rate = trial.suggest_float("lr_head", 1e-4, 1e-1, log=True)
    smoothing = trial.suggest_float("label_smoothing", 0.0, 0.2)
    options = ["--model.lr_head", str(rate), "--model.label_smoothing", str(smoothing), "--trainer.max_epochs", "3"]
    command = [sys.executable, "-m", "transferkit", "fit", "photos", *options, "--name", "sweep", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["metrics"]["val/acc"]


study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
study.optimize(objective, n_trials=3)
print(study.best_value, study.best_params)
