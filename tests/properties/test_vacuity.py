"""No legal set that is used admits zeros, two swapped rows, or one expert's output for another's."""

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.record import record_of
from moeracle.properties.compare.other_expert import slots_of_other_experts
from moeracle.properties.compare.tally import Tally
from moeracle.properties.hunt.effort import HuntResult
from moeracle.properties.hunt.search import Judge
from moeracle.properties.judge import judge
from moeracle.properties.simulate import Simulation, simulated_kernel
from moeracle.properties.trial.trial import run_trial
from moeracle.ref.bounds.band import Band
from moeracle.ref.contracts.contract import Contract
from moeracle.target.declaration import make_kernel

RULES = Contract("c")
PADDED = Case.of("padded_gemm", T=6, E=4, k=2, N=16, K=64, G=32, B=16)


def other_experts_of(problem, stage="out"):
    return record_of(problem.case.op).other_experts(problem, stage)


def tallied(rows, radius, other_experts=None, order=None):
    rows = torch.as_tensor(rows, dtype=torch.float64)
    others = None if other_experts is None else torch.tensor(other_experts)
    tally = Tally("out", rows.to(torch.bfloat16), RULES, other_experts=others)
    at = torch.arange(len(rows)) if order is None else torch.tensor(order)
    for piece in at.split(2) if order else (at,):
        tally.visit(piece, Band(rows[piece] - radius, rows[piece] + radius))
    assert not tally.result.illegal
    return tally.vacuous


def test_two_rows_that_may_change_places_are_enough():
    apart = [[1.0, 8.0], [4.0, 2.0], [8.0, 1.0]]
    near = [[1.0, 8.0], [1.25, 8.0], [8.0, 1.0]]
    half = [[1.0, 8.0], [1.25, 4.0], [8.0, 1.0]]  # only one column would pass
    for radius in (0.0, 0.5):
        assert tallied(apart, radius) == tallied(half, radius) == ""
    assert tallied(near, 0.0) == ""
    assert tallied(near, 0.5) == "rows in each other's place"
    assert tallied([near[0]] * 2, 0.5) == ""  # the same answer


def test_one_row_that_admits_another_experts_answer_is_enough():
    rows = [[1.0, 8.0], [4.0, 2.0], [1.25, 8.0], [8.0, 1.0]]  # slots of tokens 0, 1 | experts apart
    assert tallied(rows, 0.5) == ""  # 0 and 2 are no neighbours
    assert tallied(rows, 0.5, other_experts=[1, 0, 3, 2]) == ""
    assert tallied(rows, 0.5, other_experts=[2, -1, 0, -1]) == "another expert's row"
    assert tallied(rows, 0.5, other_experts=[-1, -1, 0, -1]) == "another expert's row"
    # In pieces.
    assert tallied(rows, 0.5, other_experts=[-1, -1, 0, -1], order=[3, 1, 0, 2]) == "another expert's row"
    assert tallied(rows, 0.0, other_experts=[2, -1, 0, -1]) == ""
    # One legal value: what passes is the same answer.
    assert tallied([[0.0, 0.0]] * 2, 0.0, other_experts=[1, 0]) == ""


def test_rivals_are_the_same_tokens_other_experts():
    ids = torch.tensor([[0, 1, 2], [3, 3, -1], [1, -1, 2]])
    assert slots_of_other_experts(ids, None).tolist() == [1, 2, 0, -1, -1, -1, -1, -1, 6]
    elsewhere = torch.tensor([0, 1, -1, -1])
    assert slots_of_other_experts(ids, elsewhere).tolist() == [1, -1, -1, -1, -1, -1, -1, -1, -1]
    assert slots_of_other_experts(ids[:, :1], None).tolist() == [-1, -1, -1]
    assert other_experts_of(Case.of("int4_linear", T=2, N=8, K=32, G=32).build()) is None
    layer = Case.of("moe_w4a16", T=2, E=3, k=2, H=32, I=32, G=32).build()
    assert other_experts_of(layer, "out") is None
    assert other_experts_of(layer, "y").tolist() == [1, 0, 3, 2]


