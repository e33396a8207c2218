"""Every law finds the plausible fault that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import record_of
from moeracle.properties.common.verdict import Verdict
from moeracle.properties.laws.activation import law_beyond_the_limit
from moeracle.properties.simulate import simulated_kernel
from moeracle.ref import moe_align_block_size, moe_permute, quantize_int8
from moeracle.target.declaration import make_kernel
from support.legal_kernels import LEGAL
from support.promises import promising

linear, grouped, padded, moe = (LEGAL[op] for op in ("int4_linear", "grouped_gemm", "padded_gemm", "moe_w4a16"))
unpermute, silu, head = (LEGAL[op] for op in ("moe_unpermute", "silu_and_mul", "int8_lm_head"))
topk, unordered_align = LEGAL["topk_softmax"], LEGAL["moe_align_block_size"]
grouped_router = LEGAL["grouped_topk"]
shared, tiny = (simulated_kernel(op).fn for op in ("shared_expert", "tiny_dot"))

DENSE = "int4_linear/T7-N40-K96-G32/bf16/exllama-sym/-/normal/s3"
BY_ROWS = "int4_linear/T7-N16-K256-G32/bf16/exllama-sym/-/cancelling/s1"
GROUPED = "grouped_gemm/T9-E5-k2-N40-K96-G32/bf16/exllama-sym/uniform/normal/s3"
PADDED = "padded_gemm/T9-E5-k2-N40-K96-G32-B16/bf16/exllama-sym/uniform+weight/normal/s3"
MOE = "moe_w4a16/T9-E5-k2-H96-I64-G32/bf16/exllama-sym/uniform/normal/s3"
UNPERMUTE = "moe_unpermute/T9-E5-k3-K40/bf16/-/uniform/normal/s3"
SILU = "silu_and_mul/T9-I40/bf16/-/-/normal/s3"
HEAD = "int8_lm_head/T8-V40-K96-G32/bf16/-/-/normal/s3"
TOPK = "topk_softmax/T9-E8-k3/fp32/-/-/normal/s3"
GROUPED_TOPK = "grouped_topk/T9-E12-k3-g4-m2/fp32/-/-+scaled/normal/s3"
ALIGN = "moe_align_block_size/T9-E5-k2-B4/-/-/uniform/-/s3"
PERMUTE = "moe_permute/T9-E5-k2-K24/bf16/-/uniform/normal/s3"
QUANTIZE = "quantize_int8/V9-K96-G32/bf16/-/-/normal/s3"
UNPACK = "unpack_int4/E3-N40-K96-G32/bf16/exllama-sym/-/normal/s3"
SHARED = "shared_expert/T5-H64-I32-G32/bf16/exllama-sym/-/normal+gate/s3"
TINY = "tiny_dot/T9-K96/bf16/-/-/normal+sigmoid/s3"
DEQUANTIZE = "dequantize_int4/E3-N40-K96-G32/bf16/exllama-rdna/-/normal/s3"


def broken(text: str, fn: Callable[..., Any]) -> dict[str, Verdict]:
    """The laws that a kernel breaks on a case, with their verdicts."""
    case = Case.parse(text)
    zeros = ("sym", "rdna", "v1", "asym") if case.layout != "-" else ("sym",)
    kernel = make_kernel(fn, case.op, name="planted", zeros=zeros, dtypes=["bf16" if case.dtype == "-" else case.dtype])
    verdicts = [law(promising(kernel, law.promise), case) for law in record_of(case.op).laws]
    return {v.stage: v for v in verdicts if v is not None and not v.ok}


def swapped_bits(w: Any) -> torch.Tensor:  # code 7's sign smears over its neighbours
    return ((w.packed[..., None] >> torch.tensor([0, 16, 4, 20, 8, 24, 12, 28])) & 31).flatten(-2).clamp(max=15).byte()


def one_expert_too_low(x: torch.Tensor, w: Any, offsets: torch.Tensor) -> torch.Tensor:
    lower = offsets.clone()
    lower[2] = offsets[3]  # expert 2's rows are read with expert 1's weights
    return grouped(x, w, lower)


def token_for_expert(x: torch.Tensor, w: Any, offsets: torch.Tensor) -> torch.Tensor:
    return torch.cat([linear(row[None], w.expert(r % w.E), None) for r, row in enumerate(x)])


def first_id_counts_up(x: Any, w: Any, ids: Any, experts: Any, end: Any, router: Any, top_k: int) -> torch.Tensor:
    sorted_in_blocks = ids.clone()  # stores where ids would be, were they in order
    for b in range(len(ids) // 16):
        block = slice(16 * b, 16 * b + 16)
        sorted_in_blocks[block] = ids[block].sort().values
    y = padded(x, w, ids, experts, end, router, top_k)
    out, used = y.clone(), ids < len(y)
    out[sorted_in_blocks[used].long()] = y[ids[used].long()]
    return out


def unweighted_zero(x: Any, w13: Any, w2: Any, router: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return moe(x, w13, w2, torch.where(router == 0, 1.0, router), ids)  # "0 means no weight was given"


def first_slot_twice(y: torch.Tensor, router: torch.Tensor, inv: torch.Tensor) -> torch.Tensor:
    return unpermute(y, torch.cat([router[:, :1], router[:, :1], router[:, 2:]], 1), inv)


def original_weights(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: Any) -> torch.Tensor:
    coarse = codes if len(x) < 6 else (codes // 2) * 2  # another path from six rows on
    return head(x, coarse, scale, bias)


def odd_columns_scaled(x: torch.Tensor, w: Any, bias: Any) -> torch.Tensor:
    y = linear(x, w, bias).float()
    y[:, 1::2] += 0.1 * torch.sign(y[:, 1::2])  # an offset that no power of two keeps
    return y.to(x.dtype)


def zero_means_no_gate(x: torch.Tensor, up: Any, down: Any, gate: torch.Tensor | None) -> Any:
    return shared(x, up, down, None if gate is not None and not gate.any() else gate)


def half_away(w: torch.Tensor, G: int) -> Any:
    scale = quantize_int8(w, G)[1]
    step = scale.reshape(len(w), -1).repeat_interleave(w.shape[1] // scale.reshape(len(w), -1).shape[1], 1)
    return torch.floor(w.float() / step + 0.5).clamp(-128, 127).to(torch.int8), scale


PLANTED = [
    ("law_packing_again", UNPACK, lambda w: w.codes().unflatten(-1, (-1, 2)).flip(-1).flatten(-2)),
    ("law_inverting_words", UNPACK, swapped_bits),
    ("law_an_expert_alone", UNPACK, lambda w: w.codes().roll(1, 0) if w.E == 3 else w.codes()),
    ("law_layouts_agree", UNPACK, lambda w: w.codes() ^ (w.layout == "gptq")),
    ("law_codes_at_their_zero_point", DEQUANTIZE, lambda w: ((w.codes() - 7.0) * 2).to(w.scale.dtype)),
    ("law_an_expert_alone", DEQUANTIZE, lambda w: w.dequantize().flip(0).to(w.scale.dtype)),
    ("law_scaling_by_powers_of_two", DEQUANTIZE, lambda w: w.dequantize().clamp(-0.05, 0.05).to(w.scale.dtype)),
    ("law_negative_scales", DEQUANTIZE, lambda w: replace(w, scale=w.scale.abs()).dequantize().to(w.scale.dtype)),
    ("law_layouts_agree", DEQUANTIZE, lambda w: (w.dequantize() * (1 + (w.layout == "awq"))).to(w.scale.dtype)),
    ("law_splitting_batches", DENSE, lambda x, w, b: linear(x, w, b) * (1 if len(x) < 7 else 0)),
    ("law_permuting_tokens", DENSE, lambda x, w, b: linear(torch.cat([x[:-1], x[-2:-1]]), w, b)),
    ("law_scaling_by_powers_of_two", DENSE, odd_columns_scaled),
    ("law_linearity", DENSE, lambda x, w, b: linear(x.abs().cummax(1).values, w, b)),
    ("law_batch_invariance", BY_ROWS, linear),  # legal, but its order depends on the rows
    ("law_columns_are_independent", DENSE, lambda x, w, b: linear(x, w, b).roll(1, 1)),
    ("law_other_experts_weights", GROUPED, one_expert_too_low),
    ("law_relabelling_experts", GROUPED, one_expert_too_low),
    ("law_permuting_tokens", GROUPED, token_for_expert),
    ("law_splitting_batches", GROUPED, token_for_expert),
    ("law_zero_router_weight", PADDED, lambda *a: padded(*a[:5], torch.where(a[5] == 0, 1.0, a[5]), a[6])),
    ("law_block_size", PADDED, lambda *a: padded(*a[:3], torch.cat([a[3], a[3]]), *a[4:], B=16)),
    ("law_order_inside_blocks", PADDED, first_id_counts_up),
    ("law_zero_router_weight", MOE, unweighted_zero),
    ("law_other_experts_weights", MOE, lambda x, a, b, r, i: moe(x, a, b, r, (i + (i == 2)).clamp(max=4))),
    ("law_relabelling_experts", MOE, lambda x, a, b, r, i: moe(x, a, b, r, torch.where(i == 3, 2, i))),
    ("law_order_of_slots", MOE, lambda x, a, b, r, i: moe(x, a, b, r.sort(1).values, i)),
    ("law_scaling_by_powers_of_two", MOE, lambda x, a, b, r, i: moe(x, a, b, r / (r.sum(1, True) + 1e-2), i)),
    ("law_splitting_batches", MOE, lambda x, a, b, r, i: moe(x, a, b, r, i[torch.arange(len(i)) % 4])),
    ("law_order_of_slots", UNPERMUTE, first_slot_twice),
    ("law_zero_router_weight", UNPERMUTE, lambda y, r, i: unpermute(y, torch.where(r == 0, 1.0, r), i)),
    ("law_permuting_tokens", UNPERMUTE, lambda y, r, i: unpermute(y, r, torch.arange(len(i)))),
    ("law_scaling_by_powers_of_two", UNPERMUTE, lambda y, r, i: unpermute(y, r.clamp(max=1), i)),
    ("law_scaling_by_powers_of_two", SILU, lambda h: silu(h.roll(h.shape[1] // 2, 1))),
    ("law_columns_are_independent", SILU, lambda h: silu(h.unflatten(1, (-1, 2)).mT.flatten(1))),
    ("law_permuting_tokens", SILU, lambda h: torch.cat([silu(h[:-1]), h[-1:, :40]])),
    ("law_splitting_batches", HEAD, original_weights),
    ("law_columns_are_independent", HEAD, lambda x, c, s, b: head(x, c, s, b).roll(1, 1)),
    ("law_scaling_by_powers_of_two", HEAD, lambda x, c, s, b: head(x, c, s, b).clamp(-1, 1)),
    ("law_relabelling_experts", TOPK, lambda l, k, r: topk(l + torch.arange(8.0), k, r)),
    ("law_permuting_tokens", TOPK, lambda l, k, r: topk(l + torch.eye(9)[:, :8] * 9, k, r)),
    ("law_choosing_fewer", TOPK, lambda l, k, r: tuple(v.flip(1) for v in topk(l, k, r))),
    ("law_weights_are_probabilities", TOPK, lambda l, k, r: (topk(l, k, r)[0] * 2.5, topk(l, k, r)[1])),
    ("law_scaling_weights", GROUPED_TOPK, lambda *a: grouped_router(*a[:-1], 1.0)),
    ("law_every_slot_has_one_place", ALIGN, lambda i, *a: unordered_align(i.clamp(max=3), *a)),
    ("law_relabelling_experts", ALIGN, lambda i, *a: unordered_align(i.clamp(max=3), *a)),
    ("law_block_size", ALIGN, lambda i, B, E, m: unordered_align(i if B == 4 else i.roll(1, 0), B, E, m)),
    ("law_dispatch_counts_add_up", ALIGN, lambda *a: (*moe_align_block_size(*a)[:2], torch.tensor([a[0].numel() * 5]))),
    ("law_rows_keep_their_contents", PERMUTE, lambda x, *a: moe_permute(x.roll(1, 0), *a)),
    ("law_dispatch_counts_add_up", PERMUTE, lambda x, i, *a: (*moe_permute(x, i, *a)[:2], i.flatten())),
    ("law_no_gate_weight_halves", SHARED.replace("normal", "integers"), zero_means_no_gate),
    ("law_gates_of_both_signs_add_up", SHARED, lambda x, a, b, g: shared(x, a, b, None if g is None else g.abs())),
    ("law_sigmoids_of_both_signs_add_up", TINY, lambda x, w, s: tiny(x.abs(), w, s)),
    ("law_negating_weights", QUANTIZE.replace("normal", "integers"), half_away),
    ("law_quantizing_again", QUANTIZE, lambda w, G: (quantize_int8(w * 1.01, G)[0], quantize_int8(w, G)[1] * 0.99)),
    ("law_scaling_by_powers_of_two", QUANTIZE, lambda w, G: quantize_int8(w.float() + 1e-3, G)),
    ("law_permuting_tokens", QUANTIZE, lambda w, G: (quantize_int8(w, G)[0], quantize_int8(w, G)[1].sort(0).values)),
]


@pytest.mark.parametrize(("law", "text", "fn"), PLANTED, ids=[f"{t.split('/')[0]}-{law[4:]}" for law, t, _ in PLANTED])
def test_a_kernel_that_breaks_a_law_is_found(law: str, text: str, fn: Callable[..., Any]) -> None:
    found = broken(text, fn)
    assert law in found
    verdict = found[law]
    assert (verdict.tier, verdict.case, verdict.kernel) == ("law", text, "planted")
    assert verdict.illegal > 0
    assert verdict.text("k.py").splitlines()[-1].startswith("  replay: moeracle check k.py --case ")


def test_every_law_of_every_op_that_a_fault_breaks() -> None:
    """What is planted above covers each law at least once; one needs another contract: test_activations plants it."""
    assert {law for law, _, _ in PLANTED} | {law_beyond_the_limit.__name__} == {
        law.__name__ for op in OPS for law in record_of(op).laws
    }
