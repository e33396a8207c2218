"""Work shared among processes: what one process does at once, several do side by side, each set up alike."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any, TypeVar

T = TypeVar("T")
AHEAD = 2  # calls a process that are handed out before they are needed


def call_each(
    work: Callable[..., T],
    calls: Iterable[tuple[Any, ...]],
    jobs: int = 1,
    setup: Callable[..., None] | None = None,
    given: tuple[Any, ...] = (),
) -> Iterator[tuple[tuple[Any, ...], T]]:
    """Yield each call's arguments with what `work` returned for them, as they become ready.

    The calls are taken one by one, a few ahead of what is ready, so that whoever yields them may end early.

    Args:
        work: called with each tuple of arguments; for several jobs it, they and what it returns can be pickled.
        calls: the arguments.
        jobs: processes; 1: here, one after another.
        setup, given: called once in each process before its first call.
    Raises:
        concurrent.futures.BrokenExecutor: a process ended.
    """
    if jobs == 1:
        if setup:
            setup(*given)
        yield from ((arguments, work(*arguments)) for arguments in calls)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=setup, initargs=given) as pool:
        running: dict[Future[T], tuple[Any, ...]] = {}
        waiting = iter(calls)
        try:
            while True:
                for arguments in waiting:
                    running[pool.submit(work, *arguments)] = arguments
                    if len(running) >= AHEAD * jobs:
                        break
                if not running:
                    return
                for ready in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(ready), ready.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