def test_rivals_of_a_grouped_gemm_are_the_same_rows_in_expert_order():
    case = Case.of("grouped_gemm", T=5, E=4, k=2, N=8, K=32, G=32)
    problem = case.build()
    other_experts, x, offsets = other_experts_of(problem), problem.args["x"], problem.args["expert_offsets"]
    experts = torch.bucketize(torch.arange(10), offsets[1:], right=True)
    assert torch.equal(x[other_experts], x)
    assert (experts[other_experts] != experts).all()
    assert (other_experts[other_experts] == torch.arange(10)).all()


@pytest.mark.parametrize("op", ["padded_gemm", "grouped_gemm", "moe_w4a16"])
def test_a_case_that_cannot_tell_experts_apart_is_refused(op):
    """16-bit partial sums in 16 binades: a contract under which an expert's output passes for another's."""
    base = {"T": 6, "E": 4, "k": 2, "G": 32, "dtype": "bf16"}
    dims = (
        {"H": 256, "I": 256} if op == "moe_w4a16" else {"N": 8, "K": 256} | ({"B": 16} if op == "padded_gemm" else {})
    )
    case = Case.of(op, **base, **dims)
    problem = case.build()
    for rules, refused in (("grouped", False), ("moe_wna16", False), ("grouped,accumulator=dtype", True)):
        output = getattr(Simulation(rules), op)(*problem.args.values())
        verdict = judge(problem, output, rules)
        assert (verdict.status == "vacuous") == refused, (rules, verdict.reason)
    assert "too little signal" in verdict.reason


def test_what_is_refused_is_counted_with_its_reason():
    kernel = simulated_kernel("padded_gemm", "grouped,accumulator=dtype")
    result = HuntResult("", "", None, "", "", 0, 0)
    Judge(kernel, run_trial, result, 1.0)(PADDED.replace(K=256, N=8, dtype="bf16"))
    assert sum(result.skipped.values()) == 1
    assert "would pass as out" in next(iter(result.skipped))
    assert result.status == "unjudged"


def test_wrong_experts_are_illegal_where_a_case_is_judged():
    """The other side: where a case is not refused, rows of another expert do not pass."""
    for op, dims in (("padded_gemm", {"N": 16, "K": 64, "B": 16}), ("grouped_gemm", {"N": 16, "K": 64})):
        problem = Case.of(op, T=6, E=4, k=2, G=32, **dims).build()
        out = getattr(Simulation("grouped"), op)(*problem.args.values())
        assert judge(problem, out, "grouped").status == "legal"
        for row in range(12):
            wrong = out.clone()
            wrong[row] = out[other_experts_of(problem)[row]]
            assert judge(problem, wrong, "grouped", explain=False).status == "illegal", (op, row)


def test_how_tight_the_sets_were_is_reported():
    case = Case.of("int4_linear", T=8, N=16, K=512, G=32, dtype="fp16")
    widths = {}
    for rules in ("grouped", "grouped,accumulator=fp32,depth=13"):
        verdict = judge(
            case, getattr(Simulation("grouped"), case.op)(*case.build().args.values()), rules, explain=False
        )
        widths[rules] = verdict.stages[0].as_dict()["width_ulp"]
    assert widths["grouped"] > widths["grouped,accumulator=fp32,depth=13"] >= 0


def test_a_saturated_sigmoid_proves_nothing():
    ones = make_kernel(lambda x, w, sigmoid: x.new_ones(len(x), 1), "tiny_dot", name="ones")
    case = Case.parse("tiny_dot/T9-K96/bf16/-/-/samesign+sigmoid/s2")
    verdict = run_trial(ones, case)
    assert (verdict.status, verdict.reason.split(" would")[0]) == ("vacuous", "1 everywhere")
    assert run_trial(ones, case.replace(data="normal"), explain=False).status == "illegal"
