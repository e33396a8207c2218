"""int8_lm_head: the output projection with int8 weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from moeracle.ref.band import add_band, exactly
from moeracle.ref.contract import Contract
from moeracle.ref.interval import dot_band
from moeracle.ref.lm_head import int8_lm_head

from ..cases.record import Piece, Tensors
from ..golden.derive import biased
from ..golden.rational import dots, nearest, scaled, scaled_floats
from ..judge.floats import all_rows, pieces
from ..judge.int8 import int8_dot_weights
from ..optable import GEMM_DATA, Argument, Result
from ..problem import Problem
from .families import OneGemm, rounded

WEIGHTS_AT_ONCE = 1 << 20  # int8 weights held in fp64 together: a whole vocabulary would take gigabytes


class Int8LmHead(OneGemm):
    """What the harness knows of int8_lm_head."""

    name = "int8_lm_head"
    summary = "out[t, v] = sum over groups of scale[v, g] * (x[t] . codes[v]) + bias[v]."
    arguments = (
        Argument("x", "D [T, K]", "Activations."),
        Argument("codes", "int8 [V, K]", "Codes -128..127."),
        Argument("scale", "float32 [V] or [V, K/G]", "One scale a row, or one a group."),
        Argument("bias", "D [V]", "Added to the sum before the store.", True),
    )
    results = (Result("out", "D [T, V]", "Logits.", ("token", "v")),)
    dims = ("T", "V", "K", "G")
    data = tuple(name for name in GEMM_DATA if name != "codes16")
    data_flags = ("bias", "strided")
    default_contract = "int8_lm_head"

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {"out": (problem.args["x"].shape[0], problem.args["codes"].shape[0])}

    def as_judged(self, rules: Contract) -> Contract:
        """q*s needs 32 bits and its product 24 + 8: two roundings, as many as hoisting has."""
        return replace(rules, weight="hoisted") if rules.weight == "exact" else rules

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        """Dot products plus bias, some vocabulary rows at a time."""
        x, codes, scale, bias = problem.args.values()
        V, K = codes.shape
        for v in torch.arange(V, device=x.device).split(max(1, WEIGHTS_AT_ONCE // K)):
            b = None if bias is None else bias[v]
            weights = int8_dot_weights(codes[v], scale[v], rules, x.dtype, b)
            fused = weights.operands is not None and weights.operands.bias is not None
            for rows in pieces(all_rows(x)):
                band = dot_band(exactly(x[rows]), weights, rules, x.dtype, exact=exact)
                yield "out", rows, int(v[0]), band if b is None or fused else add_band(band, b)

    def largest_code(self, rules: Contract) -> int:
        return 128

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        return rounded({"out": int8_lm_head(*problem.args.values(), dtype=dtype)}, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Dot products with q*s, plus bias in fp32, stored."""
        x, codes, scale, bias = problem.args.values()
        V, K = codes.shape
        groups = scale.reshape(V, -1).double().repeat_interleave(K // (scale.numel() // V), 1)
        values = codes.double() * groups  # 8 + 24 bits
        if contract.weight == "cast":
            flat = [nearest(v, x.dtype, contract.weight_rounding) for v in values.flatten().tolist()]
            w = scaled_floats(flat, (V, K))
        else:
            w = scaled(values)
        return {"out": biased(dots(scaled(x), w), bias, contract, x.dtype)}

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
