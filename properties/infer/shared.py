"""What only a whole shared expert tells: silu, which stages are stored, and where its gate rounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from moeracle.ref.activation import ACTIVATIONS, Activation
from moeracle.ref.contracts.contract import STAGES, Contract
from moeracle.ref.rounding import round_in_fp64

from ..common.generator import Stream
from .drive import Dots
from .found import UNDECIDED, Inference
from .gate import GateDots, find_gate
from .layer import CLEAR, Formed, combinations_of, emulate, fp32, share_of, sparse_layer
from .report import note, others

GATES = ("fused", "unfused", "fp32")


def find_shared(dots: Dots, rules: Contract, opaque: bool, result: Inference) -> Contract:
    """Return the rules with silu, stores and gate, from one call with a gate.

    Args:
        dots: how the kernel's GEMM1 is driven.
        rules: with the GEMMs' fields; the weight path is taken from here if `opaque`.
        opaque: no stage shows a GEMM's sums as they are.
    """
    as_layer, gate = _sparse(dots)
    x = as_layer["x"]
    weights = {name: as_layer[other].expert(0) for name, other in (("w_gate_up", "w13"), ("w_down", "w2"))}
    got = dots.calls.run({"x": x, **weights, "gate_weight": gate})
    returned = tuple(stage for stage in STAGES if stage in got)
    formed = Formed(as_layer, dots.dtype)
    scored = []
    for activation in ACTIVATIONS:
        for known in combinations_of(returned, None if opaque else rules):
            if (known.router_weight, known.topk_sum) != ("unpermute", "fp32"):
                continue
            other = replace(known, activation=Activation.parse(activation))
            stages = emulate(as_layer, other, dots, formed)
            for way in GATES:
                here = replace(other, gate=way)
                out = {"out": _gated(stages["y"], x, gate, here, dots.dtype)}
                scored.append((share_of(got, {**stages, **out}), here))
        top = max(share for share, _ in scored)
        if top >= CLEAR:
            break
    best = [c for share, c in scored if share >= top - 1e-12]
    first = min(best, key=lambda c: (-len(c.stores), GATES.index(c.gate)))
    asked = f"a sparse layer predicted ({top:.2%} of elements)"
    if top < CLEAR:
        result.why_not = result.why_not or f"layer: no combination of roundings predicts its stages ({top:.2%})"
    for name in ("silu", "activation", "gate", "stores"):
        note(result, name, getattr(first, name), asked, same=others(best, first, name))
    if opaque:
        result.notes.append("no stage shows a GEMM's sums as they are: their order and accumulator were not asked")
    rules = replace(rules, silu=first.silu, activation=first.activation, gate=first.gate, stores=first.stores,
                    weight=first.weight, weight_rounding=first.weight_rounding,
                    store_rounding=first.store_rounding)  # fmt: skip
    if opaque or rules.ftz or not rules.deterministic or rules.weight == "hoisted":
        note(result, "gate_schedule", None, "not asked", UNDECIDED)
        return rules
    return find_gate(GateDots(dots.calls, dots.site, "out"), rules, result)


def _sparse(dots: Dots) -> tuple[dict[str, Any], torch.Tensor]:
    """Return a sparse layer of one expert as moe_w4a16 has it, and gate weights [H] of the shared expert."""
    case, D = dots.site.case, dots.dtype
    args = sparse_layer(dots, {**case.sizes, "E": 1, "k": 1, "T": min(dots.limit, 128)})
    args["topk_weights"] = torch.ones_like(args["topk_weights"])
    # A rounded dot shows most in a small sigmoid, which is nearly exp(dot).
    values = torch.from_numpy(Stream(1, "infer.gate").below((case.H,), 1 << 10)).double() / 256 + 1
    return args, -values.to(D)


def _gated(y: torch.Tensor, x: torch.Tensor, gate: torch.Tensor, rules: Contract, dtype: torch.dtype) -> torch.Tensor:
    to_d = lambda value: round_in_fp64(value, dtype, rules.rounding("out", dtype))
    dot = fp32((x.double() * gate.double()).sum(1, keepdim=True))  # one product
    s = fp32(torch.sigmoid(to_d(dot) if rules.gate == "unfused" else dot))
    if rules.gate != "fp32":
        y, s = to_d(y), to_d(s)
    return to_d(fp32(y * s))
