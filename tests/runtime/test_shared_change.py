"""A change that several threads share is made once, undone once, and not there in a forked process."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from transferkit.runtime.shared_change import SharedChange


def counted() -> tuple[list[str], SharedChange]:
    events: list[str] = []

    @contextmanager
    def change() -> Iterator[None]:
        events.append("made")
        try:
            yield
        finally:
            events.append("undone")

    return events, SharedChange(change)


def test_it_is_made_once_and_undone_once() -> None:
    events, change = counted()
    for _ in range(2):
        first, second = ExitStack(), ExitStack()
        first.enter_context(change.made())
        second.enter_context(change.made())
        first.close()  # the first to come need not be the last to go
        assert events[-1] == "made"
        second.close()
    assert events == ["made", "undone"] * 2


def test_it_is_undone_after_an_error() -> None:
    events, change = counted()
    with pytest.raises(ZeroDivisionError), change.made():
        raise ZeroDivisionError
    assert events == ["made", "undone"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_inside_of_the_block_begins_anew() -> None:
    events, change = counted()
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()

    def child(block: ExitStack) -> None:
        block.close()  # as where the child leaves the block that its parent is in
        with change.made():
            pass
        results.put(list(events))

    with ExitStack() as block:
        block.enter_context(change.made())
        process = context.Process(target=child, args=(block,))
        process.start()
        process.join(30)
        assert events == ["made"]
    assert results.get() == ["made", "undone", "made", "undone"] and events == ["made", "undone"]
