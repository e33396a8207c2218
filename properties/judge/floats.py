"""The judges of float results: for each op, walk its output in pieces and tally each against its Band.

Every judge takes (problem, outputs by stage, contract, sample) and returns one Tally a stage; `sample` is Tally's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from moeracle.ref.band import Band, add_band, exactly, store, sum_band, weigh_band
from moeracle.ref.contract import STAGES, Contract
from moeracle.ref.gemm import expert_spans, infer_block_size, padded_rows
from moeracle.ref.interval import dot_band, dot_weights
from moeracle.ref.interval_moe import expert_weights, layer_bands, silu_mul_band
from moeracle.ref.interval_shared import shared_expert_bands, tiny_dot_band
from moeracle.ref.rounding import round_in_fp64
from moeracle.ref.weight import Int4Weight

from ..problem import Problem
from ..statistics import errors_of
from .int8 import int8_dot_weights
from .rivals import rivals_of
from .shapes import Output
from .tally import SAMPLE, Tally

ROWS_AT_ONCE = 512
WEIGHTS_AT_ONCE = 1 << 20  # int8 weights held in fp64 together: a whole vocabulary would take gigabytes

Judge = Callable[[Problem, Output, Contract, int], list[Tally]]


def promises_exact(problem: Problem) -> bool:
    """Say whether sums are worth checking for exactness: the recipe promises it, or each sum has one term.

    The bands check each element; this only keeps that check away from data on which it never succeeds.
    """
    return problem.exact or problem.case.data == "onehot"


def sums_may_overflow(problem: Problem, rules: Contract) -> bool:
    """Say whether a sum that a kernel scales only afterwards may exceed fp32, although the scaled one does not."""
    x = problem.args.get("x")
    if x is None or x.numel() == 0 or rules.weight not in ("post", "hoisted"):
        return False
    code = 128 if problem.case.op == "int8_lm_head" else 2 * (15 + rules.zero_offset)
    return float(x.abs().amax()) * x.shape[1] * code >= 2.0**127


def tally_of(problem: Problem, outputs: Output, rules: Contract, sample: int, stage: str = "out") -> Tally:
    """Return the empty Tally of a stage, with what its errors may look like and other experts' answers."""
    errors, rivals = errors_of(problem.case, rules, stage), rivals_of(problem, stage)
    return Tally(stage, outputs[stage], rules, sample, errors, rivals)


def judge_moe(problem: Problem, outputs: Output, rules: Contract, sample: int = SAMPLE) -> list[Tally]:
    """Judge moe_w4a16: each stage that the kernel stored, from the last one that it stored before."""
    a = problem.args
    tallies = {name: tally_of(problem, outputs, rules, sample, name) for name in STAGES if name in outputs}

    def visit(stage: str, rows: torch.Tensor, band: Band) -> None:
        if stage in tallies:
            tallies[stage].visit(rows, band)

    given = {name: outputs[name] for name in STAGES[:-1] if name in outputs}
    layer_bands(
        a["x"], a["w13"], a["w2"], a["topk_weights"], a["topk_ids"], rules,
        given=given, visit=visit, expert_map=a.get("expert_map"), exact=promises_exact(problem),
    )  # fmt: skip
    return list(tallies.values())


def judge_unpack(problem: Problem, outputs: Output, rules: Contract, sample: int = SAMPLE) -> list[Tally]:
    """Judge unpack_int4: equality."""
    codes = problem.args["w"].codes()
    codes = codes.reshape(-1, codes.shape[-1])
    tally = Tally("out", outputs["out"].reshape(codes.shape).float(), rules, sample)
    return _in_pieces(tally, lambda rows: exactly(codes[rows]))


