"""`moeracle kernels tune --kernel moe_w4a16.hopper`: every candidate of the Hopper layer, then the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from moeracle.bench_judge import complaint
from moeracle.declaration import Kernel
from moeracle.kernels import tune_space, tuned
from moeracle.kernels.bench_cases import Shape
from moeracle.properties.case import Case
from moeracle.properties.problem import Problem

from .options import TuneOptions

ROUTING = "uniform"  # what the search's own problems are drawn by


def check_options(options: TuneOptions) -> None:
    """Raise ValueError where an option asks for what this search does not do."""
    name = tune_space.HOPPER_LAYER
    if options.archetype != ROUTING:
        raise ValueError(f"archetype: got {options.archetype!r}, must be {ROUTING!r} for {name}: its search draws so")
    if options.dtype != "bf16" and not options.dry:
        raise ValueError(f"dtype: got {options.dtype!r}, must be 'bf16' for {name}: one table serves both; or --dry")


def case_of(shape: Shape, T: int, dtype: str) -> Case:
    """Return the case whose tensors the search makes: sizes and names are the case's, bits are its own."""
    sizes: dict[str, Any] = {"T": T, "E": shape.E, "k": shape.k, "H": shape.H, "I": shape.I, "G": shape.G}
    return Case.of("moe_w4a16", dtype=dtype, zero="sym", routing=ROUTING, seed=1, **sizes)


def judged(kernel: Kernel, dtype: str) -> Callable[[Any, Any], str | None]:
    """Return the judge of a layer's tiles: on the tensors that it was timed with, every routing's first.

    Args:
        kernel: moe_w4a16.hopper.
        dtype: "bf16" or "fp16".
    Returns:
        (layer_problem.Problem, hopper_tiles.Layer) to None, or to why the layer must not enter a table.
    """
    from moeracle.kernels.hopper_tiles import to_fields

    def judge(problem: Any, layer: Any) -> str | None:
        weights, (router, ids) = problem.weights, problem.routes[0]
        tensors = {"x": problem.x, "w13": weights.w13, "w2": weights.w2, "topk_weights": router, "topk_ids": ids}
        with tuned.forced({tune_space.HOPPER_LAYER: to_fields(layer)}):
            return complaint(kernel, Problem(case_of(problem.shape, problem.T, dtype), tensors))

    return judge


def tune_layer(
    kernel: Kernel, shape: Shape, options: TuneOptions, note: Callable[[str], None]
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield for each T the table's row with what `tune` prints beside it, and what was illegal.

    Args:
        kernel: moe_w4a16.hopper.
        shape: of the layer.
        options: tokens (those of tune_hopper if none), dtype.
        note: told one line a find.
    """
    from moeracle.kernels import tune_hopper

    reason = kernel.why_not(case_of(shape, 1, options.dtype))
    if reason is not None:
        note(f"{kernel.name}: nothing for {case_of(shape, 1, options.dtype)}: {reason}")
        return
    tokens = options.tokens or tune_hopper.TOKENS
    for row, found in tune_hopper.search(shape, tokens, options.dtype, judged(kernel, options.dtype), note):
        T = round(row["rows_per_expert"] * shape.E / shape.k)
        default = None if found["default_us"] is None else round(found["default_us"], 1)
        more = {"default_us": default, "tried": len(found["tried"]), "case": str(case_of(shape, T, options.dtype))}
        detail = {"what": "layer", "T": T, "layers": found["tried"], "gemms": found["gemms"]}
        yield {**row, **more, **detail}, [{"kernel": kernel.name, "case": more["case"], **i} for i in found["illegal"]]
