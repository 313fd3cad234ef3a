"""Shares and ends of a fit; test_run_record.py resumes from every moment, test_epoch_lines.py shows the time left."""

from types import SimpleNamespace
from typing import Any

import pytest

from transferkit.training.fit_progress import batches_done, epoch_number, is_last_epoch, share_done


def trainer(ready: int, processed: int, batch: int = 0, **options: Any) -> Any:
    """A Trainer in the given epoch, after some of its 4 batches."""
    epochs = SimpleNamespace(ready=ready, processed=processed)
    batches = SimpleNamespace(is_last_batch=False, current=SimpleNamespace(ready=batch))
    loop = SimpleNamespace(
        epoch_progress=SimpleNamespace(current=epochs), epoch_loop=SimpleNamespace(batch_progress=batches)
    )
    given = {"max_epochs": 10, "max_steps": -1, "num_training_batches": 4, "global_step": 0, "should_stop": False}
    return SimpleNamespace(fit_loop=loop, **given | options)


@pytest.mark.parametrize(
    ("state", "share"),
    [
        (trainer(0, 0), 0.0),
        (trainer(1, 0, 1), 0.025),
        (trainer(3, 2, 4), 0.2),  # the epoch has begun, the count of batches is still that of the last one
        (trainer(3, 3, 4), 0.3),
        (trainer(10, 10, 4), 1.0),
        (trainer(3, 2, 2, max_steps=20, global_step=10), 0.5),  # whichever ends the fit
        (trainer(3, 2, 2, max_epochs=-1), 0.0),
        (trainer(3, 2, 2, max_epochs=-1, max_steps=8, global_step=9), 1.0),
    ],
)
def test_the_share_that_is_done(state: Any, share: float) -> None:
    assert share_done(state) == pytest.approx(share)


def test_epochs_and_their_ends() -> None:
    assert epoch_number(trainer(3, 2)) == 3
    assert batches_done(trainer(3, 2, 4)) and not batches_done(trainer(3, 2, 3))
    assert is_last_epoch(trainer(10, 10)) and not is_last_epoch(trainer(9, 9))
    assert is_last_epoch(trainer(3, 3, max_steps=12, global_step=12)) and is_last_epoch(trainer(3, 3, should_stop=True))
