"""`moeracle kernels tune --kernel moe_w4a16.hopper`: every candidate of the Hopper layer, and the judge of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from moeracle.bench.judge import complaint
from moeracle.bench.problems import Point, rotation
from moeracle.bench.suite import layer_of
from moeracle.kernels import tuned
from moeracle.kernels.bench.cases import Shape
from moeracle.kernels.bench.layer_problem import LayerProblem
from moeracle.kernels.tune import space as tune_space
from moeracle.properties.cases.case import Problem
from moeracle.target.declaration import Kernel

from ..options import TuneOptions
from .tuner import Tuner

ROUTING = "uniform"  # what the search's own problems are drawn by


def check_options(options: TuneOptions) -> None:
    """Raise ValueError where an option asks for what this search does not do."""
    name = tune_space.HOPPER_LAYER
    if options.archetype != ROUTING:
        raise ValueError(f"archetype: got {options.archetype!r}, must be {ROUTING!r} for {name}: its search draws so")
    if options.dtype != "bf16" and not options.dry:
        raise ValueError(f"dtype: got {options.dtype!r}, must be 'bf16' for {name}: one table serves both; or --dry")


def judged(kernel: Kernel, problem: Problem) -> Callable[[Any], str | None]:
    """Return the judge of a layer's tiles, on the tensors that it is timed with; of equal bits it judges one.

    Args:
        kernel: moe_w4a16.hopper.
        problem: the first routing's.
    Returns:
        tiles.layers.Layer to None, or to why the layer must not be timed.
    """
    from moeracle.kernels.hopper.tiles.layers import to_fields

    seen: list[Any] = []

    def judge(layer: Any) -> str | None:
        with tuned.forced({tune_space.HOPPER_LAYER: to_fields(layer)}):
            return complaint(kernel, problem, seen)

    return judge


def tune_layer(
    tuner: Tuner, name: str, shape: Shape, kernel: Kernel, options: TuneOptions
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield for each T the table's row with what `tune` prints beside it, and what was illegal.

    Args:
        tuner: makes the tensors, and is called with one line for each find.
        name, shape: of the layer.
        kernel: moe_w4a16.hopper.
        options: tokens (those of tune.hopper if none), dtype.
    """
    from moeracle.kernels.bench.layer_problem import CALLS
    from moeracle.kernels.tune import hopper as tune_hopper

    def point(T: int) -> Point:
        return Point("moe_w4a16", "layer", name, shape, ROUTING, T, dtype=options.dtype)

    def problem_of(T: int) -> tuple[LayerProblem, Callable[[Any], str | None]]:
        problems = rotation(tuner.problems, point(T), tuner.cache_bytes, least=CALLS)
        return layer_of(problems), judged(kernel, problems[0])

    reason = kernel.why_not(point(1).case())
    if reason is not None:
        tuner.note(f"{kernel.name}: nothing for {point(1).case()}: {reason}")
        return
    tokens = options.tokens or tune_hopper.TOKENS
    for row, found in tune_hopper.search(shape, tokens, options.dtype, problem_of, tuner.note):
        T = round(row["rows_per_expert"] * shape.E / shape.k)
        default = None if found["default_us"] is None else round(found["default_us"], 1)
        more = {"default_us": default, "tried": len(found["tried"]), "case": str(point(T).case())}
        detail = {"what": "layer", "T": T, "layers": found["tried"], "gemms": found["gemms"]}
        yield {**row, **more, **detail}, [{"kernel": kernel.name, "case": more["case"], **i} for i in found["illegal"]]
