"""Exact cases leave nothing out: every weight, column, nibble position and gate; and they see what they are for."""

from dataclasses import dataclass

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS, ZERO_LAYOUT
from moeracle.properties.hunt.must_run import SIZES, must_run
from moeracle.properties.judge import judge
from moeracle.properties.simulate import ALL_ZEROS, HALF, Simulation, simulated_kernel
from moeracle.ref.contracts.contract import contract
from support.coverage import codes_by_position, columns_read

GEMMS = ("int4_linear", "grouped_gemm", "padded_gemm", "moe_w4a16", "int8_lm_head")
EXACT_EVERYWHERE = ("grouped", "wmma", "et_vecmat", "grouped,accumulator=fp32")


@dataclass(frozen=True)
class OfSize:
    """A kernel that takes one row of SIZES only, as one with large tiles does."""

    op: str
    sizes: dict
    name = "of size"
    layout = None
    zeros = ALL_ZEROS
    dtypes = HALF
    device = "cpu"
    fn = None
    contract = contract("grouped")

    def why_not(self, case):
        fits = all(case.sizes.get(d, self.sizes[d]) == self.sizes[d] for d in ("N", "K", "H", "I", "V"))
        return None if fits or case.data == "allgates" else "another size"


def fixed(op, data, size=0):
    return [c for c in must_run(OfSize(op, SIZES[size])) if c.data == data]


def outputs(case, rules="grouped", change=None):
    problem = case.build()
    simulation = Simulation(rules)
    if change:
        simulation.replace_step(*change)
    return problem, getattr(simulation, case.op)(*problem.args.values())


@pytest.mark.parametrize("size", range(len(SIZES)))
@pytest.mark.parametrize("op", GEMMS)
def test_fixed_cases_reach_every_column_of_every_expert(op, size):
    recipes = ("onehot", "sweep") if op == "moe_w4a16" else ("onehot", "integers")
    for data in recipes:
        full = [c for c in fixed(op, data, size) if bool(columns_read(c.build()).all())]
        assert full, data
        if data == "integers":
            assert {c.seed % 2 for c in full} == {0, 1}  # dense, sparse
    if op == "moe_w4a16":
        for data in ("sweep", "onehot2"):
            problem, stages = outputs(fixed(op, data, size)[-1])
            assert columns_read(problem, stages["a"]).all(), data


def test_coverage_can_fail():
    case = next(c for c in fixed("grouped_gemm", "onehot") if c.k == 3)
    assert columns_read(case.build()).all()
    assert not columns_read(case.replace(T=case.T - 1).build()).all()
    few = columns_read(case.replace(T=3, k=1).build())
    assert few.sum(1).tolist() == [1, 1, 1]
    layer = fixed("moe_w4a16", "sweep")[-1]
    assert not columns_read(layer.replace(data="integers").build()).all()  # what sweep is for


