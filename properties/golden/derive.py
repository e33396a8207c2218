"""What a kernel stores that sums exactly and rounds correctly wherever its contract rounds: one value an element.

    dot products and top-k sums     exact, in integers
    silu, times up, times the router weight, plus bias    each correctly rounded to fp32, in the contract's order
    weights cast to D, and every store                    correctly rounded to D, in the contract's direction

Rounding is monotone, so this value lies in every legal set, whatever order of accumulation the contract allows. Weights
are unpacked and rows routed by `moeracle.ref`: where that changes, these values do, which is what golden data are for.
A sum that is zero is +0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.dispatch import moe_align_block_size, moe_permute
from moeracle.ref.gemm import expert_spans, padded_rows
from moeracle.ref.weight import Int4Weight

from ..problem import Problem
from .rational import Scaled, as_tensor, dots, nearest, scaled, scaled_floats
from .transcendental import softmax_fp32

Derived = dict[str, torch.Tensor]
Rounding = Callable[[Fraction | float], float]

# The results of the ops that return a tuple, in its order; every other op returns one tensor, "out".
RESULTS: dict[str, tuple[str, ...]] = {
    "topk_softmax": ("weights", "ids"),
    "moe_align_block_size": ("sorted_token_ids", "expert_ids", "num_tokens_post_padded"),
    "moe_permute": ("x_permuted", "expert_offsets", "inv"),
    "quantize_int8": ("codes", "scale"),
}


def to_fp32(value: Fraction | float) -> float:
    """Round once to fp32, to nearest."""
    return nearest(value, torch.float32)


def store(contract: Contract, dtype: torch.dtype) -> Rounding:
    """Return the rounding of the contract's stores."""
    return functools.partial(nearest, dtype=dtype, mode=contract.store_rounding)


