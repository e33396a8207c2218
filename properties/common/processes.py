"""Work shared among processes: what one process does at once, several do side by side, each set up alike."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

T = TypeVar("T")
SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Unfinished:
    """A call that has no result: why, in one line."""

    why: str


def call_each(
    work: Callable[..., T],
    calls: Iterable[tuple[Any, ...]],
    jobs: int = 1,
    setup: Callable[..., None] | None = None,
    given: tuple[Any, ...] = (),
    *,
    limit: float | None = None,
    began: Callable[[tuple[Any, ...]], None] | None = None,
) -> Iterator[tuple[tuple[Any, ...], T | Unfinished]]:
    """Yield each call's arguments with what `work` returned for them, as they become ready.

    The calls are taken one by one as processes become free, so that whoever yields them may end early.

    Args:
        work: called with each tuple of arguments; for other processes it, they and what it returns can be pickled.
        calls: the arguments.
        jobs: processes; 1 without a limit: here, one after another.
        setup, given: called once in each process before its first call.
        limit: seconds that one call may take; its process then prints where it stands, and ends.
        began: called with the arguments of a call that begins.
    Returns:
        Pairs; Unfinished in place of a result where the process ended, or the call took too long.
    Raises:
        Exception: what `work` or `setup` raised.
    """
    waiting = iter(calls)
    if jobs == 1 and limit is None:
        if setup:
            setup(*given)
        for arguments in waiting:
            if began:
                began(arguments)
            yield arguments, work(*arguments)
        return
    free, busy = list[_Worker](), list[_Worker]()
    try:
        while True:
            while len(busy) < jobs and (next_call := next(waiting, None)) is not None:
                busy.append(free.pop() if free else _Worker(work, setup, given, limit))
                busy[-1].begin(next_call)
                if began:
                    began(next_call)
            if not busy:
                return
            ready = wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                busy.remove(worker)
                result = worker.result()
                if not isinstance(result, Unfinished):
                    free.append(worker)
                yield worker.arguments, result
    finally:
        for worker in free + busy:
            worker.end()


class _Worker:
    """A process that makes one call after another."""

    def __init__(
        self, work: Callable[..., Any], setup: Callable[..., None] | None, given: tuple[Any, ...], limit: float | None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.limit, self.began, self.arguments = limit, 0.0, ()
        self.process = context.Process(target=_serve, args=(theirs, work, setup, given, limit))
        self.process.start()
        theirs.close()

    def begin(self, arguments: tuple[Any, ...]) -> None:
        self.arguments, self.began = arguments, time.monotonic()
        with suppress(OSError):  # it has ended: its result says so
            self.pipe.send(arguments)

    def result(self) -> Any:
        """Return the call's result, Unfinished where the process has ended; or raise what was raised."""
        try:
            result, error, where = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            took, code = time.monotonic() - self.began, self.process.exitcode
            self.end()
            if self.limit is not None and took >= self.limit:
                return Unfinished(f"not done within {self.limit:g} s")
            return Unfinished(f"its process ended with exit code {code}")
        if error is not None:
            raise error from RuntimeError(where)
        return result

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(
    pipe: Connection,
    work: Callable[..., Any],
    setup: Callable[..., None] | None,
    given: tuple[Any, ...],
    limit: float | None,
) -> None:
    """Make calls until there are no more; Ctrl-C is for the process that asks, and this one ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer: tuple[Any, Exception | None, str]
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        if limit is not None:
            faulthandler.dump_traceback_later(limit, exit=True)
        try:
            if setup:
                setup(*given)
                setup = None
            answer = work(*arguments), None, ""
        except Exception as error:
            answer = None, error, traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        try:
            pipe.send(answer)
        except Exception as error:  # it cannot be pickled
            pipe.send((None, RuntimeError(f"{error}"), answer[2] or repr(answer[0])))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def saved_at_times(save: Callable[[T], None] | None, so_far: Callable[[], T]) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each piece of a long run, which saves what there is once a minute.

    An exception that ends the run saves, too.

    Args:
        save: keeps what there is; None: nothing is kept.
        so_far: returns what there is.
    """
    saved = time.monotonic()

    def done() -> None:
        nonlocal saved
        if save and time.monotonic() - saved >= SAVE_EVERY:
            save(so_far())
            saved = time.monotonic()

    try:
        yield done
    except BaseException:
        if save:
            save(so_far())
        raise
