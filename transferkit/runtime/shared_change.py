"""A change of the whole process, such as of its filters of warnings, while any of its threads needs it."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager


class SharedChange:
    """The first of several threads makes the change and the last one undoes it, so that none waits for another.

    A forked process has none of its parent's threads: in it the change is undone.

    Args:
        change: makes the change when it is entered, and undoes it when it is left.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        self.change = change
        self.lock, self.threads, self.undo = threading.Lock(), 0, ExitStack()
        if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
            os.register_at_fork(
                before=self.lock.acquire, after_in_parent=self.lock.release, after_in_child=self.undo_in_child
            )

    @contextmanager
    def made(self) -> Iterator[None]:
        """Keep the change while the block runs."""
        with self.lock:
            if not self.threads:
                self.undo.enter_context(self.change())
            self.threads += 1
        try:
            yield
        finally:
            with self.lock:
                self.threads = max(self.threads - 1, 0)  # 0 already in a process forked inside of the block
                if not self.threads:
                    self.undo.close()

    def undo_in_child(self) -> None:
        """Undo what threads of the parent had changed."""
        self.threads = 0
        self.undo.close()
        self.lock.release()