def int4_values(w: Int4Weight, contract: Contract, dtype: torch.dtype) -> Scaled:
    """Return the weights [N, K] as the contract's dot products see them: (u-z)*s exactly, or rounded to D ("cast").

    Args:
        w: one matrix.
    """
    codes, zeros = w.codes().tolist(), w.zeros()
    z = [[8] * (w.K // w.G)] * w.N if zeros is None else zeros.tolist()
    s = w.scale.double().tolist()

    @functools.cache
    def value(code: int, scale: float) -> float:
        exact = code * scale  # at most 4 + 24 bits: exact in fp64
        return nearest(exact, dtype, contract.weight_rounding) if contract.weight == "cast" else exact

    flat = [value(u - z[n][k // w.G], s[n][k // w.G]) for n, row in enumerate(codes) for k, u in enumerate(row)]
    return scaled_floats(flat, (w.N, w.K))


def _float_rows(rows: Iterable[Iterable[Fraction]], rounding: Rounding) -> list[list[float]]:
    return [[rounding(value) for value in row] for row in rows]


def derive_unpack(problem: Problem, contract: Contract) -> Derived:
    """Codes, as they are."""
    return {"out": problem.args["w"].codes()}


def derive_dequantize(problem: Problem, contract: Contract) -> Derived:
    """(u-z)*s rounded once to D, in the direction of the weight's rounding."""
    w, dtype = problem.args["w"], problem.case.torch_dtype
    assert dtype is not None
    matrices = [w] if w.E is None else [w.expert(e) for e in range(w.E)]
    exactly = replace(contract.unscheduled, weight="exact")
    exact = [int4_values(m, exactly, dtype).fractions() for m in matrices]
    rows = [row for of_matrix in exact for row in of_matrix]
    rounding = functools.partial(nearest, dtype=dtype, mode=contract.weight_rounding)
    return {"out": as_tensor(_float_rows(rows, rounding), w.K, dtype).reshape(w.shape)}


def derive_linear(problem: Problem, contract: Contract) -> Derived:
    """Dot products, plus bias in fp32, stored."""
    x, w, bias = problem.args["x"], problem.args["w"], problem.args.get("bias")
    return {"out": _biased(dots(scaled(x), int4_values(w, contract, x.dtype)), bias, contract, x.dtype)}


def _biased(sums: Scaled, bias: torch.Tensor | None, contract: Contract, dtype: torch.dtype) -> torch.Tensor:
    keep, N = store(contract, dtype), sums.whole.shape[1]
    if bias is None:
        return as_tensor(_float_rows(sums.fractions(), keep), N, dtype)
    add = [Fraction(b) for b in bias.double().tolist()]
    rows = [[keep(to_fp32(y + b)) for y, b in zip(row, add, strict=True)] for row in sums.fractions()]
    return as_tensor(rows, N, dtype)


def derive_grouped(problem: Problem, contract: Contract) -> Derived:
    """Dot products of each expert's rows; rows of no expert are 0."""
    x, w, offsets = problem.args["x"], problem.args["w"], problem.args["expert_offsets"]
    out = torch.zeros(x.shape[0], w.N, dtype=x.dtype)
    for e, start, stop in expert_spans(offsets):
        sums = dots(scaled(x[start:stop]), int4_values(w.expert(e), contract, x.dtype))
        out[start:stop] = _biased(sums, None, contract, x.dtype)
    return {"out": out}


def derive_padded(problem: Problem, contract: Contract) -> Derived:
    """Dot products of gathered rows, times the router weight where there is one; rows of nobody are 0."""
    a = problem.args
    x, w, top_k, weights = a["x"], a["w"], a["top_k"], a["topk_weights"]
    R = x.shape[0] * top_k
    out = torch.zeros(R, w.N, dtype=x.dtype)
    spans = padded_rows(
        a["sorted_token_ids"], a["expert_ids"], a["num_tokens_post_padded"], R, problem.truth["block_size"]
    )
    for e, rows in spans:
        sums = dots(scaled(x[rows // top_k]), int4_values(w.expert(e), contract, x.dtype)).fractions()
        factors = None if weights is None else weights.reshape(-1)[rows].double().tolist()
        out[rows] = as_tensor(weighed(sums, factors, contract, x.dtype), w.N, x.dtype)
    return {"out": out}


def weighed(
    rows: list[list[Fraction]], factors: list[float] | None, contract: Contract, dtype: torch.dtype
) -> list[list[float]]:
    """Return GEMM2's stored rows: times the router weight in fp32 before the store, or in D after it.

    Args:
        rows: exact sums.
        factors: one router weight a row, or None.
    """
    keep = store(contract, dtype)
    if factors is None:
        return _float_rows(rows, keep)
    pairs = zip(rows, factors, strict=True)
    if contract.router_weight == "gemm2_dtype":
        in_d = [(row, Fraction(nearest(f, dtype))) for row, f in pairs]
        return [[keep(to_fp32(Fraction(keep(y)) * f)) for y in row] for row, f in in_d]
    return [[keep(to_fp32(y * Fraction(f))) for y in row] for row, f in pairs]


def derive_unpermute(problem: Problem, contract: Contract) -> Derived:
    """The weighted sum over slots."""
    y, weights, inv = problem.args["y"], problem.args["topk_weights"], problem.args["inv"]
    (T, k), H = weights.shape, y.shape[1]
    rows = scaled(y).fractions()
    w, of_slot = weights.double().tolist(), inv.reshape(T, k).tolist()
    out = [
        slot_sum([rows[r] for r in of_slot[t]], [Fraction(f) for f in w[t]], H, contract, y.dtype, True)
        for t in range(T)
    ]
    return {"out": as_tensor(out, H, y.dtype)}


def slot_sum(
    terms: list[list[Fraction]],
    factors: list[Fraction],
    H: int,
    contract: Contract,
    dtype: torch.dtype,
    multiplied: bool,
) -> list[float]:
    """Return one token's stored sum over its slots.

    Args:
        terms: a row of H values for each slot.
        factors: what each slot is multiplied by.
        multiplied: the factors are router weights, applied here; otherwise they only say which slots count.
    """
    keep = store(contract, dtype)
    if not contract.sum_in_dtype(len(terms)):
        return [keep(sum((row[n] * f for row, f in zip(terms, factors, strict=True)), Fraction(0))) for n in range(H)]
    total = [0.0] * H
    for row, f in zip(terms, factors, strict=True):
        for n in range(H):
            term = keep(to_fp32(row[n] * f)) if multiplied else row[n] * f
            total[n] = keep(Fraction(total[n]) + Fraction(term))
    return total


def derive_lm_head(problem: Problem, contract: Contract) -> Derived:
    """Dot products with q*s, plus bias in fp32, stored."""
    x, codes, scale, bias = (problem.args[name] for name in ("x", "codes", "scale", "bias"))
    V, K = codes.shape
    groups = scale.reshape(V, -1).double().repeat_interleave(K // (scale.numel() // V), 1)
    values = codes.double() * groups  # 8 + 24 bits
    if contract.weight == "cast":
        flat = [nearest(v, x.dtype, contract.weight_rounding) for v in values.flatten().tolist()]
        w = scaled_floats(flat, (V, K))
    else:
        w = scaled(values)
    return {"out": _biased(dots(scaled(x), w), bias, contract, x.dtype)}


def derive_topk(problem: Problem, contract: Contract) -> Derived:
    """Scores correctly rounded to fp32, the k largest, ties to the lowest id; renormalized with one more rounding."""
    logits, k, renormalize = (problem.args[name] for name in ("logits", "top_k", "renormalize"))
    weights, ids = [], []
    for row in logits.double().tolist():
        scores = softmax_fp32(row)
        chosen = sorted(range(len(row)), key=lambda e: (-scores[e], e))[:k]
        total = sum((Fraction(scores[e]) for e in chosen), Fraction(0)) if renormalize else Fraction(1)
        weights.append([to_fp32(Fraction(scores[e]) / total) if total else 0.0 for e in chosen])
        ids.append(chosen)
    return {"weights": as_tensor(weights, k, torch.float32), "ids": torch.tensor(ids).reshape(-1, k).int()}


def derive_quantize(problem: Problem, contract: Contract) -> Derived:
    """The scale amax/127 and the quotients w/scale correctly rounded to fp32, the codes to the nearest even integer."""
    w, G = problem.args["w"], problem.args["group_size"]
    K = w.shape[1]
    size = K if G == -1 else G
    floor = float(torch.tensor(1e-10, dtype=torch.float32))
    codes, scales = [], []
    for row in w.double().tolist():
        groups = [row[start : start + size] for start in range(0, K, size)]
        steps = [to_fp32(Fraction(max(floor, *map(abs, group))) / 127) for group in groups]
        quotients = [
            Fraction(to_fp32(Fraction(v) / Fraction(s))) for g, s in zip(groups, steps, strict=True) for v in g
        ]
        codes.append([max(-128, min(127, round(q))) for q in quotients])  # Fraction's round: ties to even
        scales.append(steps)
    scale = as_tensor(scales, K // size, torch.float32)
    return {"codes": torch.tensor(codes).to(torch.int8), "scale": scale[:, 0].contiguous() if G == -1 else scale}


def derive_align(problem: Problem, contract: Contract) -> Derived:
    """The reference's, in slot order."""
    args = [problem.args[name] for name in ("topk_ids", "block_size", "num_experts", "expert_map")]
    return dict(zip(RESULTS["moe_align_block_size"], moe_align_block_size(*args), strict=True))


def derive_permute(problem: Problem, contract: Contract) -> Derived:
    """The reference's, in slot order."""
    args = [problem.args[name] for name in ("x", "topk_ids", "num_experts", "expert_map")]
    return dict(zip(RESULTS["moe_permute"], moe_permute(*args), strict=True))
