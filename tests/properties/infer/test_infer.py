"""Inference on simulated kernels: what outputs can tell is recovered exactly, and a wrong kernel is called unknown."""

import dataclasses

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.record import record_of
from moeracle.properties.infer import ProbeError, infer
from moeracle.properties.infer.calls import Calls
from moeracle.properties.infer.drive import Dots, find_site, site_of
from moeracle.properties.infer.fit import ask_noise
from moeracle.properties.simulate import LEGAL, SimulatedKernel, Simulation, simulated_kernel
from moeracle.properties.simulate.orders import ACCUMULATOR
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.contracts.contract import Contract, contract

# What each order of simulate/orders.py is, whatever its contract allows. Orders that call the BLAS keep its own.
SCHEDULE = {
    "sequential": "fma",
    "reversed": "fma/reversed",
    "pairwise": "fma/pairwise",
    "lanes": "fma/lanes32x8",
    "hopper": "wgmma.k16.sm90",
    "ampere": "mma.m16n8k16.sm80",
    "truncating": "fma.rz",
}
OF_GEMM = ("weight", "store_rounding", "ftz", "one_group")
ORDER_OF_GROUPS = ("post", "hoisted")  # simulated one scale group at a time: the order depends on G


def checked(found, truth, op):
    for name in OF_GEMM:
        assert getattr(found.contract, name) == getattr(truth, name), name
    # Only the top-k sum takes slots in any order: an op without one repeats its bits.
    of_slots = truth.slot_order == "any" and "slot_order" not in record_of(op).inferred
    sizes = Case.parse(found.site).sizes
    every = torch.arange(sizes.get("K", sizes.get("H", 0)))
    in_one_part = truth.parts is not None and len(truth.parts.inputs(len(every))) == 1  # K is too short to be cut
    assert found.contract.deterministic == (truth.deterministic or of_slots or in_one_part)
    if in_one_part:
        assert found.contract.parts is None
    elif truth.parts is not None and truth.parts.kept == "dtype":  # by number or by length: the same at these sizes
        parts = found.contract.parts
        inputs, true = ([every[part].tolist() for part in p.inputs(len(every))] for p in (parts, truth.parts))
        assert (inputs, parts.kept, parts.add) == (true, "dtype", truth.parts.add)
    if truth.weight == "cast":
        assert found.contract.weight_rounding == truth.weight_rounding
    if truth.weight == "hoisted":
        assert found.contract.zero_offset == truth.zero_offset
    assert found.explained, found.why_not
    assert contract(found.text) == found.contract  # the text to paste is the contract


def cut_in_fp32(rules):
    """Say whether K is cut into parts that leave no mark but their order: a schedule of tiles is the same function."""
    return rules.parts is not None and (rules.parts.kept, rules.parts.add) == ("fp32", "fp32")


def predicts_as_its_parts_do(kernel, found, of_part):
    """Hold that what was found and the kernel's own parts predict every bit, here and at another K; one part does not.

    Args:
        kernel: its contract has parts.
        found: by infer.
        of_part: the schedule of one part.
    """
    dots = Dots(Calls(kernel), site_of(Case.parse(found.site)))
    own = dataclasses.replace(kernel.contract, schedule=Schedule.parse(of_part), accumulator=found.contract.accumulator)
    uncut = dataclasses.replace(own, parts=None)
    sizes = [dots, *(other for name, other in dots.others())]
    assert len(sizes) > 1
    for at in sizes:
        noise = ask_noise(at, 7, spread=6)
        assert [noise.share(rules) for rules in (found.contract, own)] == [1.0, 1.0]
        assert noise.share(uncut) < 1.0


@pytest.mark.parametrize(("text", "order"), LEGAL)
def test_a_gemm_of_every_legal_kernel(text, order):
    kernel = simulated_kernel("grouped_gemm", text, order)
    # Scaled sums are of two groups at K = 64, and every order adds two alike.
    found = infer(kernel, k=128 if kernel.contract.weight in ORDER_OF_GROUPS else 64)
    checked(found, kernel.contract, "grouped_gemm")
    assert found.contract.accumulator == ACCUMULATOR.get(order, "fp32")
    regular = order in SCHEDULE and kernel.contract.weight not in ORDER_OF_GROUPS
    if regular and cut_in_fp32(kernel.contract):
        predicts_as_its_parts_do(kernel, found, SCHEDULE[order])
    elif regular:
        assert str(found.contract.schedule) == SCHEDULE[order]
    elif order in SCHEDULE or order.startswith("random") or order in ("ftz", "eights"):
        assert found.contract.schedule is None
        assert found.notes or found.finding("schedule").status == "undecided"


