"""Kernels as they are shipped, from their outputs alone: the contract found is the one that describes them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from moeracle.properties.infer import infer
from moeracle.properties.simulate import orders
from moeracle.ref.contracts.contract import contract
from moeracle.ref.weights.weight import Int4Weight
from moeracle.target.declaration import make_kernel
from support.real_kernels import REAL

NO_BIAS = {"supports": lambda case: "bias" not in case.flags}
ASKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "awq_gemm": ({"layout": "awq", "zeros": "asym", "dtypes": "fp16", **NO_BIAS}, {"k": 512}),
    "parts in runs": ({"layout": "awq", "zeros": "asym", "dtypes": "fp16", **NO_BIAS}, {"k": 512}),
    "parts added in D": ({"layout": "exllama", **NO_BIAS}, {"k": 512}),
    "gptq_gemm": ({"layout": "gptq", "zeros": "v2", "dtypes": "fp16", **NO_BIAS}, {"k": 384, "rows": 64}),
    "moe_wna16_gemm": ({"layout": "nibble_pairs"}, {"k": 192, "rows": 16}),
    "W8A16 experts": ({"layout": "bytes", "weights": "w8"}, {"k": 128, "rows": 32}),
    "W8A16 layer without up, with biases": ({"layout": "gptq", "weights": ("w8", "bias", "ungated")}, {"k": 64}),
    "marlin, one group": ({"layout": "gptq", **NO_BIAS}, {"k": 256}),
    "marlin, 8 bits, one group": ({"layout": "gptq", "weights": "w8", **NO_BIAS}, {"k": 128}),
    "marlin, one group and a bias": ({"layout": "gptq"}, {"k": 256}),
    "bias after the store": ({"layout": "exllama"}, {"k": 256}),
    "v1 zeros without a mask": ({"layout": "gptq", "zeros": "v1", **NO_BIAS}, {"k": 128}),
    "v1 zeros with a carry": ({"layout": "gptq", "zeros": "v1", **NO_BIAS}, {"k": 128}),
    "truncating store": ({"layout": "exllama", **NO_BIAS}, {"k": 256}),
    "cpu_fused_moe": ({"layout": "exllama"}, {"k": 128}),
    "weight on the input, in D": ({"layout": "exllama", "supports": lambda case: case.k == 1}, {"k": 128}),
    "transformers, eager": ({"layout": "exllama"}, {"k": 128}),
    "atomics over the slots": ({"layout": "exllama"}, {"k": 128}),
    "layer with gelu_tanh": ({"layout": "exllama"}, {"k": 128}),
    **{f"{name}_and_mul": ({}, {}) for name in ("gelu", "gelu_tanh", "relu2", "swigluoai", "swiglustep")},
}
FIELDS = (
    "weight", "store_rounding", "one_group", "bias", "deterministic", "silu", "stores", "router_weight", "topk_sum",
    "slot_order", "v1_zeros", "activation",
)  # fmt: skip


def test_every_real_kernel_is_asked() -> None:
    assert set(ASKED) == set(REAL)


def test_three_slots_that_fall_into_their_order_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffle = orders.shuffle
    monkeypatch.setattr(orders, "shuffle", lambda slots: shuffle(slots) if len(slots) != 3 else None)
    test_a_real_kernel_is_told_by_its_outputs("atomics over the slots")


@pytest.mark.parametrize("name", ASKED)
def test_a_real_kernel_is_told_by_its_outputs(name: str) -> None:
    real, (declared, probe) = REAL[name], ASKED[name]
    found = infer(make_kernel(real.fn, real.op, name="real", **declared), **probe)
    wanted, rules = contract(real.contract), found.contract
    assert found.explained, (found.why_not, found.text)
    shown = [field for field in FIELDS if found.finding(field) is not None]
    assert {field: getattr(rules, field) for field in shown} == {field: getattr(wanted, field) for field in shown}
    assert rules.accumulator != "dtype"
    if wanted.parts is None:
        assert rules.parts is None
        return
    assert rules.parts is not None
    for field in ("count", "length", "unit", "deal", "kept", "add"):
        assert getattr(rules.parts, field) == getattr(wanted.parts, field)
    assert rules.parts.join == ("any" if not wanted.deterministic else "sequential")
    own_order = name.endswith("stored") or name == "awq_gemm"  # torch adds a single row of gathered inputs otherwise
    assert (rules.schedule is None) == (wanted.schedule is None and own_order)


def test_what_adds_in_d_throughout_has_no_parts() -> None:
    """Partial sums in D are named as such only where no cut explains them."""
    from moeracle.properties.simulate import simulated_kernel

    found = infer(
        simulated_kernel(
            "int4_linear", "grouped,accumulator=dtype,deterministic=false", "eights", layout="exllama", zeros=("sym",)
        ),
        k=128,
    )
    assert (found.contract.accumulator, found.contract.parts) == ("dtype", None)


def test_parts_by_number_are_told_where_their_length_stays_the_same_below() -> None:
    """Eight parts: 32 inputs each at K = 256, 64 at 512."""
    real, (declared, _) = REAL["awq_gemm"], ASKED["awq_gemm"]
    parts = infer(make_kernel(real.fn, real.op, name="real", **declared), k=256).contract.parts
    assert parts is not None
    assert (parts.count, parts.length) == (8, 0)


def test_two_parts_are_asked_again_at_a_longer_sum() -> None:
    """Atomics in D over parts of 128: two of them at K = 256, which any order adds alike."""

    def atomics(x: torch.Tensor, w: Int4Weight, bias: torch.Tensor | None) -> torch.Tensor:
        weight = w.dequantize().to(x.dtype).float()
        parts = [(x[:, k : k + 128].float() @ weight[:, k : k + 128].T).to(x.dtype) for k in range(0, w.K, 128)]
        orders.shuffle(parts)
        return functools.reduce(torch.add, parts)

    found = infer(make_kernel(atomics, "int4_linear", name="real", layout="exllama", **NO_BIAS), k=256)
    assert found.explained, found.why_not
    assert str(found.contract.parts) == "k128/dtype/add=dtype"
    assert not found.contract.deterministic


def test_a_bias_beside_parts_in_d_is_not_taken_for_one_after_the_store() -> None:
    from moeracle.properties.simulate import simulated_kernel

    kernel = simulated_kernel("int4_linear", "vllm@0.33:awq_gemm", "hopper", layout="exllama", zeros=("sym",))
    found = infer(kernel, k=256, rows=32)
    assert (found.explained, found.contract.bias) == (True, "sum")