def judge_dequantize(problem: Problem, outputs: Output, rules: Contract, sample: int = SAMPLE) -> list[Tally]:
    """Judge dequantize_int4: one rounding of the exact weight, in the contract's direction."""
    w, dtype = problem.args["w"], problem.case.torch_dtype
    assert dtype is not None
    exact = w.dequantize(torch.float32).reshape(-1, w.K)
    tally = Tally(
        "out", outputs["out"].reshape(exact.shape), replace(rules, store_rounding=rules.weight_rounding), sample
    )

    def band(rows: torch.Tensor) -> Band:
        one = exactly(exact[rows])
        if not rules.ftz:
            return one
        tiny = one.lo.abs() < torch.finfo(dtype).smallest_normal
        return Band(torch.where(tiny, one.lo.clamp(max=0), one.lo), torch.where(tiny, one.lo.clamp(min=0), one.lo))

    return _in_pieces(tally, band)


def judge_silu(problem: Problem, outputs: Output, rules: Contract, sample: int = SAMPLE) -> list[Tally]:
    """Judge silu_and_mul."""
    h = problem.args["h"]
    tally = tally_of(problem, outputs, rules, sample)
    return _in_pieces(tally, lambda rows: silu_mul_band(exactly(h[rows]), rules, h.dtype))


def judge_linear(problem: Problem, outputs: Output, rules: Contract, sample: int = SAMPLE) -> list[Tally]:
    """Judge int4_linear; the bias is added in fp32 before the store."""
    x, w, bias = problem.args["x"], problem.args["w"], problem.args.get("bias")
    weights, exact = dot_weights(w, rules, x.dtype), promises_exact(problem)

    def band(rows: torch.Tensor) -> Band:
        dots = dot_band(exactly(x[rows]), weights, rules, x.dtype, exact=exact)
        return dots if bias is None else add_band(dots, bias)

    return _in_pieces(tally_of(problem, outputs, rules, sample), band)


def judge_grouped(problem: Problem, outputs: Output, rules: Contract, sample: int = SAMPLE) -> list[Tally]:
    """Judge grouped_gemm; what rows of no local expert hold is open."""
    x, w, offsets = problem.args["x"], problem.args["w"], problem.args["expert_offsets"]
    spans = ((e, torch.arange(start, stop, device=x.device)) for e, start, stop in expert_spans(offsets))
    tally = tally_of(problem, outputs, rules, sample)
    for rows, band in _routed(spans, x, 1, w, rules, promises_exact(problem)):
        tally.visit(rows, band)
    return [tally]


def judge_padded(problem: Problem, outputs: Output, rules: Contract, sample: int = SAMPLE) -> list[Tally]:
    """Judge padded_gemm; rows of experts elsewhere and of ignored ids must be zero."""
    a = problem.args
    x, w, ids, experts, end = a["x"], a["w"], a["sorted_token_ids"], a["expert_ids"], a["num_tokens_post_padded"]
    top_k, weights = a["top_k"], a["topk_weights"]
    R = x.shape[0] * top_k
    block = problem.truth.get("block_size") or infer_block_size(len(ids), len(experts), R, w.E or 1, int(end))
    tally, idle = tally_of(problem, outputs, rules, sample), torch.ones(R, dtype=torch.bool, device=x.device)
    for rows, band in _routed(padded_rows(ids, experts, end, R, block), x, top_k, w, rules, promises_exact(problem)):
        idle[rows] = False
        if weights is not None:
            band = _weighed(band, weights.reshape(-1, 1)[rows].double(), rules, x.dtype)
        tally.visit(rows, band)
    rest = idle.nonzero().flatten()
    tally.visit(rest, exactly(torch.zeros(len(rest), w.N, device=x.device)))
    return [tally]


def _weighed(band: Band, weight: torch.Tensor, rules: Contract, dtype: torch.dtype) -> Band:
    """Multiply by router weights as GEMM2's epilogue does: in fp32 before the store, or in D after it."""
    if rules.router_weight == "gemm2_dtype":
        return weigh_band(store(band, rules, dtype), round_in_fp64(weight, dtype))
    return weigh_band(band, weight)


