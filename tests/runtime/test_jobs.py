"""Functions in processes side by side: messages, results, and failures that end the others."""

import os
import signal
import time
from functools import partial
from typing import Any

import pytest

from transferkit.errors import UserError
from transferkit.runtime.jobs import Send, run_jobs


def count(upto: int, send: Send) -> int:
    for number in range(upto):
        send(number)
    return os.getpid()


def refuse(send: Send) -> int:
    raise UserError("no such thing; give another")


def die(send: Send) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def sleep(send: Send) -> int:
    send(os.getpid())
    time.sleep(600)
    return 0


def test_messages_and_results() -> None:
    heard: list[tuple[str, Any]] = []
    pids = run_jobs({"a": partial(count, 3), "b": partial(count, 1)}, 2, lambda *message: heard.append(message))
    assert list(pids) == ["a", "b"] and len({os.getpid(), *pids.values()}) == 3
    assert [number for name, number in heard if name == "a"] == [0, 1, 2] and ("b", 0) in heard


def test_one_at_a_time_is_in_order() -> None:
    heard: list[str] = []
    run_jobs({"a": partial(count, 2), "b": partial(count, 2)}, 1, lambda name, number: heard.append(name))
    assert heard == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [(refuse, UserError, "no such thing"), (die, RuntimeError, "the process of bad ended with exit status -9")],
)
def test_a_failure_ends_the_others(job: Any, error: type[Exception], message: str) -> None:
    pids: list[int] = []
    with pytest.raises(error, match=message):
        run_jobs({"long": sleep, "bad": job}, 2, lambda name, pid: pids.append(pid))
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
