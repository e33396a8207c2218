"""Statistics: what every legal set hides shows in the mean; no legal kernel drifts; numbers as derived."""

import math
from dataclasses import replace

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.common.drift import FALSE_ALARM, LEAST, THRESHOLD, Drift, Errors
from moeracle.properties.common.verdict import StageResult, Verdict
from moeracle.properties.compare.statistics import errors_of, measure
from moeracle.properties.hunt.effort import HuntResult
from moeracle.properties.hunt.hunt import hunt
from moeracle.properties.hunt.pooled import check_pooled
from moeracle.properties.hunt.search import Judge
from moeracle.properties.judge import judge
from moeracle.properties.simulate import LEGAL, Simulation, simulated_kernel
from moeracle.properties.trial.trial import run_trial
from moeracle.ref.bounds.band import Band
from moeracle.ref.contracts.contract import Contract, contract
from moeracle.ref.rounding import round_in_fp64

WIDE = Case.of("int4_linear", T=32, N=64, K=2048, G=128, dtype="fp16", seed=3)
FP32 = "grouped,accumulator=fp32"
NEAREST = Errors(0.0, 0.01)
RTZ = Contract("rtz", store_rounding="rtz")
ANY = Contract("any")


def truncated_store(sim, base, value, dtype, stage):
    return round_in_fp64(value.double(), dtype, "rtz").to(dtype)


def truncated_weights(sim, base, values, dtype):
    return round_in_fp64(values.double(), dtype, "rtz").float()


def steeper(sim, base, gate):
    return gate / (1 + torch.exp(-1.005 * gate))


def verdict_of(case, rules, order="matmul", step=None, fn=None):
    problem = case.build()
    simulation = Simulation(rules, order)
    if step:
        simulation.replace_step(step, fn)
    return judge(problem, getattr(simulation, case.op)(*problem.args.values()), rules, explain=False)


@pytest.mark.parametrize("rules", [FP32, "grouped", "grouped,accumulator=hopper"])
@pytest.mark.parametrize(
    ("step", "fn"), [("store", truncated_store), ("cast", truncated_weights)], ids=["F42 store", "F43 weights"]
)
def test_truncation_that_every_legal_set_hides_is_seen(rules, step, fn):
    verdict = verdict_of(WIDE, rules, step=step, fn=fn)
    stage = verdict.stages[0]
    assert (verdict.status, verdict.tier, verdict.stage, verdict.illegal) == ("illegal", "statistics", "out", 0)
    assert stage.width_ulp >= 6  # nothing else could have seen it
    assert stage.drift.z_bias < -THRESHOLD
    assert "toward zero" in verdict.reason
    assert f"n = {stage.drift.tested:,}" in verdict.reason
    assert "threshold |z| > 6" in verdict.reason
    assert "false alarms 3e-09" in verdict.reason
    correct = verdict_of(WIDE, rules)
    assert correct.status == "legal"
    assert correct.stages[0].drift.tested == stage.drift.tested >= LEAST
    assert correct.stages[0].drift.max_z < 0.5


@pytest.mark.parametrize("order", ["truncating", "hopper", "ampere"])
def test_what_truncating_adders_lose_is_allowed(order):
    """Their mean is not 0: with no allowance this would be an alarm, at this n or a few times it."""
    verdict = verdict_of(WIDE, f"grouped,accumulator={order}", order)
    drift = verdict.stages[0].drift
    assert verdict.status == "legal"
    assert drift.bias < 0
    assert abs(drift.bias) < drift.allowed < 0.25 * drift.tested
    if order == "truncating":
        undeclared = verdict_of(WIDE, FP32, order)  # a contract of nearest additions does not allow it
        assert undeclared.stages[0].drift.z_bias < -4


def test_a_legal_layer_of_every_contract_and_order_does_not_drift():
    for dtype, data in (("fp16", "normal"), ("bf16", "wide"), ("fp16", "outliers")):
        case = Case.of("moe_w4a16", T=16, E=4, k=3, H=256, I=128, G=32, dtype=dtype, data=data, seed=5)
        problem, tested = case.build(), 0
        for rules, order in LEGAL:
            output = Simulation(rules, order).moe_w4a16(*problem.args.values())
            verdict = judge(problem, output, rules, explain=False)
            tested += sum(stage.drift.tested >= LEAST for stage in verdict.stages)
            assert verdict.status != "illegal", (rules, order, verdict.reason)
            assert max(stage.drift.max_z for stage in verdict.stages) < 2.65, (rules, order)
        assert tested > 2 * len(LEGAL)


