"""Parts of problems that several ops share: exact plans, weights of one GEMM, inputs of a routed GEMM or a layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from moeracle.ref.weights.weight import Int4Weight

from ..common.generator import FORMATS, Bits, Format, Stream, integer_bits, to_tensor
from . import data
from .case import Case
from .data import PLAIN, activations, bell, power_scales, scales
from .exact import ALL_CODES, GATE_EXPONENT, INSIDE, GemmPlan, MoePlan, plan_gemm, plan_moe
from .inputs import DYADIC_STEPS, EXACT
from .routings import draw_topk
from .weights import WeightPlan, int4_weight

STRUCTURE = {"cancelling": "mirror", "codes16": "stamp", "stagnation": "rows"}


def variant_of(case: Case) -> int:
    """What `subnormal` makes subnormal in this case: its seed decides."""
    if case.data != "subnormal":
        return PLAIN
    return case.seed % 3


def gemm_plan(case: Case) -> GemmPlan | None:
    """The exact plan of a case with one GEMM, None for inexact recipes."""
    if case.data not in EXACT:
        return None
    return plan_gemm(case.data, case.K, case.seed, case.bits)


def gemm_weight_plan(case: Case, K: int, plan: GemmPlan | None, variant: int) -> WeightPlan:
    """How the int4 weight of one GEMM is made."""
    fmt = FORMATS[case.dtype]
    if plan is not None:
        return WeightPlan(lambda shape, stream: power_scales(stream, fmt, shape, plan.exponent, 2), plan.window)

    def of_recipe(shape: tuple[int, ...], stream: Stream) -> Bits:
        return scales(case.data, fmt, shape, K, stream, variant, case.bits)

    return WeightPlan(of_recipe, ALL_CODES[case.bits], STRUCTURE.get(case.data, ""))


def bias_of(case: Case, N: int, plan: GemmPlan | None) -> torch.Tensor | None:
    """[N] in the case's dtype under +bias, else None; whole units of an exact plan's sums."""
    return _bias(case, "bias", (N,), plan) if "bias" in case.flags else None


def _bias(case: Case, name: str, shape: tuple[int, ...], plan: GemmPlan | None) -> torch.Tensor:
    fmt, stream = FORMATS[case.dtype], Stream(case.seed, name)
    if plan is None:
        return to_tensor(bell(stream, fmt, shape), fmt)
    return to_tensor(integer_bits(stream.below(shape, 255) - 127 * plan.signed, plan.exponent, fmt), fmt)


def with_bias(case: Case, name: str, w: Int4Weight, plan: GemmPlan | None = None) -> Int4Weight:
    """The experts' weight with a bias [E, N] in the case's dtype under +bias; whole units of an exact plan's sums."""
    return replace(w, bias=_bias(case, f"{name}.bias", w.shape[:-1], plan)) if "bias" in case.flags else w


def routed_gemm(case: Case) -> tuple[dict[str, object], torch.Tensor, torch.Tensor, bool]:
    """x and w of a routed GEMM, topk_ids, topk_weights, and whether its sums are exact."""
    plan, variant = gemm_plan(case), variant_of(case)
    fmt = FORMATS[case.dtype]
    x = activations(case.data, fmt, case.T, case.K, case.seed, plan=plan, variant=variant, bits=case.bits)
    w = int4_weight(case, "w", case.local_experts, gemm_weight_plan(case, case.K, plan, variant))
    w = with_bias(case, "w", w, plan)
    steps = DYADIC_STEPS if plan else 0
    ids, weights = draw_topk(case.routing, case.T, case.E, case.k, case.seed, dyadic_steps=steps)
    exact = plan.exact if plan else case.data == "onehot" and case.flags.isdisjoint(("weight", "bias"))
    return {"x": to_tensor(x, fmt), "w": w}, ids, weights, exact


def layer_inputs(case: Case, k: int) -> tuple[Bits, WeightPlan, WeightPlan, bool]:
    """x of a layer with k slots a token, how its two weights are made, and whether its sums are exact."""
    fmt, variant = FORMATS[case.dtype], variant_of(case)
    if case.data in EXACT:
        plan = plan_moe(case.data, case.H, case.I, k, case.zero_layout is None, case.bits)
        chunk = -(-case.H // plan.nonzeros)
        sparse = GemmPlan(plan.exact, 1, max(2, chunk), 0, plan.window13, plan.signed)
        x = activations(case.data, fmt, case.T, case.H, case.seed, plan=sparse)
        return x, *_exact_layer(case, plan), plan.exact
    outputs_tiny = variant == data.OUTPUTS_TINY  # then w2 is what makes them so
    of_x = PLAIN if outputs_tiny else variant
    x = activations(case.data, fmt, case.T, case.H, case.seed, variant=of_x, bits=case.bits)
    plan13 = gemm_weight_plan(case, case.H, None, of_x)
    selects = case.data == "onehot2"
    if selects:  # gates 128 or 0, ups 2^-7 and -2^-7: a is 1 or -1 in one column; without ups 128
        structure = "select_gate" if "ungated" in case.flags else "select"
        up = GATE_EXPONENT if "ungated" in case.flags else -GATE_EXPONENT
        plan13 = WeightPlan(lambda shape, stream: _halves(fmt, shape, GATE_EXPONENT, up), INSIDE[case.bits], structure)
    second = case.data if case.data in ("wide", "codes16") or outputs_tiny else "normal"
    plan2 = WeightPlan(
        lambda shape, stream: scales(second, fmt, shape, case.I, stream, variant, case.bits),
        ALL_CODES[case.bits],
        "stamp" if second == "codes16" else "",
    )
    return x, plan13, plan2, selects


def _halves(fmt: Format, shape: tuple[int, ...], gate: int, up: int) -> Bits:
    """Scales [E, 2I, K/G] of 2^gate and 2^up."""
    bits: Bits = np.empty(shape, fmt.uint)
    bits[:, : shape[1] // 2], bits[:, shape[1] // 2 :] = data.power_bits(gate, fmt), data.power_bits(up, fmt)
    return bits


def _exact_layer(case: Case, plan: MoePlan) -> tuple[WeightPlan, WeightPlan]:
    """Gate rows scaled by 128, up rows and w2 by powers of two."""
    fmt, I = FORMATS[case.dtype], case.I

    def scales13(shape: tuple[int, ...], stream: Stream) -> Bits:
        bits = power_scales(stream, fmt, shape, plan.up_exponent, plan.spread).copy()
        bits[:, :I] = data.power_bits(7, fmt)
        return bits

    scales2 = lambda shape, stream: power_scales(stream, fmt, shape, plan.down_exponent, plan.spread)
    return WeightPlan(scales13, plan.window13), WeightPlan(scales2, plan.window2)


def rows_of_values(case: Case, rows: int) -> Bits:
    """Return [rows, K] values of the case's recipe for an op that moves or sums rows."""
    plan = None
    if case.data in EXACT:
        plan = GemmPlan(True, 127, 1, 0, ALL_CODES[4], signed=case.data == "integers")
    recipe = "normal" if case.data == "cancelling" else case.data
    return activations(recipe, FORMATS[case.dtype], rows, case.K, case.seed, plan=plan, variant=data.X_TINY)