LAYERS = (
    ("grouped,accumulator=hopper", "hopper"),
    ("grouped,router_weight=input,accumulator=fp32", "sequential"),
    ("gptq_awq,accumulator=fp32", "sequential"),
    ("marlin,accumulator=fp32", "sequential"),
    ("megakernel_sum,accumulator=fp32", "sequential"),
    ("et_vecmat", "sequential"),
    ("et_batched,accumulator=fp32", "pairwise"),
    ("gptq_awq,accumulator=dtype,deterministic=false", "eights"),
    ("grouped,topk_sum=dtype,accumulator=fp32", "sequential"),
    ("grouped,accumulator=fp32,ftz=true", "ftz"),
)


@pytest.mark.parametrize(("text", "order"), LAYERS)
def test_the_layer_of_a_legal_kernel(text, order):
    kernel = simulated_kernel("moe_w4a16", text, order)
    found = infer(kernel, k=64)
    truth = kernel.contract
    checked(found, truth, "moe_w4a16")
    for name in ("stores", "silu", "topk_sum"):
        assert getattr(found.contract, name) == getattr(truth, name), name
    # y is not stored by the megakernels: multiplying in GEMM2 or in the sum is then the same thing, and is said to be.
    same = found.finding("router_weight")
    assert truth.router_weight in (found.contract.router_weight, *same.same)
    if "y" in truth.stores:
        assert found.contract.router_weight == truth.router_weight
        assert not same.same
    assert found.nearest == text.partition(",")[0]


def test_the_router_weight_of_a_padded_gemm():
    for text, value in (("gptq_awq,accumulator=fp32", "gemm2"), ("marlin,accumulator=fp32", "gemm2_dtype")):
        found = infer(simulated_kernel("padded_gemm", text, "sequential"), k=64)
        assert (found.contract.router_weight, found.nearest) == (value, text.partition(",")[0])


def test_int4_linear_in_fp16_and_int8_lm_head():
    found = infer(simulated_kernel("int4_linear", "grouped,accumulator=hopper", "hopper"), k=64, dtype="fp16")
    assert str(found.contract.schedule) == "wgmma.k16.sm90"
    assert found.finding("ftz").status == "undecided"
    found = infer(simulated_kernel("int4_linear", "wmma,accumulator=fp32,zero_offset=1024"), k=32, dtype="fp16")
    assert (found.contract.weight, found.contract.zero_offset) == ("hoisted", 1024)
    found = infer(simulated_kernel("int8_lm_head", None, "sequential"), k=64)
    assert (found.contract.weight, found.contract.accumulator, found.nearest) == ("post", "fp32", "int8_lm_head")
    assert found.order == "16 one after another, then 4 one after another"


def test_the_fused_scale_is_told_from_the_rounded_one():
    rules = Contract("scaled", weight="post", accumulator="fp32", schedule=Schedule.parse("fma/t32/fused"))
    kernel = simulated_kernel("int4_linear", rules)

    def scheduled(x, w, bias):
        from moeracle.ref.bounds.dot import dot_weights
        from moeracle.ref.bounds.scheduled import scheduled_dot

        return scheduled_dot(x, dot_weights(w, rules, x.dtype).operands, rules, x.dtype).to(x.dtype)

    found = infer(dataclasses.replace(kernel, fn=scheduled), k=128)
    assert str(found.contract.schedule) == "fma/t32/fused"


@pytest.mark.parametrize("text", ["wgmma.k16.sm90/t64/bits1.2.16.32.4.8/scalelast/biasfused", "fma/pairwise/scalelast"])
def test_one_scale_a_row_that_enters_last_with_or_without_the_bias(text):
    schedule = Schedule.parse(text)

    def lm_head(x, codes, scale, bias):
        from moeracle.ref.bitmodels.accumulate import accumulate

        b = bias if schedule.bias_fused else None
        sums = accumulate(x, codes.to(x.dtype), schedule, scale=scale.reshape(len(scale), -1), bias=b)
        return (sums if bias is None or b is not None else sums + bias.float()).to(x.dtype)

    found = infer(dataclasses.replace(simulated_kernel("int8_lm_head"), fn=lm_head), k=128, group=-1)
    assert found.explained, found.why_not
    assert (found.contract.weight, str(found.contract.schedule)) == ("post", text)


