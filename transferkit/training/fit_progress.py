"""Progress of a fit, as Lightning counts it: epochs that have begun and ended, batches, and the share that is done."""

from typing import Any

from lightning.pytorch import Trainer


def epochs_of(trainer: Trainer) -> Any:
    """Return Lightning's counts of epochs: ``ready`` have begun, ``processed`` have trained on all their batches."""
    return trainer.fit_loop.epoch_progress.current


def epoch_number(trainer: Trainer) -> int:
    """Return the epoch, from 1, that the weights belong to; 0 before the first."""
    return int(epochs_of(trainer).ready)


def batches_done(trainer: Trainer) -> bool:
    """Return whether the last batch of the epoch has been trained on."""
    batches = trainer.fit_loop.epoch_loop.batch_progress
    return batches.is_last_batch or batches.current.ready >= trainer.num_training_batches


def is_last_epoch(trainer: Trainer) -> bool:
    """Return whether the epoch that ends is the last of the fit. (``trainer.fit_loop.done`` changes its state.)"""
    steps_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return bool(trainer.should_stop or steps_done or epochs_of(trainer).processed == trainer.max_epochs)


def share_done(trainer: Trainer) -> float:
    """Return the share of a fit that is done, in [0, 1], by epochs, batches and steps."""
    epochs, shares = trainer.max_epochs or -1, [0.0]
    if epochs > 0:
        begun, done = epochs_of(trainer).ready, epochs_of(trainer).processed
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        part = batches / trainer.num_training_batches if begun > done and trainer.num_training_batches else 0.0
        shares.append((done + part % 1) / epochs)  # as an epoch begins, the batches are still those of the last one
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    return min(1.0, max(shares))


def leave_ended_epoch(trainer: Trainer) -> None:
    """Let a fit that resumes from the end of an epoch begin the next one; call it as the training starts.

    Lightning does so if ``max_epochs`` limits the fit. If ``max_steps`` does, it would end the last epoch a second
    time, without a batch.
    """
    loop: Any = trainer.fit_loop
    epochs = loop.epoch_progress
    if loop.restarting and epochs.current.processed == epochs.current.ready > 0:
        for part in (loop, loop.epoch_loop):
            part._restarting = False
            part.reset_restart_stage()
        for counts in (epochs.current, epochs.total):
            counts.completed = counts.processed


def run_validation(trainer: Trainer) -> None:
    """Run the validation loop of a fit before its first step, as Lightning runs it between steps."""
    connector = trainer._logger_connector
    first = connector._first_loop_iter
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter = first
