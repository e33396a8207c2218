"""Compiling ahead: several processes run a benchmark's kernels once each, so that the one that times finds them ready.

Triton and the compilers behind it take seconds for a tile, and keep what they made on disk. Judging is not shared out:
it is many small launches that wait for each other, and processes that share a GPU take turns.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

from moeracle.bench.judge import timed
from moeracle.bench.problems import Point, Problems
from moeracle.target.declaration import Kernel

Measured = Sequence[tuple[Point, Sequence[Kernel]]]
MOST = 14
EACH = 6 << 30  # bytes of GPU memory for each process
_MINE: dict[str, Any] = {}


def processes(jobs: int, memory: int) -> int:
    """Return how many processes compile: as many as asked for, else one a core but one, if memory allows.

    Args:
        jobs: asked for; 0: choose.
        memory: of the GPU that is free, bytes.
    """
    return jobs or max(1, min(MOST, (os.cpu_count() or 2) - 1, memory // EACH))


def distinct(points: Measured) -> Measured:
    """Return the points that may need other machine code: launches are chosen by sizes, so one archetype will do."""
    found: dict[Any, tuple[Point, Sequence[Kernel]]] = {}
    for point, kernels in points:
        found.setdefault((point.op, point.what, point.shape, point.T, point.dtype, point.zero), (point, kernels))
    return list(found.values())


def compile_ahead(points: Measured, count: int, places: Sequence[str], device: str) -> Iterator[Point]:
    """Run each point's kernels once in other processes; yield each point when it is ready.

    A kernel that fails there is left for the judge to find; a process that dies ends the work early.

    Args:
        points: what is measured, with the kernels of their op.
        count: of processes.
        places: TARGETs that hold the kernels.
        device: where.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _start, (tuple(places), device)) as pool:
        waiting = {pool.submit(_work, point, [(k.module, k.name) for k in ks]): point for point, ks in points}
        try:
            for future in as_completed(waiting):
                future.result()
                yield waiting[future]
        except BrokenProcessPool:
            return
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start(places: tuple[str, ...], device: str) -> None:
    """Load the kernels; in a new process."""
    import torch

    from moeracle.target.load import load_target

    parent = multiprocessing.parent_process()
    if parent is not None:  # one that is killed leaves nobody behind
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        torch.set_num_threads(1)
    held = [kernel for place in places for kernel in load_target(place).kernels]
    _MINE.update(kernels={(k.module, k.name): k for k in held}, problems=Problems(device), shape="")


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(point: Point, names: Sequence[tuple[str, str]]) -> None:
    """Run kernels at one point, and what is timed in their stead; in such a process."""
    problems: Problems = _MINE["problems"]
    if point.shape_name != _MINE["shape"]:
        problems.forget()
        _MINE["shape"] = point.shape_name
    problem = problems.build(point.case())
    for name in names:
        kernel = _MINE["kernels"][name]
        if kernel.why_not(point.case()) is None:
            for run in dict.fromkeys((kernel.fn, timed(kernel))):
                with suppress(Exception):
                    run(*problem.args.values())