@pytest.mark.parametrize("op", ["int4_linear", "grouped_gemm", "padded_gemm"])
def test_one_wrong_weight_of_one_expert_is_read_out(op):
    case = max(fixed(op, "onehot"), key=lambda c: c.T)
    problem, _ = outputs(case)
    E, N, K = problem.args["w"].E or 1, case.N, case.K
    assert problem.exact
    for at in range(0, E * N * K, E * N * K // 7 + 1):
        e, n, k = at // (N * K), at // K % N, at % K

        def one_code_off(sim, base, w, expert, which, e=e, n=n, k=k):
            codes = base(w, expert, which).clone()
            if (expert or 0) == e:
                codes[n, k] ^= 1
            return codes

        _, wrong = outputs(case, change=("codes", one_code_off))
        verdict = judge(problem, wrong, "grouped", explain=False)
        assert (verdict.tier, verdict.illegal) == ("bits", 1), (e, n, k)


@pytest.mark.parametrize("which", ["w13", "w2"])
def test_one_wrong_weight_of_a_layer_is_read_out_also_where_everything_is_fused(which):
    case = fixed("moe_w4a16", "onehot" if which == "w13" else "onehot2")[-1]
    problem, _ = outputs(case)

    def one_code_off(sim, base, w, expert, name):
        codes = base(w, expert, name).clone()
        if name == which and expert == 2:
            codes[-3, -5] ^= 1
        return codes

    _, wrong = outputs(case, change=("codes", one_code_off))
    verdict = judge(problem, wrong, "grouped", explain=False)
    assert (verdict.tier, verdict.stage) == ("bits", "h" if which == "w13" else "y")
    assert verdict.illegal == 1 or which == "w13"
    if which == "w2":
        fused = judge(problem, {"out": wrong["out"]}, "grouped", explain=False)
        assert (fused.tier, fused.illegal) == ("bits", 1)


@pytest.mark.parametrize("rules", EXACT_EVERYWHERE)
@pytest.mark.parametrize("data", ["sweep", "onehot2"])
def test_a_fused_layer_has_one_legal_answer(data, rules):
    if rules == "wmma":
        rules = "wmma,accumulator=fp32"  # RDNA is exact on one sign only
    for size in (0, 2):
        case = fixed("moe_w4a16", data, size)[-1]
        problem, stages = outputs(case, rules)
        verdict = judge(problem, {"out": stages["out"]}, rules, explain=False)
        assert verdict.status == "legal", verdict.reason
        assert verdict.exact == verdict.judged
        assert float(stages["out"].abs().max()) > 0


@pytest.mark.parametrize("op", GEMMS)
def test_rdna_has_exact_cases_of_one_sign_and_claims_nothing_for_mixed_ones(op):
    for data, share in (("samesign", 1.0), ("integers", 0.5)):
        case = fixed(op, data)[0].replace(dtype="bf16")
        rules = "int8_lm_head,accumulator=rdna" if op == "int8_lm_head" else "grouped,accumulator=rdna"
        problem, output = outputs(case, rules)
        verdict = judge(problem, output, rules, explain=False)
        stage = verdict.stages[0]
        assert verdict.status in ("legal", "vacuous")
        assert (stage.exact == stage.judged) if share == 1 else (stage.exact < share * stage.judged)


def test_equality_is_not_demanded_beyond_the_range_where_sums_are_exact():
    case = Case.of("int4_linear", T=4, N=8, K=64, G=32, data="integers")
    problem = case.build()
    assert judge(problem, outputs(case)[1], "grouped").exact == 4 * 8
    problem.args["x"][:, 0] = 2.0**24  # sums no longer fit; the recipe's promise is no help
    assert problem.exact
    output = Simulation("grouped").int4_linear(*problem.args.values())
    assert judge(problem, output, "grouped").exact < 4 * 8


@pytest.mark.parametrize("layout", list(ZERO_LAYOUT))
def test_every_code_stands_in_every_nibble_position(layout):
    for op in ("unpack_int4", "int4_linear", "grouped_gemm", "moe_w4a16"):
        case = fixed(op, "codes16")[0].replace(layout=layout, zero="sym")
        for name in ("w", "w13", "w2"):
            if name in case.build().args:
                seen = codes_by_position(case.build().args[name])
                assert seen[1 if layout == "awq" else 0].all(), (op, name)
    assert not codes_by_position(
        fixed("moe_w4a16", "integers")[0].replace(layout=layout, zero="sym").build().args["w13"]
    ).all()


@pytest.mark.parametrize(("dtype", "count"), [("bf16", 65_280), ("fp16", 63_488)])
def test_every_finite_gate_is_asked(dtype, count):
    case = next(c for c in fixed("silu_and_mul", "allgates") if c.dtype == dtype and c.T > 200)
    problem, out = outputs(case)
    gate, up = problem.args["h"].chunk(2, 1)
    patterns = gate.contiguous().view(torch.int16).flatten()
    assert gate.isfinite().all()
    assert len(patterns.unique()) == count == case.T * case.I
    assert (up == 1).all()
    for rules in ("grouped", "et_batched"):
        assert judge(problem, out, rules).status == "legal"
    for form, status in (
        (lambda g: g * 0.5 * (1 + torch.tanh(g / 2)), "illegal"),
        (lambda g: g * g.sigmoid(), "legal"),
    ):
        other = (form(gate.float()) * up.float()).to(gate.dtype)
        assert judge(problem, other, "et_batched", explain=False).status == status
    wrong = out.clone()
    wrong.view(torch.int16)[100, 200] ^= 1  # one ulp of one gate
    assert judge(problem, wrong, "grouped", explain=False).illegal == 1


def test_a_kernel_of_one_dtype_is_asked_its_own_gates_only():
    cases = must_run(simulated_kernel("silu_and_mul", dtypes=("fp16",)))
    assert {c.dtype for c in cases} == {"fp16"}
    assert sum(c.data == "allgates" for c in cases) >= 1
    assert "allgates" in OPS["silu_and_mul"].data
