"""Faults of the shared expert's gate and of dot products with a single output."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract

from .base import ARITHMETIC, fault, pull

T = torch.Tensor
GATED = ("shared_expert",)
FUSED = "https://github.com/ROCm/vllm/pull/933"


def only_rounded_gates(contract: Contract) -> str | None:
    """Faults of the product in D need a product in D."""
    return "it multiplies by the gate in fp32" if contract.gate == "fp32" else None


def only_rounded_silu(contract: Contract) -> str | None:
    """Faults of silu's rounding need one."""
    return "it does not round silu(gate)" if contract.silu == "fp32" else None


@fault("F140", "shared expert's gate applied without its sigmoid", ops=GATED, stage="out", source=ARITHMETIC,
       step="sigmoid")  # fmt: skip
def raw_gate(sim: Any, base: Any, dot: T) -> T:
    return dot


@fault("F141", "shared expert gated by the token before", ops=GATED, stage="out", source=ARITHMETIC, step="gate_dot")
def gate_of_neighbour(sim: Any, base: Any, x: T, gate: T, dtype: torch.dtype) -> T:
    return base(x, gate, dtype).roll(1, 0)


@fault("F142", "silu * up multiplied in fp32 where D was promised", ops=GATED, stage="a", source=FUSED,
       step="store_silu", not_under=only_rounded_silu)  # fmt: skip
def silu_kept_in_fp32(sim: Any, base: Any, silu: T, dtype: torch.dtype) -> T:
    return silu


@fault("F143", "gate multiplied in fp32 where D was promised", ops=GATED, stage="out", source=FUSED, step="store_gate",
       not_under=only_rounded_gates)  # fmt: skip
def gate_kept_in_fp32(sim: Any, base: Any, gate: T, dtype: torch.dtype) -> T:
    return gate


@fault("F144", "shared expert's gate left out", ops=GATED, stage="out", source=pull("vllm-project/vllm", 51632),
       step="gated")  # fmt: skip
def no_gate(sim: Any, base: Any, y: T, gate: T) -> T:
    return y


@fault("F145", "sigmoid of each half of the sum, added", ops=("tiny_dot",), stage="out", source=ARITHMETIC,
       step="sigmoid")  # fmt: skip
def sigmoid_of_halves(sim: Any, base: Any, dot: T) -> T:
    return 2 * base(dot / 2) - 0.5


@fault("F146", "sigmoid of the dot already rounded", ops=("tiny_dot",), stage="out", source=ARITHMETIC, step="sigmoid",
       dtypes=("bf16",))  # fmt: skip
def sigmoid_of_rounded(sim: Any, base: Any, dot: T) -> T:
    return base(dot.bfloat16().float())
