"""A whole trial: whatever a kernel does wrong ends as a verdict of the right tier, with a true line."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.common.verdict import Verdict, failed
from moeracle.properties.faults import FAULTS
from moeracle.properties.simulate import simulated_kernel
from moeracle.properties.suite import test_cases as fixed_cases
from moeracle.properties.suite.outcome import Subject
from moeracle.properties.trial import trial as module
from moeracle.properties.trial.trial import run_trial
from moeracle.target.declaration import make_kernel
from support.planted import LAYER, LINEAR, Kernel, trial
from support.simulate import Simulated


def half_unwritten(right, args, call):
    out = torch.empty_like(right)
    out[: len(out) // 2] = right[: len(out) // 2]
    return out


def test_f01_half_of_the_output_never_written():
    verdict = trial(half_unwritten)
    assert (verdict.tier, verdict.stage, verdict.illegal) == ("nonfinite", "out", 48)
    assert verdict.summary[0].startswith("48 of 96 elements illegal; worst out[token 3, n 0]: got nan, legal [")
    assert verdict.summary[1] == "first bad column 0, every element of tokens from 3 on"
    assert verdict.summary[2] == "would pass at: no contract | no atol"


def test_f01_in_a_stage_of_a_layer():
    def broken(right, args, call):
        h = torch.empty_like(right["h"])
        h[:, :48] = right["h"][:, :48]
        return {**right, "h": h}

    verdict = trial(broken, LAYER, stages="hay")
    assert (verdict.tier, verdict.stage) == ("nonfinite", "h")
    assert verdict.summary[1] == "first bad column 48, every element of columns from 48 on"


def past_the_end(t, count=8):
    return t.as_strided((count,), (1,), t.storage_offset() + t.numel())


WRITES = {
    "x": (lambda a: a[0].zero_(), "x"),
    "codes": (lambda a: a[1].packed.add_(1), "w.packed"),
    "scales": (lambda a: a[1].scale.mul_(2), "w.scale"),
    "past x": (lambda a: past_the_end(a[0]).zero_(), "x (outside of it)"),
    "past codes": (lambda a: past_the_end(a[1].packed).zero_(), "w.packed (outside of it)"),
}


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize("run", [1, 2])
def test_writes_into_inputs_and_around_them(what, run):
    write, name = WRITES[what]

    def broken(right, args, call):
        if call == run:
            write(args)
        return right

    verdict = trial(broken)
    assert (verdict.tier, verdict.summary) == ("inputs", [f"wrote into its input {name}; inputs must be unchanged"])


def test_reading_past_the_end_shows():
    def broken(right, args, call):
        right[-1, :8] += past_the_end(args[0]) * 0
        return right

    verdict = trial(broken)
    assert (verdict.tier, verdict.illegal) == ("nonfinite", 8)
    assert verdict.summary[1] == "first bad column 0, every element of columns 0-7 of token 5"


def test_f04_a_k_tail_read_without_a_mask():
    case = Case.parse("int4_linear/T6-N16-K40-G8/bf16/exllama-sym/-/normal/s1")

    def broken(right, args, call):
        x, w, _ = args
        tail = x.as_strided(
            (6, 8), (40, 1), x.storage_offset() + 40
        )  # the next row's first columns; NaN after the last
        return (right.float() + tail.float() @ w.dequantize()[:, :8].T).to(x.dtype)

    verdict = trial(broken, case)
    assert verdict.tier == "nonfinite"
    assert verdict.illegal > 80


def test_an_unstable_result_is_not_deterministic():
    def broken(right, args, call):
        right[2, 3] += 0.25 * (call - 1)
        return right

    verdict = trial(broken)
    assert (verdict.status, verdict.tier, verdict.stage, len(verdict.summary)) == ("illegal", "determinism", "out", 3)
    assert verdict.summary[1] == "the first run is legal (fresh memory held NaN), the second not legal (3)"
    assert verdict.summary[2] == "looks like: none of the known faults"
    assert verdict.summary[0].startswith("second run gave other bits in 1 of 96 elements, first at [2, 3]: ")
    assert verdict.stages[0].illegal == 0


def test_memory_read_before_it_was_written():
    def hidden(right, args, call):
        return right + torch.empty_like(right).nan_to_num() * 0.125  # 0 where it was NaN, else not

    assert trial(hidden).tier == "determinism"
    assert trial(lambda r, a, c: r + torch.empty_like(r)).tier == "nonfinite"


def test_an_output_whose_memory_is_used_again_is_judged_as_it_was():
    cache = {}

    def broken(right, args, call):
        out = cache.setdefault("out", torch.zeros_like(right))
        out.copy_(right if call == 2 else right * 2)
        return out

    assert trial(broken).status == "illegal"


def test_the_form_must_not_change_from_run_to_run():
    verdict = trial(lambda r, a, c: r if c == 1 else r.float())
    assert verdict.tier == "determinism"
    assert verdict.summary[0] == ("first run returned out torch.bfloat16 [6, 16]; second run out torch.float32 [6, 16]")
    nowhere = trial(lambda r, a, c: r if c == 1 else None, rules="grouped,deterministic=false")
    assert nowhere.tier == "determinism"


def test_a_contract_may_allow_another_result_each_time_and_both_are_judged():
    case = LINEAR.replace(T=16)
    swap = lambda order: lambda r, a, c: Simulated("int4_linear", "grouped", order[c - 1]).fn(*a)
    orders = ("sequential", "truncating")
    free = "grouped,deterministic=false"
    wide = Case.parse("int4_linear/T40-N64-K256-G32/bf16/exllama-sym/-/samesign/s1").replace(data="cancelling")
    assert run_trial(Kernel(wide, swap(orders)), wide).tier == "determinism"
    assert run_trial(Kernel(wide, swap(orders), free), wide).ok
    wrong_later = lambda r, a, c: r if c == 1 else r * 2
    verdict = run_trial(Kernel(case, wrong_later, free), case)
    assert (verdict.status, verdict.tier) == ("illegal", "interval")


@pytest.mark.parametrize(
    "text",
    [
        "moe_w4a16/T9-E4-k2-H32-I32-G16/bf16/exllama-sym/ignored/normal/s4",
        "grouped_gemm/T7-E5-k2-N16-K32-G16/bf16/exllama-sym/ignored+ep2/normal/s2",
    ],
)
def test_rows_that_mean_nothing_may_differ_from_run_to_run(text):
    case = Case.parse(text)

    def untouched(right, args, call):
        """Leave the rows of ignored slots as torch.empty gave them."""
        for t in right.values() if isinstance(right, dict) else [right]:
            t[t.isnan()] = torch.empty(1, dtype=t.dtype)
        return right

    verdict = run_trial(Kernel(case, untouched, stages="hay"), case)
    assert verdict.ok, verdict.text()


def test_ids_may_come_in_another_order_each_time():
    from moeracle.ref.ops.moe_permute import moe_align_block_size

    case = Case.parse("moe_align_block_size/T13-E5-k3-B4/-/-/uniform/-/s4")

    class Align(Simulated):
        calls = 0

        def moe_align_block_size(self, *args):
            self.calls += 1
            ids, experts, end = moe_align_block_size(*args)
            if self.calls == 2:
                ids[:2] = ids[:2].flip(0)
            return ids, experts, end

    assert run_trial(Align("moe_align_block_size"), case).ok


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1.0])
def test_f25_constant_outputs(value):
    for case, stages in ((LINEAR, None), (LAYER, None)):
        verdict = trial(lambda r, a, c: torch.full_like(r, value), case, stages=stages)
        assert verdict.status == "illegal"
        assert verdict.tier == ("interval" if value in (0.0, 1.0) else "nonfinite")
        assert verdict.illegal >= 0.9 * verdict.judged
        if value == 0:
            assert verdict.summary[2].endswith("(vacuous: zeros pass too)")


def test_a_skipped_case_is_neither_right_nor_wrong():
    kernel = Simulated("int4_linear")
    kernel.why_not = lambda case: "K must be a multiple of 64"
    verdict = run_trial(kernel, LINEAR)
    assert (verdict.status, verdict.reason, verdict.ok, verdict.judged) == (
        "skipped",
        "K must be a multiple of 64",
        False,
        0,
    )


def test_an_absent_device_is_the_callers_mistake():
    with pytest.raises(ValueError, match="device"):
        run_trial(Simulated("int4_linear"), LINEAR, device="cuda:99")


def test_a_trial_names_kernel_contract_and_time():
    verdict = run_trial(Simulated("int4_linear"), LINEAR)
    assert (verdict.kernel, verdict.contract, verdict.status) == ("simulated", "grouped", "legal")
    assert verdict.seconds > 0


ABSURD = "grouped,depth=100000000,weight=hoisted,accumulator=dtype,zero_offset=128"


@pytest.mark.parametrize(
    ("rules", "status", "tier"), [(ABSURD, "illegal", "contract"), ("grouped,accumulator=dtype", "vacuous", "")]
)
def test_a_contract_that_judges_nothing_is_the_kernels_fault_and_a_weak_case_is_not(rules, status, tier):
    case = Case.parse("int4_linear/T9-N40-K128-G32/bf16/exllama-sym/-/normal/s0")
    verdict = trial(lambda right, args, call: torch.zeros_like(right), case, rules=rules)
    assert (verdict.status, verdict.tier) == (status, tier), verdict.text()
    assert verdict.reason.endswith("it judges nothing" if tier else "too little signal to judge by")


def test_bits_that_were_judged_before_are_not_judged_again_and_no_others(monkeypatch):
    judged, known, judge = [], {}, module.judge_output
    monkeypatch.setattr(
        module, "judge_output", lambda *args, **more: judged.append(args[0].case) or judge(*args, **more)
    )
    case = Case.parse("int4_linear/T3-N16-K64-G32/bf16/exllama-sym/-/normal/s1")
    right, wrong = simulated_kernel("int4_linear"), FAULTS["F29"].kernel("int4_linear")
    first, again = (run_trial(kernel, case, known=known) for kernel in (right, replace(right, name="other")))
    assert len(judged) == 1
    assert (again.status, again.kernel, again.stages) == ("legal", "other", first.stages)
    for _ in range(2):
        assert run_trial(wrong, case, known=known).status == "illegal"
    assert len(judged) == 3
    run_trial(right, case.replace(seed=2), known=known)
    run_trial(simulated_kernel("int4_linear", "grouped,depth=13"), case, known=known)
    run_trial(right, case)
    assert len(judged) == 6


def test_under_pytest_only_the_first_failure_of_a_kernel_is_explained():
    explained = []

    def run(kernel, case, *, device, explain):
        explained.append(explain)
        return failed(Verdict(case.op, str(case)), "bits", "out", "wrong")

    kernel = make_kernel(len, "int4_linear", layout="exllama", name="mine")
    subject = Subject(kernel, "mine.py", lambda kernel: (kernel, run))
    request = SimpleNamespace(node=SimpleNamespace(user_properties=[]))
    for seed in range(3):
        with pytest.raises(pytest.fail.Exception, match="wrong"):
            fixed_cases.test_case(request, subject, LINEAR.replace(seed=seed))
    assert explained == [True, False, False]
