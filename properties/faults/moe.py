"""Faults of a layer between and after its GEMMs: activation, router weights, the sum over slots, shared buffers."""

from __future__ import annotations

import math
from typing import Any

import torch

from moeracle.ref.activation import SILU

from ..simulate.moe import LayerOps
from .base import ARITHMETIC, SUMMED, WEIGHED, fault, issue, pull

T = torch.Tensor
ACTIVATED = ("silu_and_mul", "moe_w4a16", "shared_expert")


def sums_in_fp32(contract: Any) -> str | None:
    """A top-k sum in D is no fault where the contract adds in D."""
    return None if contract.topk_sum == "fp32" else "it adds over k in the activation dtype"


@fault("F14", "router weight applied twice", ops=WEIGHED, stage="out", source=pull("vllm-project/vllm", 43694),
       step="slot_weights")  # fmt: skip
def weight_twice(sim: Any, base: Any, weights: T) -> T:
    return base(weights) ** 2


@fault("F15", "routed scaling factor applied twice", ops=WEIGHED, stage="out", source=pull("vllm-project/vllm", 24119),
       step="slot_weights")  # fmt: skip
def scaling_factor_twice(sim: Any, base: Any, weights: T) -> T:
    return base(weights) * 2.5


@fault("F16", "top-k sum in the activation dtype", ops=SUMMED, stage="out", source=issue("vllm-project/vllm", 15045),
       step="topk_sum", not_under=sums_in_fp32)  # fmt: skip
def sum_in_dtype(sim: Any, base: Any, terms: T, dtype: torch.dtype, multiplied: bool) -> T:
    total = torch.zeros_like(terms[:, 0], dtype=dtype)
    for term in terms.unbind(1):
        total = total + term.to(dtype)
    return total.float()


@fault("F31", "gate and up swapped", ops=ACTIVATED, stage="a", source=ARITHMETIC, step="halves")
def gate_and_up_swapped(sim: Any, base: Any, h: T) -> tuple[T, T]:
    gate, up = base(h)
    return up, gate


@fault("F33", "router weights missing", ops=WEIGHED, stage="out", source=ARITHMETIC, step="slot_weights")
def weights_missing(sim: Any, base: Any, weights: T) -> T:
    return torch.ones_like(base(weights))


@fault("F34", "router weights in the wrong slot order", ops=WEIGHED, stage="out", source=ARITHMETIC,
       step="slot_weights")  # fmt: skip
def weights_reversed(sim: Any, base: Any, weights: T) -> T:
    return base(weights).flip(1)


@fault(
    "F35", "one slot of one token dropped from the sum", ops=SUMMED, stage="out", source=ARITHMETIC, step="slot_rows"
)
def slot_dropped(sim: Any, base: Any, y: T) -> T:
    y = base(y).clone()
    y[:1, -1] = 0
    return y


def only_silu(contract: Any) -> str | None:
    """Faults of silu are none of another activation."""
    return None if contract.activation == SILU else f"its activation is {contract.activation}"


@fault("F37", "gelu in place of silu", ops=ACTIVATED, stage="a", source=ARITHMETIC, step="silu", not_under=only_silu)
def gelu(sim: Any, base: Any, gate: T) -> T:
    return gate * 0.5 * (1 + torch.erf(gate * math.sqrt(0.5)))


@fault("F38", "slope of silu off by 0.5 %", ops=ACTIVATED, stage="a", source=ARITHMETIC, step="silu",
       not_under=only_silu)  # fmt: skip
def steeper_silu(sim: Any, base: Any, gate: T) -> T:
    return gate / (1 + torch.exp(-1.005 * gate))


@fault("F49", "a padded row counted in the sum, as the last token's last slot", ops=SUMMED, stage="out",
       source=ARITHMETIC, step="topk_sum")  # fmt: skip
def padding_counted(sim: Any, base: Any, terms: T, dtype: torch.dtype, multiplied: bool) -> T:
    total = base(terms, dtype, multiplied)
    total[-1:] += terms[-1:, -1]
    return total


@fault("F75", "interleaved gate and up expected where halves are stored", ops=ACTIVATED, stage="a",
       source=pull("vllm-project/vllm", 29273), step="halves")  # fmt: skip
def interleaved_halves(sim: Any, base: Any, h: T) -> tuple[T, T]:
    return h[:, 0::2].float(), h[:, 1::2].float()


