"""Functions side by side, each in a process of its own, with messages from them while they run."""

import multiprocessing
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, TypeVar

from transferkit.errors import UserError

Result = TypeVar("Result")
Send = Callable[[Any], None]


class Message(NamedTuple):
    """What a job sends while it runs."""

    content: Any


class Done(NamedTuple):
    """The last thing that a job sends."""

    result: Any


def run_jobs(
    jobs: Mapping[str, Callable[[Send], Result]], most: int, receive: Callable[[str, Any], None]
) -> dict[str, Result]:
    """Run functions in new processes; if one fails, the others are killed.

    Args:
        jobs: name -> function, which can be pickled and is called with a function that sends a message here.
        most: number of processes at a time.
        receive: called with the name of a job and its message.

    Returns:
        Name -> result, in the order of the jobs.

    Raises:
        UserError: raised by a job.
        RuntimeError: a job raised another exception, which its process printed, or was killed.
    """
    context = multiprocessing.get_context("spawn")  # a forked process would share the locks of torch's threads
    waiting = list(jobs)
    running: dict[Connection, tuple[str, Any]] = {}
    results: dict[str, Result] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=run_job, args=(jobs[waiting[0]], theirs), daemon=True)
                running[ours] = (waiting.pop(0), process)
                process.start()
                theirs.close()  # only the job holds it now: the pipe ends with its process
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                name, process = running[connection]
                try:
                    received = connection.recv()
                except EOFError:
                    process.join()
                    raise RuntimeError(f"the process of {name} ended with exit status {process.exitcode}") from None
                if isinstance(received, UserError):
                    raise received
                if isinstance(received, Message):
                    receive(name, received.content)
                    continue
                results[name] = received.result
                process.join()
                del running[connection]
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
    return {name: results[name] for name in jobs}


def run_job(job: Callable[[Send], Any], connection: Connection) -> None:
    """Run a job in its process, and send its messages, then its result or a UserError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one kills the others
    try:
        connection.send(Done(job(lambda content: connection.send(Message(content)))))
    except UserError as error:
        connection.send(error)
