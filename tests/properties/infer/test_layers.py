"""Layers: each GEMM's order found by itself, through whatever stages a kernel shows; what cannot be found is said."""

import dataclasses
import functools

import pytest
import torch

from moeracle.properties.infer import ProbeError, infer
from moeracle.properties.infer.declared import compare
from moeracle.properties.simulate import SimulatedKernel, Simulation, simulated_kernel
from moeracle.ref.contracts.contract import contract

FP32 = "grouped,accumulator=fp32"
SCHEDULES = {"sequential": "fma", "pairwise": "fma/pairwise", "reversed": "fma/reversed", "hopper": "wgmma.k16.sm90"}


def two_orders(op, first, second, text=FP32, stages=None, late=None):
    """A layer whose GEMM2 adds in another order than its GEMM1, or keeps another contract."""
    one, two = Simulation(text, first, block_m=128), Simulation(late or text, second, block_m=128)

    def dot(simulation, right, a, w, dtype, which):
        return (two.dot if which == "w2" else right)(a, w, dtype, which)

    def load(simulation, right, w, e, dtype, which):
        return (two.load if which == "w2" else right)(w, e, dtype, which)

    one.replace_step("dot", dot).replace_step("load", load)
    return showing(SimulatedKernel(op, f"{first}+{second}", getattr(one, op), contract(text)), stages)


def showing(kernel, stages):
    """The kernel, which returns only these stages; one alone as a tensor."""
    if stages is None:
        return kernel
    whole = kernel.fn

    @functools.wraps(whole)
    def fn(*args):
        got = whole(*args)
        return got[stages[0]] if len(stages) == 1 else {name: got[name] for name in stages}

    return dataclasses.replace(kernel, fn=fn)


@pytest.mark.parametrize(
    ("op", "first", "second", "stages"),
    [
        ("moe_w4a16", "sequential", "pairwise", None),
        ("moe_w4a16", "pairwise", "sequential", ("out",)),
        ("moe_w4a16", "reversed", "sequential", ("a", "out")),
        ("moe_w4a16", "sequential", "reversed", ("y", "out")),
        ("moe_w4a16", "hopper", "sequential", ("a", "y", "out")),
        ("shared_expert", "pairwise", "reversed", ("out",)),
    ],
)
def test_each_gemm_s_order_is_found_by_itself(op, first, second, stages):
    text = "grouped" if "hopper" in (first, second) else FP32
    found = infer(two_orders(op, first, second, text, stages), k=32)
    assert found.explained, found.why_not
    rules = found.contract
    assert (str(rules.schedule), str(rules.gemm2_schedule)) == (SCHEDULES[first], SCHEDULES[second])
    assert (rules.weight, rules.store_rounding, rules.silu, rules.stores) == (
        "cast",
        "rne",
        "rounded",
        contract(text).stores,
    )
    assert rules.accumulator == ("tensor_core" if "hopper" in (first, second) else "fp32")
    assert contract(found.text) == rules


@pytest.mark.parametrize(("order", "dtype"), [("sequential", "bf16"), ("hopper", "fp16"), ("pairwise", "bf16")])
def test_a_layer_that_returns_only_out(order, dtype):
    text = "grouped,accumulator=hopper" if order == "hopper" else FP32
    found = infer(showing(simulated_kernel("moe_w4a16", text, order), ("out",)), k=32, dtype=dtype)
    assert found.explained, found.why_not
    assert (str(found.contract.schedule), found.contract.gemm2_schedule) == (SCHEDULES[order], None)
    assert found.contract.accumulator == ("hopper" if order == "hopper" else "fp32")
    assert found.second.order == found.order
    assert found.contract.stores == ("h", "a", "y", "out")


@pytest.mark.parametrize("text", ["megakernel,accumulator=fp32", "gptq_awq,accumulator=fp32", "et_vecmat", "marlin"])
def test_other_roundings_through_out_alone(text):
    kernel = simulated_kernel("moe_w4a16", text, "hopper" if text == "marlin" else "sequential")
    found = infer(showing(kernel, ("out",)), k=32)
    for name in ("weight", "silu", "topk_sum", "stores", "store_rounding", "deterministic"):
        assert getattr(found.contract, name) == getattr(kernel.contract, name), name
    assert found.explained, found.why_not


def test_gemm2_of_a_kernel_that_subtracts_zero_points_from_sums():
    found = infer(simulated_kernel("moe_w4a16", "wmma,accumulator=fp32,zero_offset=0", "sequential"), k=32)
    assert (found.contract.weight, found.second.finding("weight").value) == ("hoisted", "hoisted")
    assert found.order == found.second.order == "32 one after another"
    assert "-H1056-I32-" in found.second.site  # each of 32 inputs in a group of its own, and one for the gates
    found = infer(
        showing(simulated_kernel("moe_w4a16", "megakernel_sum,accumulator=fp32", "sequential"), ("out",)), k=32
    )
    assert found.finding("accumulator").evidence.startswith("not asked: GEMM1 subtracts zero points")
    assert found.explained


def test_gemms_that_form_their_weights_differently_have_no_contract():
    found = infer(two_orders("moe_w4a16", "sequential", "sequential", late="et_vecmat,stores=h+a+y+out"), k=32)
    assert not found.explained
    assert "weight: GEMM1 shows cast, GEMM2 exact" in found.why_not


