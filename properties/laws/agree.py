"""When two answers agree: equal bits, but for softmax and quotients, which legal kernels approximate."""

from __future__ import annotations

import torch

from ..problem import Problem
from .bench import Bench, Results
from .change import axes_of

CLEAR_GAP = 2.0**-9  # of logits: far above what any fp32 softmax of 4096 experts can confuse
DEEPEST = 80.0  # below the row's largest logit scores are still normal fp32 numbers


def agree(bench: Bench, problem: Problem, got: Results, expected: Results, on: str, *, ties: bool = True) -> None:
    """Demand that two answers to `problem` agree.

    Args:
        problem: what both answer.
        got, expected: results in token order.
        on: what `got` was computed from.
        ties: equal logits may be compared: False where experts have changed their names, so that ties break otherwise.
    """
    op = problem.case.op
    if op == "topk_softmax":
        _agree_topk(bench, problem, got, expected, on, ties)
    elif op == "quantize_int8":
        _agree_quantized(bench, problem, got, expected, on)
    else:
        for name, value in expected.items():
            bench.equal(name, got[name], value, axes_of(problem, value), on=on)


def clear_rows(logits: torch.Tensor, top_k: int, *, ties: bool) -> torch.Tensor:
    """Return bool [T]: rows whose k best experts, and their order, no legal kernel can mistake.

    Their logits lie apart, or (with `ties`) are equal, when the lower id goes first; rows without a finite softmax have
    ids 0..k-1.
    """
    l = logits.double()
    best = l.sort(dim=1, descending=True).values[:, : top_k + 1]
    gap = best[:, :-1] - best[:, 1:]
    apart = (gap >= CLEAR_GAP) | ((gap == 0) & ties)
    finite = l.isfinite().all(1)
    clamped = without_softmax(l)
    return (finite & apart.all(1) & (best[:, 0] - best[:, -1] < DEEPEST)) | (clamped & ties)


def without_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Return bool [T]: rows that hold NaN or +inf, or nothing but -inf; their scores are 0."""
    return ~logits.amax(1).isfinite()  # amax passes NaN on


def topk_tolerance(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return how far two legal kernels' weights may be apart: each has (8 + depth) 2^-23 + E 2^-24 relative, twice if
    renormalized, and k more roundings."""
    k, E = weights.shape[1], logits.shape[1]
    relative = 2 * ((8 + DEEPEST) * 2.0**-23 + E * 2.0**-24) + (k + 2) * 2.0**-24
    return weights.double().abs() * 2 * relative + 2.0**-148


def _agree_topk(bench: Bench, problem: Problem, got: Results, expected: Results, on: str, ties: bool) -> None:
    logits = problem.args["logits"]
    rows = clear_rows(logits, problem.case.k, ties=ties)[:, None]
    bench.equal("ids", got["ids"], expected["ids"], ("token", "slot"), rows, on)
    close = (got["weights"].double() - expected["weights"].double()).abs() <= topk_tolerance(
        logits, expected["weights"]
    )
    bench.demand("weights", close, got["weights"], expected["weights"], ("token", "slot"), rows, on)


def _agree_quantized(bench: Bench, problem: Problem, got: Results, expected: Results, on: str) -> None:
    """Scales within the two approximate divisions' 2^-21; codes equal unless the quotient is that near a tie."""
    scale, other = expected["scale"].double(), got["scale"].double()
    axes = ("row", "group")[: scale.ndim]
    bench.demand("scale", (other - scale).abs() <= scale * 2.0**-21, other, scale, axes, on=on)
    w, V = problem.args["w"].double(), problem.case.V
    quotient = w / scale.reshape(V, -1).repeat_interleave(problem.case.K // scale.reshape(V, -1).shape[1], 1)
    from_tie = (quotient - quotient.floor() - 0.5).abs()
    clear = from_tie > quotient.abs() * 2.0**-19 + 2.0**-30
    bench.equal("codes", got["codes"].int(), expected["codes"].int(), ("row", "k"), clear, on)