def drift_of(errors, mid, radius, got, rules=ANY, dtype=torch.float16):
    return measure(errors, Band(mid - radius, mid + radius), got, rules, dtype)


def uniform(n=20_000, seed=0):
    """Values in [1, 2), both signs, and their ulp in fp16."""
    g = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, (100, n // 100), generator=g) * 2.0 - 1
    return (1 + torch.rand(100, n // 100, generator=g, dtype=torch.float64)) * sign, 2.0**-10


@pytest.mark.parametrize("rules", [ANY, RTZ], ids=["rne", "rtz"])
def test_shares_of_noise_are_as_derived(rules):
    """D has mean e and mean square |e|; the excess of squares is e^2 with less variance than allowed."""
    y, step = uniform()
    g = torch.Generator().manual_seed(1)
    for e in (0.02, 0.1, 0.4):
        noise = (torch.rand(y.shape, generator=g, dtype=torch.float64) * 2 - 1) * e * step
        got = round_in_fp64(y + noise, torch.float16, rules.store_rounding)
        errors = Errors(0.0, 1 / math.sqrt(3))
        drift = drift_of(errors, y, torch.full_like(y, e * step), got, rules)
        right = round_in_fp64(y, torch.float16, rules.store_rounding)
        flips = float((got != right).double().mean())
        assert flips == pytest.approx(e / 2, rel=0.15)  # E|e|
        assert drift.spread / drift.tested == pytest.approx(e * e / 3)
        assert drift.max_z < 3
        if rules is ANY:
            assert drift.excess / drift.tested == pytest.approx(e * e / 3, rel=0.2, abs=2e-4)
        shifted = round_in_fp64(y + 0.2 * step * y.sign(), torch.float16, rules.store_rounding)
        bias = drift_of(NEAREST, y, torch.full_like(y, step), shifted, rules)
        assert bias.bias / bias.tested == pytest.approx(0.2, rel=0.1)
        assert bias.z_bias == pytest.approx(0.2 * math.sqrt(12 * bias.tested), rel=0.1)  # mean * sqrt(12 n)


def test_noise_without_a_mean_is_seen_by_the_squares():
    y, step = uniform()
    g = torch.Generator().manual_seed(2)
    noise = (torch.rand(y.shape, generator=g, dtype=torch.float64) * 2 - 1) * step
    drift = drift_of(NEAREST, y, torch.full_like(y, step), round_in_fp64(y + noise, torch.float16))
    assert abs(drift.z_bias) < 4
    assert drift.z_rms > 100
    assert drift.excess / drift.tested == pytest.approx(1 / 3, rel=0.05)
    assert "mean square" in drift.complaint
    assert drift_of(NEAREST, y, torch.full_like(y, step), y, RTZ).z_rms == 0  # not where stores truncate


def test_ties_representable_values_repeats_and_truncating_stores_do_no_harm():
    y, step = uniform()
    discrete = (y / step).round() * step + torch.randint(0, 4, y.shape) / 4 * step  # a quarter of them ties
    repeated = y[:1, :7].expand(400, 7).contiguous()
    for values, rules in ((discrete, ANY), (repeated, ANY), (discrete, RTZ), (y, RTZ), (repeated, RTZ)):
        got = round_in_fp64(values, torch.float16, rules.store_rounding)
        drift = drift_of(NEAREST, values, torch.full_like(values, step), got, rules)
        assert drift.tested == values.numel()
        assert drift.bias == drift.excess == 0


def test_what_is_counted():
    one = torch.ones(1, 500, dtype=torch.float64)
    step = 2.0**-10
    assert drift_of(NEAREST, one, 0 * one, one).tested == 0  # one legal value
    assert drift_of(NEAREST, one, step * one, one).tested == 500
    assert drift_of(Errors(0.4, 0.2), one, step * one, one).tested == 0  # too noisy
    assert drift_of(NEAREST, 1e-26 * one, 1e-28 * one, 1e-26 * one, dtype=torch.bfloat16).tested == 0
    assert drift_of(NEAREST, one, step * one, one * torch.nan).tested == 0
    assert drift_of(NEAREST, one * 60000, step * one, one * 60000).tested == 0  # next to overflow
    few = drift_of(NEAREST, one[:, : LEAST - 1], step * one[:, : LEAST - 1], one[:, : LEAST - 1] + step)
    enough = drift_of(NEAREST, one[:, :LEAST], step * one[:, :LEAST], one[:, :LEAST] + step)
    assert (few.z_bias, few.z_rms, few.complaint) == (0, 0, "")
    assert enough.z_bias == pytest.approx(math.sqrt(12 * LEAST))
    assert few.plus(enough) == few._replace(
        tested=2 * LEAST - 1, **{f: getattr(few, f) + getattr(enough, f) for f in Drift._fields[1:]}
    )
    assert pytest.approx(2.96e-9, rel=0.01) == FALSE_ALARM  # two-sided and one-sided 6


def test_where_no_test_applies():
    linear = Case.of("int4_linear", T=4, N=8, K=64, G=32)
    for data in ("integers", "samesign", "onehot", "cancelling", "stagnation", "subnormal"):
        assert errors_of(linear.replace(data=data), ANY) is None
    moe = Case.of("moe_w4a16", T=4, E=2, k=2, H=64, I=32, G=32)
    assert errors_of(moe, ANY, "a") is None  # silu rounded first
    assert errors_of(moe, contract("et_batched"), "a") == Errors(1.0, 0.0)
    assert errors_of(moe, contract("marlin"), "y") is None
    assert errors_of(moe, contract("marlin"), "h") is not None
    assert errors_of(Case.of("dequantize_int4", N=8, K=64, G=32), ANY) is None
    hoisted = errors_of(linear, contract("wmma"))
    assert hoisted.loss == math.inf  # its partial sums are larger than its results
    assert errors_of(linear, contract(FP32)).systematic == 0
    assert errors_of(linear, ANY).loss == 64 * 2.0**-24


def test_stages_judged_end_to_end_are_not_tested():
    case = Case.of("moe_w4a16", T=64, E=2, k=2, H=64, I=64, G=32, dtype="fp16")
    problem = case.build()
    stages = Simulation(FP32).moe_w4a16(*problem.args.values())
    whole = judge(problem, stages, FP32)
    alone = judge(problem, {"out": stages["out"]}, FP32)
    assert whole.stages[-1].drift.tested > LEAST
    assert alone.stages[-1].drift == Drift()
    assert {"tested", "z_bias", "z_rms"} <= set(whole.as_dict()["stages"][0])


def test_a_slope_of_silu_inside_its_own_bound_is_legal_and_beyond_it_is_seen():
    case = Case.of("silu_and_mul", T=64, I=64, dtype="fp16")
    assert verdict_of(case, "et_batched").status == "legal"
    assert verdict_of(case, "et_batched", step="silu", fn=steeper).status == "illegal"


def test_a_pool_shows_what_no_small_case_can():
    """Cases of 128 elements whose legal sets hide a truncating store: too few each, enough together."""
    truncating = Simulation(FP32).replace_step("store", truncated_store).int4_linear
    kernel = replace(simulated_kernel("int4_linear", FP32), fn=truncating)
    small = [WIDE.replace(T=2, seed=seed) for seed in range(8)]
    for fn in (kernel.fn, simulated_kernel("int4_linear", FP32).fn):
        judge_one = Judge(replace(kernel, fn=fn), run_trial, HuntResult("", "", None, "", "", 0, 0), 1.0)
        for case in small:
            verdict = judge_one(case)
            assert verdict.status == "legal"
            assert verdict.stages[0].drift.tested < LEAST
        failure = check_pooled(judge_one)
        if fn is not truncating:
            assert failure is None
        else:
            assert (failure.tier, failure.stage) == ("statistics", "out")
            assert "/T1024-" in failure.case.replace("int4_linear/", "/")  # larger, so that its replay shows the same


def test_a_hunt_looks_at_its_pool_and_names_a_case_where_no_larger_one_fails():
    kernel = simulated_kernel("int4_linear", FP32, dtypes=("fp16",))
    drift = Drift(300, -0.13 * 300, 0.0, 300 / 12, 0.0, 0.0, 300 / 180)  # z = -7.8, but fewer than LEAST

    def run(kernel, case, **options):
        small = case.sizes["T"] < 1024
        stage = StageResult("out", 300, drift=drift if small else Drift())
        return Verdict(case.op, str(case), kernel.name, stages=[stage])

    failure = hunt(kernel, examples=0, laws=False, run=run).failures[0]
    assert failure.tier == "statistics"
    assert "T1024" not in failure.case
    assert "cases together" in failure.summary[1]
    legal = hunt(kernel, examples=0, laws=False)
    assert legal.status == "legal", legal.failures