def _routed(
    spans: Iterable[tuple[int, torch.Tensor]], x: torch.Tensor, top_k: int, w: Int4Weight, rules: Contract, exact: bool
) -> Iterable[tuple[torch.Tensor, Band]]:
    """Yield (output rows, their Band) of a GEMM whose row r reads x[r // top_k] and its expert's weights."""
    weights = expert_weights(w, rules, x.dtype)
    for e, of_e in spans:
        of_expert = weights(e)
        for rows in of_e.split(ROWS_AT_ONCE):
            yield rows, dot_band(exactly(x[rows // top_k]), of_expert, rules, x.dtype, exact=exact)


def judge_unpermute(problem: Problem, outputs: Output, rules: Contract, sample: int = SAMPLE) -> list[Tally]:
    """Judge moe_unpermute: the weighted sum over slots."""
    y, weights, inv = problem.args["y"], problem.args["topk_weights"], problem.args["inv"]
    rows_of = inv.long().reshape(weights.shape)

    def band(tokens: torch.Tensor) -> Band:
        terms = y[rows_of[tokens]].double() * weights[tokens].double()[:, :, None]
        return sum_band(Band(terms, terms), rules, y.dtype, multiplied=True, exact=promises_exact(problem))

    return _in_pieces(tally_of(problem, outputs, rules, sample), band)


def judge_shared(problem: Problem, outputs: Output, rules: Contract, sample: int = SAMPLE) -> list[Tally]:
    """Judge shared_expert: each stage that the kernel stored, from the last one that it stored before."""
    tallies = {name: tally_of(problem, outputs, rules, sample, name) for name in STAGES if name in outputs}

    def visit(stage: str, rows: torch.Tensor, band: Band) -> None:
        if stage in tallies:
            tallies[stage].visit(rows, band)

    given = {name: outputs[name] for name in STAGES[:-1] if name in outputs}
    x, up, down, gate = problem.args.values()
    shared_expert_bands(x, up, down, gate, rules, given=given, visit=visit, exact=promises_exact(problem))
    return list(tallies.values())


def judge_tiny(problem: Problem, outputs: Output, rules: Contract, sample: int = SAMPLE) -> list[Tally]:
    """Judge tiny_dot."""
    x, w, sigmoid = problem.args.values()
    exact = promises_exact(problem)
    tally = tally_of(problem, outputs, rules, sample)
    return _in_pieces(tally, lambda rows: tiny_dot_band(x[rows], w, rules, sigmoid=sigmoid, exact=exact))


def judge_lm_head(problem: Problem, outputs: Output, rules: Contract, sample: int = SAMPLE) -> list[Tally]:
    """Judge int8_lm_head, some vocabulary rows at a time."""
    x, codes, scale, bias = (problem.args[name] for name in ("x", "codes", "scale", "bias"))
    V, K = codes.shape
    if rules.weight == "exact":  # q*s needs 32 bits and its product 24 + 8: two roundings, as many as hoisting has
        rules = replace(rules, weight="hoisted")
    tally = tally_of(problem, outputs, rules, sample)
    for v in torch.arange(V, device=x.device).split(max(1, WEIGHTS_AT_ONCE // K)):
        b = None if bias is None else bias[v]
        weights = int8_dot_weights(codes[v], scale[v], rules, x.dtype, b)
        fused = weights.operands is not None and weights.operands.bias is not None
        for rows in torch.arange(x.shape[0], device=x.device).split(ROWS_AT_ONCE):
            band = dot_band(exactly(x[rows]), weights, rules, x.dtype, exact=promises_exact(problem))
            tally.visit(rows, band if b is None or fused else add_band(band, b), int(v[0]))
    return [tally]


def _in_pieces(tally: Tally, band: Callable[[torch.Tensor], Band]) -> list[Tally]:
    for rows in torch.arange(tally.got.shape[0], device=tally.got.device).split(ROWS_AT_ONCE):
        tally.visit(rows, band(rows))
    return [tally]


FLOAT_JUDGES: dict[str, Judge] = {
    "unpack_int4": judge_unpack,
    "dequantize_int4": judge_dequantize,
    "int4_linear": judge_linear,
    "grouped_gemm": judge_grouped,
    "padded_gemm": judge_padded,
    "silu_and_mul": judge_silu,
    "moe_unpermute": judge_unpermute,
    "moe_w4a16": judge_moe,
    "int8_lm_head": judge_lm_head,
    "shared_expert": judge_shared,
    "tiny_dot": judge_tiny,
}
