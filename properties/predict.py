"""Predictions: for each stage of an op that a kernel stored, the Band that its contract and schedules leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch

from moeracle.ref.band import Band, add_band, exactly, sum_band, weigh_band
from moeracle.ref.contract import Contract
from moeracle.ref.gemm import expert_spans, padded_rows
from moeracle.ref.interval import dot_band, dot_weights
from moeracle.ref.interval_moe import expert_weights, layer_bands
from moeracle.ref.interval_shared import shared_expert_bands, tiny_dot_band

from .judge.int8 import int8_dot_weights
from .problem import Problem

Given = dict[str, torch.Tensor]
Pieces = Iterable[tuple[str, torch.Tensor, Band]]  # stage, its rows, their Band


def predict(problem: Problem, rules: Contract, given: Given) -> dict[str, Band]:
    """Return each stored stage's Band before its store rounding; rows that nobody computes are zeros.

    Args:
        problem: of one of PREDICTED.
        rules: with schedules.
        given: what the kernel stored, by stage: a stage is predicted from the one that was stored before it.
    """
    found = {}
    for stage, out in given.items():
        zeros = torch.zeros(out.shape, dtype=torch.float64, device=out.device)
        found[stage] = Band(zeros, zeros.clone())
    for stage, rows, band in PREDICTED[problem.case.op](problem, rules, given):
        if stage in found:
            found[stage].lo[rows], found[stage].hi[rows] = band.lo, band.hi
    return found


def _gemm(problem: Problem, rules: Contract, given: Given) -> Pieces:
    args, x, w = problem.args, problem.args["x"], problem.args["w"]
    top_k, bias = args.get("top_k", 1), args.get("bias")
    weights = None if args.get("topk_weights") is None else args["topk_weights"].reshape(-1, 1).double()
    of_expert = (lambda e: dot_weights(w, rules, x.dtype)) if w.E is None else expert_weights(w, rules, x.dtype)
    for e, rows in _routed_rows(problem):
        band = dot_band(exactly(x[rows // top_k]), of_expert(e), rules, x.dtype)
        if bias is not None:
            band = add_band(band, bias)
        if weights is not None:
            band = weigh_band(band, weights[rows])
        yield "out", rows, band


def _routed_rows(problem: Problem) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (expert, its output rows)."""
    args, op = problem.args, problem.case.op
    if op == "int4_linear":
        yield 0, torch.arange(args["x"].shape[0], device=problem.device)
    elif op == "grouped_gemm":
        for e, start, stop in expert_spans(args["expert_offsets"]):
            yield e, torch.arange(start, stop, device=problem.device)
    else:
        R, block = args["x"].shape[0] * args["top_k"], problem.truth["block_size"]
        yield from padded_rows(args["sorted_token_ids"], args["expert_ids"], args["num_tokens_post_padded"], R, block)


def _lm_head(problem: Problem, rules: Contract, given: Given) -> Pieces:
    x, codes, scale, bias = (problem.args[name] for name in ("x", "codes", "scale", "bias"))
    weights = int8_dot_weights(codes, scale, rules, x.dtype, bias)
    band = dot_band(exactly(x), weights, rules, x.dtype)
    in_sum = weights.operands is not None and weights.operands.bias is not None
    yield "out", _every(x), band if bias is None or in_sum else add_band(band, bias)


def _tiny(problem: Problem, rules: Contract, given: Given) -> Pieces:
    x, w, sigmoid = problem.args.values()
    yield "out", _every(x), tiny_dot_band(x, w, rules, sigmoid=sigmoid)


def _unpermute(problem: Problem, rules: Contract, given: Given) -> Pieces:
    y, weights, inv = (problem.args[name] for name in ("y", "topk_weights", "inv"))
    terms = y[inv.long().reshape(weights.shape)].double() * weights.double()[:, :, None]
    yield "out", _every(weights), sum_band(Band(terms, terms), rules, y.dtype, multiplied=True)


def _layer(problem: Problem, rules: Contract, given: Given) -> Pieces:
    pieces: list[tuple[str, torch.Tensor, Band]] = []
    stored = {name: out for name, out in given.items() if name not in ("out", "dot")}
    visit = lambda stage, rows, band: pieces.append((stage, rows, band))
    if problem.case.op == "shared_expert":
        x, up, down, gate = problem.args.values()
        shared_expert_bands(x, up, down, gate, rules, given=stored, visit=visit)
        if "dot" in given:
            of_gate = replace(rules.unscheduled, weight="cast", schedule=rules.gate_schedule)
            pieces.append(("dot", _every(x), tiny_dot_band(x, gate, of_gate)))
    else:
        a = problem.args
        weights = a["topk_weights"], a["topk_ids"]
        layer_bands(a["x"], a["w13"], a["w2"], *weights, rules, given=stored, visit=visit)
    return pieces


def _every(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[0], device=x.device)


PREDICTED: dict[str, Callable[[Problem, Contract, Given], Pieces]] = {
    "int4_linear": _gemm,
    "grouped_gemm": _gemm,
    "padded_gemm": _gemm,
    "int8_lm_head": _lm_head,
    "tiny_dot": _tiny,
    "moe_unpermute": _unpermute,
    "moe_w4a16": _layer,
    "shared_expert": _layer,
}