@fault("F86", "ping-pong buffer reused too early: slot j's columns come from slot j+2", ops=SUMMED, stage="out",
       source=pull("deepseek-ai/DeepGEMM", 389), step="topk_sum")  # fmt: skip
def slot_overwritten(sim: Any, base: Any, terms: T, dtype: torch.dtype, multiplied: bool) -> T:
    terms = terms.clone()
    terms[:, :-2, :16] = terms[:, 2:, :16]
    return base(terms, dtype, multiplied)


@fault("F94", "up gets the +1 of another activation", ops=ACTIVATED, stage="a",
       source=pull("sgl-project/sglang", 39939), step="halves", not_under=only_silu)  # fmt: skip
def up_plus_one(sim: Any, base: Any, h: T) -> tuple[T, T]:
    gate, up = base(h)
    return gate, up + 1


@fault("F96", "silu of a very negative gate is -inf * 0", ops=ACTIVATED, stage="a",
       source=issue("tenstorrent/tt-metal", 55711), step="silu")  # fmt: skip
def silu_is_nan(sim: Any, base: Any, gate: T) -> T:
    return torch.where(gate < -88.7, torch.nan, base(gate))


@fault("F110", "the shared expert takes the wrong slot: slots of a row in ascending order", ops=SUMMED, stage="out",
       source=pull("sgl-project/sglang", 8125), step="slot_weights")  # fmt: skip
def slots_reordered(sim: Any, base: Any, weights: T) -> T:
    return base(weights).roll(1, 1)


@fault("F121", "router weight looked up by token in place of by slot", ops=WEIGHED, stage="out",
       source=pull("vllm-project/vllm-xpu-kernels", 66), step="slot_weights")  # fmt: skip
def weight_of_token(sim: Any, base: Any, weights: T) -> T:
    T_, k = weights.shape
    return base(weights).flatten()[:T_].repeat_interleave(k).reshape(T_, k)


@fault("F123", "output written in place over x, which is read afterwards", ops=("moe_w4a16",), stage="",
       source=pull("vllm-project/vllm", 28939), step="moe_w4a16")  # fmt: skip
def written_over_x(sim: Any, base: Any, x: T, *rest: Any) -> dict[str, T]:
    stages: dict[str, T] = base(x, *rest)
    x.copy_(stages["out"])
    return stages


@fault("F124", "GEMM2 writes where it still has to read", ops=("moe_w4a16",), stage="y",
       source=pull("vllm-project/vllm", 29219), step="routed")  # fmt: skip
def output_over_input(
    sim: LayerOps, base: Any, x: T, w: Any, spans: list[Any], source: Any, num_rows: int, which: str, *rest: Any
) -> T:
    if which != "w2" or not x.numel():
        return base(x, w, spans, source, num_rows, which, *rest)
    shared = x.new_zeros(max(x.numel(), num_rows * w.N))
    shared[: x.numel()] = x.flatten()
    a, y = shared[: x.numel()].view_as(x), shared[: num_rows * w.N].view(num_rows, w.N)
    for span in spans:  # one expert after another
        y[span.rows] = base(a.clone(), w, [span], source, num_rows, which, *rest)[span.rows].to(y.dtype)
    return y


@fault("F127", "silu of partial sums in place of the whole sum", ops=("moe_w4a16",), stage="a",
       source=pull("vllm-project/vllm-ascend", 14345), step="stage")  # fmt: skip
def silu_of_partials(sim: LayerOps, base: Any, stage: str, args: dict[str, Any], before: dict[str, T]) -> T:
    if stage != "a":
        return base(stage, args, before)
    x, total = args["x"], torch.zeros(())
    for half in (slice(None, x.shape[1] // 2), slice(x.shape[1] // 2, None)):
        part = torch.zeros_like(x)
        part[:, half] = x[:, half]
        total = total + base("a", args, {"h": base("h", {**args, "x": part}, before)}).float()
    return total.to(x.dtype)


@fault("F128", "shared expert's slot divided by the routed scaling factor", ops=WEIGHED, stage="out",
       source=pull("sgl-project/sglang", 28237), step="slot_weights")  # fmt: skip
def shared_slot_divided(sim: Any, base: Any, weights: T) -> T:
    weights = base(weights).clone()
    weights[:, -1] /= 2.5
    return weights
