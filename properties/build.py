"""Builders for the ops that read a quantized weight: from a case to the arguments of its op."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from moeracle.ref.dispatch import moe_align_block_size, moe_permute

from . import data, elementwise
from .case import Case
from .data import PLAIN, activations, bell, int8_scales, power_scales, scales, tiny
from .exact import GATE_EXPONENT, INSIDE, GemmPlan, MoePlan, plan_gemm, plan_moe
from .generator import FORMATS, Bits, Format, Stream, integer_bits, to_tensor
from .inputs import DYADIC_STEPS, EXACT, expert_map, local_experts, rows_of, strided
from .problem import Problem
from .routings import draw_topk
from .weights import WeightPlan, int4_weight

STRUCTURE = {"cancelling": "mirror", "codes16": "stamp", "stagnation": "rows"}


def variant_of(case: Case) -> int:
    """What `subnormal` makes subnormal in this case: its seed decides."""
    if case.data != "subnormal":
        return PLAIN
    if case.op == "int8_lm_head" and case.dtype == "fp16" and case.seed % 3 == data.SCALES_TINY:
        return data.X_TINY  # fp32 scales so small that fp16 could not make up for them
    return case.seed % 3


def gemm_plan(case: Case) -> GemmPlan | None:
    """The exact plan of a case with one GEMM, None for inexact recipes."""
    if case.data not in EXACT:
        return None
    if case.op == "int8_lm_head":
        return plan_gemm(case.data, case.K, case.seed, largest=128, hoisted=384)
    return plan_gemm(case.data, case.K, case.seed)


def gemm_weight_plan(case: Case, K: int, plan: GemmPlan | None, variant: int) -> WeightPlan:
    """How the int4 weight of one GEMM is made."""
    fmt = FORMATS[case.dtype]
    if plan is not None:
        return WeightPlan(lambda shape, stream: power_scales(stream, fmt, shape, plan.exponent, 2), plan.window)
    of_recipe = lambda shape, stream: scales(case.data, fmt, shape, K, stream, variant)
    return WeightPlan(of_recipe, structure=STRUCTURE.get(case.data, ""))


def bias_of(case: Case, N: int, plan: GemmPlan | None) -> torch.Tensor | None:
    """[N] in the case's dtype under +bias, else None; whole units of an exact plan's sums."""
    if "bias" not in case.flags:
        return None
    fmt, stream = FORMATS[case.dtype], Stream(case.seed, "bias")
    if plan is None:
        return to_tensor(bell(stream, fmt, (N,)), fmt)
    return to_tensor(integer_bits(stream.below((N,), 255) - 127 * plan.signed, plan.exponent, fmt), fmt)


def build_linear(case: Case) -> Problem:
    """int4_linear: x [T, K], w [N, K], bias [N] or None."""
    plan, variant = gemm_plan(case), variant_of(case)
    x = activations(case.data, FORMATS[case.dtype], case.T, case.K, case.seed, plan=plan, variant=variant)
    w = int4_weight(case, "w", None, gemm_weight_plan(case, case.K, plan, variant))
    bias = bias_of(case, case.N, plan)
    exact = plan.exact if plan else case.data == "onehot" and bias is None
    return Problem(case, {"x": rows_of(x, case), "w": w, "bias": bias}, exact=exact)


def _routed_gemm(case: Case) -> tuple[dict[str, object], torch.Tensor, torch.Tensor, bool]:
    """x and w of a routed GEMM, topk_ids, topk_weights, and whether its sums are exact."""
    plan, variant = gemm_plan(case), variant_of(case)
    x = activations(case.data, FORMATS[case.dtype], case.T, case.K, case.seed, plan=plan, variant=variant)
    w = int4_weight(case, "w", local_experts(case), gemm_weight_plan(case, case.K, plan, variant))
    steps = DYADIC_STEPS if plan else 0
    ids, weights = draw_topk(case.routing, case.T, case.E, case.k, case.seed, dyadic_steps=steps)
    exact = plan.exact if plan else case.data == "onehot" and "weight" not in case.flags
    return {"x": to_tensor(x, FORMATS[case.dtype]), "w": w}, ids, weights, exact


def build_grouped(case: Case) -> Problem:
    """grouped_gemm: x [R, K] in expert order, w [E, N, K], expert_offsets int64 [E+1]."""
    args, ids, _, exact = _routed_gemm(case)
    mapping = expert_map(case)
    x, offsets, inv = moe_permute(args["x"], ids, case.E, mapping)  # type: ignore[arg-type]
    args["x"], args["expert_offsets"] = strided(x, case), offsets
    return Problem(case, args, {"topk_ids": ids, "inv": inv, "expert_map": mapping}, exact)


def build_padded(case: Case) -> Problem:
    """padded_gemm: x [T, K], w, the three tensors of moe_align_block_size, topk_weights [T, k] or None, top_k."""
    args, ids, weights, exact = _routed_gemm(case)
    mapping = expert_map(case)
    sorted_ids, expert_ids, end = moe_align_block_size(ids, case.B, case.E, mapping)
    args["x"] = strided(args["x"], case)  # type: ignore[arg-type]
    args |= {"sorted_token_ids": sorted_ids, "expert_ids": expert_ids, "num_tokens_post_padded": end}
    args |= {"topk_weights": weights if "weight" in case.flags else None, "top_k": case.k}
    return Problem(case, args, {"topk_ids": ids, "block_size": case.B, "expert_map": mapping}, exact)


def build_moe(case: Case) -> Problem:
    """moe_w4a16: x [T, H], w13 [E, 2I, H], w2 [E, H, I], topk_weights and topk_ids [T, k]."""
    x, plan13, plan2, exact = _layer(case, case.k)
    w13, w2 = int4_weight(case, "w13", case.E, plan13), int4_weight(case, "w2", case.E, plan2)
    steps = DYADIC_STEPS * (case.data == "onehot2")
    if case.data in EXACT:
        steps = plan_moe(case.data, case.H, case.I, case.k, case.zero_layout is None).weight_steps
    ids, weights = draw_topk(case.routing, case.T, case.E, case.k, case.seed, dyadic_steps=steps)
    args = {"x": rows_of(x, case), "w13": w13, "w2": w2, "topk_weights": weights, "topk_ids": ids}
    return Problem(case, args, exact=exact)


def _layer(case: Case, k: int) -> tuple[Bits, WeightPlan, WeightPlan, bool]:
    """x of a layer with k slots a token, how its two weights are made, and whether its sums are exact."""
    fmt, variant = FORMATS[case.dtype], variant_of(case)
    if case.data in EXACT:
        plan = plan_moe(case.data, case.H, case.I, k, case.zero_layout is None)
        chunk = -(-case.H // plan.nonzeros)
        sparse = GemmPlan(plan.exact, 1, max(2, chunk), 0, plan.window13, plan.signed)
        x = activations(case.data, fmt, case.T, case.H, case.seed, plan=sparse)
        return x, *_exact_layer(case, plan), plan.exact
    outputs_tiny = variant == data.OUTPUTS_TINY  # then w2 is what makes them so
    x = activations(case.data, fmt, case.T, case.H, case.seed, variant=PLAIN if outputs_tiny else variant)
    plan13 = gemm_weight_plan(case, case.H, None, PLAIN if outputs_tiny else variant)
    selects = case.data == "onehot2"
    if selects:  # gates 128 or 0, ups 2^-7 and -2^-7: a is 1 or -1 in one column
        plan13 = WeightPlan(lambda shape, stream: _halves(fmt, shape, GATE_EXPONENT, -GATE_EXPONENT), INSIDE, "select")
    second = case.data if case.data in ("wide", "codes16") or outputs_tiny else "normal"
    plan2 = WeightPlan(
        lambda shape, stream: scales(second, fmt, shape, case.I, stream, variant),
        structure="stamp" if second == "codes16" else "",
    )
    return x, plan13, plan2, selects


def build_shared(case: Case) -> Problem:
    """shared_expert: x [T, H], w_gate_up [2I, H], w_down [H, I], gate_weight [H] or None.

    The weights are those of an MoE layer with one expert and one slot. Where sums are exact, gate weights are multiples
    of 128: with whole x the dot is one too, and its sigmoid 0, 1/2 or 1, whoever computes it.
    """
    x, plan13, plan2, exact = _layer(case, 1)
    gate, fmt = None, FORMATS[case.dtype]
    if "gate" in case.flags:
        stream = Stream(case.seed, "gate")
        bits = (
            integer_bits(stream.below((case.H,), 3) - 1, 7, fmt)
            if exact
            else bell(stream, fmt, (case.H,), -(case.H.bit_length() // 2))
        )
        gate = to_tensor(bits, fmt)
    up, down = int4_weight(case, "w_gate_up", None, plan13), int4_weight(case, "w_down", None, plan2)
    return Problem(case, {"x": rows_of(x, case), "w_gate_up": up, "w_down": down, "gate_weight": gate}, exact=exact)


def build_tiny(case: Case) -> Problem:
    """tiny_dot: x [T, K], w [K], sigmoid."""
    fmt, plan, variant = FORMATS[case.dtype], gemm_plan(case), variant_of(case)
    variant = data.X_TINY if variant == data.SCALES_TINY else variant  # there are no scales
    x = activations(case.data, fmt, case.T, case.K, case.seed, plan=plan, variant=variant)
    stream = Stream(case.seed, "w")
    if plan is not None:
        low = 0 if case.data == "samesign" else -15
        w = integer_bits(low + stream.below((case.K,), 16 - low), plan.exponent, fmt)
    elif case.data == "stagnation":
        w = np.broadcast_to(data.power_bits(0, fmt), (case.K,)).copy()
    elif case.data == "cancelling":  # as x: neighbours cancel, or the halves do
        half = case.K // 2
        w = bell(stream, fmt, (case.K,))
        first, second = (
            (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if case.K % 16 else (slice(half), slice(half, None))
        )
        w[second] = w[first]
    elif variant == data.OUTPUTS_TINY:
        w = tiny(stream, fmt, (case.K,), bits=3)
    else:
        w = bell(stream, fmt, (case.K,), -(case.K.bit_length() // 2))
    args = {"x": rows_of(x, case), "w": to_tensor(w, fmt), "sigmoid": "sigmoid" in case.flags}
    return Problem(case, args, exact=(plan is not None and plan.exact) or case.data == "onehot")


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


def build_weight(case: Case) -> Problem:
    """unpack_int4, dequantize_int4: w, with experts if the case has E."""
    fmt = FORMATS[case.dtype]
    variant = 1 + case.seed % 2 if case.data == "subnormal" else PLAIN  # only scales can be subnormal here
    if case.data == "integers":
        plan = WeightPlan(lambda shape, stream: power_scales(stream, fmt, shape, 0, 2))
    else:
        plan = gemm_weight_plan(case, case.K, None, variant)
    return Problem(case, {"w": int4_weight(case, "w", case.sizes.get("E"), plan)}, exact=True)


def build_lm_head(case: Case) -> Problem:
    """int8_lm_head: x [T, K], codes int8 [V, K], scale fp32 [V] or [V, K/G], bias [V] or None."""
    fmt, fp32, plan, variant = FORMATS[case.dtype], FORMATS["fp32"], gemm_plan(case), variant_of(case)
    V, K, groups = case.V, case.K, 1 if case.G == -1 else case.K // case.G
    x = activations(case.data, fmt, case.T, K, case.seed, plan=plan, variant=variant)
    codes = Stream(case.seed, "codes").bits((V, K), 8).view(np.int8).copy()
    if case.data == "samesign":
        codes &= 127
    elif case.data == "cancelling":
        half = K // 2
        first, second = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if K % 16 else (slice(half), slice(half, K))
        codes[:, second] = codes[:, first]
    elif case.data == "stagnation":
        codes[:] = np.left_shift(1, Stream(case.seed, "codes.row").below((V, 1), 7))
    stream = Stream(case.seed, "scale")
    if plan is not None:
        scale = to_tensor(power_scales(stream, fp32, (V, groups), plan.exponent, 2), fp32)
    else:
        scale = to_tensor(int8_scales(case.data, fmt, (V, groups), K, stream, variant), fp32)
    args = {"x": rows_of(x, case), "codes": torch.from_numpy(codes), "scale": scale[:, 0] if case.G == -1 else scale}
    args["scale"] = args["scale"].contiguous()
    bias = bias_of(case, V, plan)
    return Problem(case, {**args, "bias": bias}, {"group_size": case.G}, plan is not None and plan.exact)


BUILDERS: dict[str, Callable[[Case], Problem]] = {
    "unpack_int4": build_weight,
    "dequantize_int4": build_weight,
    "int4_linear": build_linear,
    "grouped_gemm": build_grouped,
    "padded_gemm": build_padded,
    "moe_w4a16": build_moe,
    "int8_lm_head": build_lm_head,
    "shared_expert": build_shared,
    "tiny_dot": build_tiny,
    "topk_softmax": elementwise.build_topk,
    "moe_align_block_size": elementwise.build_align,
    "moe_permute": elementwise.build_permute,
    "moe_unpermute": elementwise.build_unpermute,
    "silu_and_mul": elementwise.build_silu,
    "quantize_int8": elementwise.build_quantize,
}