def planted(fn):
    kernel = simulated_kernel("grouped_gemm", "grouped,accumulator=fp32", "sequential")
    right = kernel.fn
    return dataclasses.replace(kernel, fn=lambda *args: fn(right, *args))


def test_a_kernel_of_no_contract_is_unknown_with_the_nearest_named():
    off_by_an_ulp = planted(lambda right, *args: right(*args) * 1.0078125)
    found = infer(off_by_an_ulp, k=64)
    assert not found.explained
    assert found.nearest in ("grouped", "et_vecmat")
    assert "weight path" in found.why_not
    assert "nearest" in found.why_not


def test_a_fault_outside_the_probes_is_seen_by_the_random_cases():
    # Right for a call with one expert, as probes are; wrong for more.
    wrong = planted(lambda right, x, w, offsets: right(x, w, offsets) * (1 if len(offsets) == 2 else 1.25))
    found = infer(wrong, k=64)
    assert not found.explained
    assert "elements illegal" in found.why_not


def test_a_schedule_that_does_not_hold_elsewhere_is_dropped():
    other = Simulation("grouped,accumulator=fp32", "reversed")
    by_rows = planted(lambda right, *args: right(*args) if len(args[0]) == 256 else other.grouped_gemm(*args))
    found = infer(by_rows, k=64)
    assert found.explained
    assert found.contract.schedule is None
    assert any("the order depends on the sizes" in note for note in found.notes)


@pytest.mark.parametrize(("other", "schedule"), [("hopper", "wgmma.k16.sm90"), ("reversed", "None")])
def test_a_schedule_is_kept_where_one_scale_a_row_enters_late_only_if_it_predicts_that_too(other, schedule):
    kernel = simulated_kernel("grouped_gemm", "vllm@0.33:marlin", "hopper")
    right, whole = kernel.fn, Simulation("vllm@0.33:marlin", other).grouped_gemm
    by_groups = dataclasses.replace(kernel, fn=lambda x, w, o: (whole if w.G == w.K else right)(x, w, o))
    found = infer(by_groups, k=128)  # so that half of K has two groups
    assert found.explained, found.why_not
    assert (found.contract.one_group, str(found.contract.schedule)) == ("after_store", schedule)
    known = found.finding("schedule")
    assert (str(known.value), known.status) == (schedule, "undecided" if schedule == "None" else "measured")


def test_bad_requests_are_one_line():
    kernel = simulated_kernel("grouped_gemm")
    for request, said in (
        ({"k": 12}, "k: got 12"),
        ({"k": 100}, "k: got 100"),
        ({"dtype": "fp8"}, "dtype: got fp8"),
        ({"zero": "rdan"}, "did you mean 'rdna'"),
        ({"rows": 0}, "rows: got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            infer(kernel, **request)
    with pytest.raises(ValueError, match="infer op"):
        infer(simulated_kernel("topk_softmax"))
    refusing = type("Refusing", (SimulatedKernel,), {"why_not": lambda self, case: "never"})
    refusing = refusing(kernel.op, "none", kernel.fn, kernel.contract)
    with pytest.raises(ValueError, match=r"takes none of the sizes .*never"):
        find_site(refusing)


@pytest.mark.parametrize("wrong", ["return None", "1/0", "x[:, :1]", "x.to('meta')"])
def test_a_kernel_that_does_not_answer_is_one_line(wrong):
    namespace = {}
    body = wrong if wrong.startswith("return") else f"return {wrong}"
    exec(f"def fn(x, w, offsets):\n    {body}", namespace)
    kernel = dataclasses.replace(simulated_kernel("grouped_gemm"), fn=namespace["fn"])
    with pytest.raises(ProbeError):
        infer(kernel, k=64)


def test_a_wrong_stage_shape_is_one_line():
    kernel = simulated_kernel("moe_w4a16", "grouped,accumulator=fp32", "matmul")
    right = kernel.fn

    def cut(*args):
        stages = right(*args)
        return {**stages, "y": stages["y"][:, :1]}

    with pytest.raises(ProbeError, match="stage y"):
        infer(dataclasses.replace(kernel, fn=cut), k=64)


def test_probing_does_not_depend_on_torch_s_random_state():
    kernel = simulated_kernel("grouped_gemm", "grouped,accumulator=fp32", "pairwise")
    torch.manual_seed(1)
    first = infer(kernel, k=64)
    torch.manual_seed(2)
    second = infer(kernel, k=64)
    assert (first.text, first.rows, first.picture) == (second.text, second.rows, second.picture)