def test_an_order_of_gemm2_that_is_not_known_leaves_no_schedule_and_says_so():
    found = infer(two_orders("moe_w4a16", "sequential", "random1"), k=32)
    assert found.explained, found.why_not
    assert (found.contract.schedule, found.contract.gemm2_schedule) == (None, None)
    assert any("GEMM1 keeps fma; GEMM2's is not known" in note for note in found.notes)
    found = infer(two_orders("moe_w4a16", "random1", "sequential"), k=32)
    assert (found.contract.schedule, str(found.contract.gemm2_schedule)) == (None, "fma")


def test_a_kernel_that_takes_no_sizes_for_gemm2_is_told_so():
    kernel = simulated_kernel("moe_w4a16", FP32, "sequential")

    @dataclasses.dataclass(frozen=True)
    class Small(SimulatedKernel):
        def why_not(self, case):
            return "I must be 64, H at most 64" if case.I != 64 or case.H > 64 else super().why_not(case)

    found = infer(Small(kernel.op, kernel.name, kernel.fn, kernel.contract), k=64)
    assert any(note.startswith("GEMM2: not asked: the kernel takes no sizes H > I") for note in found.notes)
    assert found.contract.schedule is not None
    assert found.explained


def test_silu_that_does_not_let_values_through_is_unknown_and_no_crash():
    kernel = simulated_kernel("moe_w4a16", FP32, "sequential")
    wrong = Simulation(FP32, "sequential").replace_step("silu", lambda sim, right, gate: right(gate) * 1.01)
    for stages in (None, ("out",)):
        found = infer(showing(dataclasses.replace(kernel, fn=wrong.moe_w4a16), stages), k=32)
        assert not found.explained
        assert "layer: no combination of roundings" in found.why_not


@pytest.mark.parametrize("gate", ["fused", "unfused", "fp32"])
def test_where_a_shared_expert_s_gate_rounds_and_how_its_dot_is_added(gate):
    text = f"{FP32},gate={gate}"
    found = infer(simulated_kernel("shared_expert", text, "reversed"), k=64)
    assert found.explained, found.why_not
    assert found.contract.gate == gate
    assert str(found.contract.schedule) == "fma/reversed"
    assert str(found.contract.gate_schedule) == "fma/reversed"
    wrong = Simulation(text, "reversed").replace_step("sigmoid", lambda sim, right, dot: right(dot) * 0.99)
    assert not infer(SimulatedKernel(
        "shared_expert", "wrong", wrong.shared_expert, contract(text)), k=64).explained  # fmt: skip


def test_the_order_of_slots():
    def backwards(sim, right, terms, dtype, multiplied):
        return right(terms.flip(1), dtype, multiplied)

    for op in ("moe_w4a16", "moe_unpermute"):
        kernel = simulated_kernel(op, FP32, "sequential")
        assert str(infer(kernel, k=64).contract.sum_schedule) == "mul_add"
        other = Simulation(FP32, "sequential").replace_step("topk_sum", backwards)
        found = infer(dataclasses.replace(kernel, fn=getattr(other, op)), k=64)
        assert str(found.contract.sum_schedule) == "mul_add/reversed"
    found = infer(simulated_kernel("moe_unpermute", "gptq_awq"))
    assert (found.contract.topk_sum, found.contract.sum_schedule) == ("vllm", None)


def test_a_layer_whose_stages_are_stored_with_different_roundings():
    found = infer(simulated_kernel("moe_w4a16", "grouped,store_rounding=out:rtz"), k=64)
    assert found.explained, found.why_not
    assert [found.contract.rounding(stage, torch.bfloat16) for stage in ("h", "a", "y", "out")] == ["rne"] * 3 + ["rtz"]
    assert str(found.contract.sum_schedule) == "mul_add"


def test_a_stage_of_another_shape_is_an_error_of_one_line():
    kernel = simulated_kernel("moe_w4a16", "grouped")
    short = dataclasses.replace(kernel, fn=lambda *args: {**(got := kernel.fn(*args)), "out": got["out"][:, 1:]})
    with pytest.raises(ProbeError, match=r"stage out has shape \[\d+, 511\], must be \[\d+, 512\]"):
        infer(short)


def test_small_ops():
    for text in ("grouped", "et_batched", "grouped,store_rounding=rtz"):
        found = infer(simulated_kernel("silu_and_mul", text))
        assert (found.contract.silu, found.contract.store_rounding) == (
            contract(text).silu,
            contract(text).store_rounding,
        )
    wrong = Simulation("grouped").replace_step("silu", lambda sim, right, gate: torch.relu(gate))
    found = infer(dataclasses.replace(simulated_kernel("silu_and_mul"), fn=wrong.silu_and_mul))
    assert not found.explained
    assert "silu: no rounding predicts the outputs" in found.why_not
    found = infer(simulated_kernel("tiny_dot", FP32, "lanes"), k=512)
    assert (str(found.contract.schedule), found.nearest) == ("fma/lanes32x8", "grouped")


def test_what_a_kernel_declares_is_held_against_its_bits():
    found = infer(two_orders("moe_w4a16", "sequential", "pairwise"), k=64)
    right = f"{FP32},schedule=fma,gemm2_schedule=fma/pairwise,sum_schedule=mul_add"
    wrong = f"{FP32},schedule=fma/reversed,sum_schedule=fma"
    sites = (found.site, found.second.site)
    assert [row[2] for row in compare(found, dict.fromkeys(sites, right))] == ["predicts every bit"] * 3
    assert [row[2] for row in compare(found, dict.fromkeys(sites, wrong))] == ["does not predict the bits"] * 3
