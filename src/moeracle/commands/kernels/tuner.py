"""The search for a GEMM's tile on this GPU: every tile that becomes the best so far is judged before it does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from moeracle.bench.judge import complaint, timed
from moeracle.bench.problems import Point, Problems, rotation, work_of
from moeracle.kernels import tuned
from moeracle.kernels.bench.timing import Timer, compare
from moeracle.kernels.tune import space as tune_space
from moeracle.target.declaration import Kernel


@dataclass
class Tuner:
    """Climbs from the tile in use to better neighbours, on one problem after another.

    Args:
        timer: the clock.
        device: where.
        most: tiles to try for each problem.
        seconds: of measuring each.
        better: a tile replaces the best so far where its time is below this share of it.
        note: called with one line for each problem.
    """

    timer: Timer
    device: str
    most: int = 40
    seconds: float = 0.05
    better: float = 0.99
    note: Callable[[str], None] = lambda line: None
    illegal: list[dict[str, Any]] = field(default_factory=list)
    cache_bytes: int = 50 << 20

    def __post_init__(self) -> None:
        self.problems = Problems(self.device)

    def tune(self, point: Point, kernel: Kernel) -> dict[str, Any] | None:
        """Return the row of one bucket, or None where the kernel does not take the case.

        Every tile that becomes the best so far is judged on the problem's own tensors before it does.
        """
        name = tune_space.TABLE_NAME.get(kernel.name, kernel.op)
        if kernel.why_not(point.case()) is not None:
            return None
        problems = rotation(self.problems, point, self.cache_bytes)
        N, K = next(iter(point.case().weight_shapes().values()))
        rows, E = work_of(problems[0]).rows, point.shape.E
        kind = point.case().torch_dtype
        assert kind is not None
        device = torch.device(self.device)
        first = tuned.lookup(name, N, K, E, point.case().G, kind, rows, device)
        default = tune_space.start(rows, E, N, K, device)
        seen: set[str] = set()
        best: dict[str, Any] | None = None
        best_us, default_us = float("inf"), None
        todo = [default, *([first] if first else []), *tune_space.neighbours(first or default)]
        while todo and len(seen) < self.most:
            tile = todo.pop(0)
            text = json.dumps(tile, sort_keys=True)
            if text in seen:
                continue
            seen.add(text)
            us = self._time(kernel, problems, name, tile)
            default_us = us if tile is default else default_us
            if us is not None and us < self.better * best_us and self._judge(kernel, problems[0], name, tile):
                best, best_us = tile, us
                if len(seen) > 2 or not first:  # go on from the better one; the table's own tile is second
                    todo = list(tune_space.neighbours(tile))
        if best is None:
            return None
        key = {"op": name, "N": N, "K": K, "E": E, "G": point.case().G, "dtype": point.dtype}
        found = {"us": round(best_us, 2), "default_us": None if default_us is None else round(default_us, 2)}
        counts = {"tried": len(seen), "case": str(point.case()), "T": point.T, "what": point.what}
        return {**key, "rows_per_expert": rows / E, "tile": best, **found, **counts}

    def _time(self, kernel: Kernel, problems: Sequence[Any], name: str, tile: dict[str, Any]) -> float | None:
        calls = [lambda p=p: timed(kernel)(*p.args.values()) for p in problems]
        try:
            with tuned.forced({name: tile}):
                return compare(self.timer, {kernel.name: calls}, rounds=7, seconds=self.seconds)[0][kernel.name].us
        except Exception:  # too much shared memory, or a tile that the compiler refuses
            return None

    def _judge(self, kernel: Kernel, problem: Any, name: str, tile: dict[str, Any]) -> bool:
        with tuned.forced({name: tile}):
            why = complaint(kernel, problem)
        if why is not None:
            self.illegal.append({"kernel": kernel.name, "case": str(problem.case), "tile": tile, "why": why})
            self.note(f"{kernel.name} is illegal with {tile}: {why}")
        return why is None
