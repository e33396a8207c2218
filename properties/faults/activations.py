"""Faults of activations other than silu: one taken for its neighbour, a number left out, a limit in the wrong place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract

from .base import ARITHMETIC, NotUnder, fault, issue, pull
from .moe import ACTIVATED

T = torch.Tensor


def only_of(what: str, fits: Callable[[Contract], bool]) -> NotUnder:
    """Return a `not_under` of faults that only some activations can have."""
    return lambda contract: None if fits(contract) else f"its activation {contract.activation} {what}"


def of_kind(kind: str) -> NotUnder:
    """Return a `not_under` of faults of one kind of activation."""
    return only_of(f"is not {kind}", lambda contract: contract.activation.kind == kind)


limited = only_of("has no limit", lambda contract: contract.activation.limit is not None)
shifted = only_of("adds nothing to up", lambda contract: bool(contract.activation.up))


def in_swigluoai(not_under: NotUnder) -> dict[str, Any]:
    """Return where faults of limits and numbers are planted unless another contract is asked for."""
    return {"ops": ACTIVATED, "stage": "a", "contract": "grouped,activation=swigluoai", "not_under": not_under}


@fault("F220", "gelu's tanh form in place of erf", ops=ACTIVATED, stage="a", step="silu",
       source=pull("microsoft/onnxruntime", 2270), contract="grouped,activation=gelu",
       not_under=of_kind("gelu"))  # fmt: skip
def tanh_for_erf(sim: Any, base: Any, gate: T) -> T:
    return torch.nn.functional.gelu(gate, approximate="tanh")


@fault("F221", "gelu by erf in place of its tanh form", ops=ACTIVATED, stage="a", step="silu",
       source=pull("vllm-project/vllm", 41574), contract="grouped,activation=gelu_tanh",
       not_under=of_kind("gelu_tanh"))  # fmt: skip
def erf_for_tanh(sim: Any, base: Any, gate: T) -> T:
    return torch.nn.functional.gelu(gate)


@fault("F222", "gelu by its sigmoid form, gate * sigmoid(1.702 gate)", ops=ACTIVATED, stage="a", step="silu",
       source="https://arxiv.org/abs/1606.08415", contract="grouped,activation=gelu",
       not_under=only_of("is no gelu", lambda contract: contract.activation.kind.startswith("gelu")))  # fmt: skip
def quick_gelu(sim: Any, base: Any, gate: T) -> T:
    return gate * torch.sigmoid(1.702 * gate)


@fault("F223", "relu that is not squared", ops=ACTIVATED, stage="a", step="silu",
       source=pull("sgl-project/sgl-kernel-xpu", 194), contract="grouped,activation=relu2",
       not_under=of_kind("relu2"))  # fmt: skip
def relu_not_squared(sim: Any, base: Any, gate: T) -> T:
    return gate.relu()


@fault("F224", "square without its relu: negative gates count", ops=ACTIVATED, stage="a", step="silu",
       source=ARITHMETIC, contract="grouped,activation=relu2", not_under=of_kind("relu2"))  # fmt: skip
def square_without_relu(sim: Any, base: Any, gate: T) -> T:
    return gate.square()


@fault("F225", "silu in place of the activation that was asked for", ops=ACTIVATED, stage="a", step="silu",
       source=issue("vllm-project/vllm", 43326), contract="grouped,activation=gelu_tanh",
       not_under=only_of("is silu", lambda contract: contract.activation.kind != "silu"))  # fmt: skip
def silu_for_all(sim: Any, base: Any, gate: T) -> T:
    return gate * torch.sigmoid(gate)


@fault("F226", "alpha left out of the sigmoid", step="alpha", source=pull("sgl-project/DeepGEMM", 87),
       **in_swigluoai(only_of("has no alpha", lambda contract: contract.activation.alpha != 1)))  # fmt: skip
def no_alpha(sim: Any, base: Any) -> float:
    return 1.0


@fault("F227", "up without the +1 of the activation", step="shifted_up", source=pull("sgl-project/DeepGEMM", 87),
       **in_swigluoai(shifted))  # fmt: skip
def no_plus_one(sim: Any, base: Any, up: T) -> T:
    return up


@fault("F228", "limit of the activation left out", step="limit", source=pull("lightseekorg/tokenspeed", 1647),
       **in_swigluoai(limited))  # fmt: skip
def no_limit(sim: Any, base: Any) -> None:
    return None


@fault("F229", "limit kept for the gate alone, not for up", step="limited_up", source=pull("vllm-project/vllm", 43589),
       **in_swigluoai(limited))  # fmt: skip
def up_not_limited(sim: Any, base: Any, up: T) -> T:
    return up


@fault("F230", "up limited from above alone", step="limited_up", source=ARITHMETIC, **in_swigluoai(limited))
def up_limited_above(sim: Any, base: Any, up: T) -> T:
    return up.clamp(max=sim.limit())


@fault("F231", "gate limited from below too", step="limited_gate", source=pull("PrimeIntellect-ai/prime-rl", 2365),
       **in_swigluoai(limited))  # fmt: skip
def gate_limited_below(sim: Any, base: Any, gate: T) -> T:
    return base(gate).clamp(min=-sim.limit())


def clamp_order(sim: Any, h: T, dtype: torch.dtype, gated: bool) -> T:
    """Keep the limit on the other side of the activation than the contract does."""
    gate, up = sim.halves(h) if gated else (h.float(), None)
    after = sim.contract.activation.after
    silu = sim.silu(sim.limited_gate(gate)) if after else sim.limited_gate(sim.silu(gate))
    product: T = (
        silu if up is None else sim.product(sim.store_silu(silu, dtype), sim.shifted_up(sim.limited_up(up)), dtype)
    )
    return product


@fault("F232", "limit before the activation in place of after it", ops=ACTIVATED, stage="a", step="activation",
       source=pull("vllm-project/vllm", 43653), contract="grouped,activation=swiglustep",
       not_under=only_of("keeps no limit after it", lambda contract: contract.activation.after))  # fmt: skip
def limited_before(sim: Any, base: Any, h: T, dtype: torch.dtype, gated: bool = True) -> T:
    return clamp_order(sim, h, dtype, gated)


def late_limit_shows(contract: Contract) -> bool:
    """Say whether limit·sigma(alpha·limit) is below the limit in fp16; bf16 does not tell."""
    how = contract.activation
    return how.kind == "silu" and not how.after and how.limit is not None and how.alpha * how.limit < 8


@fault("F233", "limit after the activation in place of before it", ops=ACTIVATED, stage="a", step="activation",
       source=pull("sgl-project/sglang-jax", 1358), contract="grouped,activation=silu/limit7", dtypes=("fp16",),
       not_under=only_of("keeps no limit before it, or one that is the same after it", late_limit_shows))  # fmt: skip
def limited_after(sim: Any, base: Any, h: T, dtype: torch.dtype, gated: bool = True) -> T:
    return clamp_order(sim, h, dtype, gated)


def already_shifted(sim: Any, base: Any, up: T) -> T:
    """Leave up alone: F234 has added 1 to it before."""
    return up


@fault("F234", "+1 added to up before its limit", step="limited_up", source=ARITHMETIC,
       also={"shifted_up": already_shifted}, **in_swigluoai(shifted))  # fmt: skip
def plus_one_first(sim: Any, base: Any, up: T) -> T:
    return base(up + 1)


@fault("F235", "1 + erf computed in the activation dtype", ops=ACTIVATED, stage="a", step="silu", source=ARITHMETIC,
       contract="grouped,activation=gelu", not_under=of_kind("gelu"))  # fmt: skip
def narrow_erf(sim: Any, base: Any, gate: T) -> T:
    return gate * 0.5 * (1 + torch.erf(gate * math.sqrt(0.5))).bfloat16().float()
