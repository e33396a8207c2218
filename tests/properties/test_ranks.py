"""Simulated layers over ranks: legal under every form, judged rank by rank, and diagnosed with the rank."""

from __future__ import annotations

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.diagnose.candidates import candidates
from moeracle.properties.faults import FAULTS
from moeracle.properties.faults.ranks import OF_RANK
from moeracle.properties.simulate import Simulation, simulated_kernel
from moeracle.properties.trial.ranks import args_of_rank, joined_outputs, judge_output
from moeracle.properties.trial.trial import run_trial
from moeracle.ref.contracts.contract import contract
from moeracle.ref.contracts.ranks import Ranks

CASE = Case.parse("moe_w4a16/T9-E8-k3-H64-I64-G32/bf16/exllama-sym/zipf1/normal/s1")
EXACT = Case.parse("moe_w4a16/T5-E7-k2-H64-I64-G32/fp16/awq-asym/uniform/integers/s2")
FORMS = [
    "grouped,ranks=2/dtype/add=dtype",
    "grouped,ranks=4/dtype/add=dtype/join=ring",
    "grouped,ranks=7/dtype/add=dtype/deal",
    "grouped,ranks=4/dtype/join=sequential/own",
    "gptq_awq,ranks=3/fp32/add=dtype/deal/shared1",
    "grouped,ranks=4/rows/own/shared1",
    "grouped,ranks=4/fp32/join=pairwise",
]


@pytest.mark.parametrize("text", FORMS)
def test_a_right_layer_over_ranks_is_legal_in_each_stage(text: str) -> None:
    rules = contract(text)
    assert rules.ranks is not None
    for case in (CASE, EXACT):
        verdict = run_trial(simulated_kernel("moe_w4a16", text), case)
        assert verdict.ok, verdict.text()
        stages = {stage.stage: stage for stage in verdict.stages}
        assert ("partial" in stages) == rules.ranks.partial
        if rules.ranks.partial:
            assert stages["partial"].judged == rules.ranks.count * case.T * case.H
        if rules.ranks.count == 2:
            assert stages["out"].exact == stages["out"].judged


def test_each_rank_is_a_candidate_of_the_diagnosis() -> None:
    rules = contract("grouped,ranks=3/dtype/add=dtype")
    step, of = OF_RANK["F254"]
    problem = EXACT.build()
    output = Simulation(rules).replace_step(step, of(1)).moe_w4a16(*problem.args.values())
    verdict = judge_output(problem, output, rules)
    assert verdict.diagnosis is not None
    assert verdict.diagnosis["title"].endswith("one rank's partial sum counted twice (rank 1)"), verdict.text()
    named = [c.id for c in candidates(CASE, rules)]
    assert {id for id in named if id in OF_RANK} == set(OF_RANK)
    assert [named.count(id) for id in OF_RANK] == [3] * len(OF_RANK)
    assert not set(OF_RANK) & {c.id for c in candidates(CASE, contract("grouped"))}
    assert all(FAULTS[id].why_not("moe_w4a16", "grouped") for id in OF_RANK)


@pytest.mark.parametrize("text", ["3/dtype/add=dtype/shared1", "3/rows/own/deal/shared1"])
def test_what_ranks_are_given_adds_up_to_the_whole_layer(text: str) -> None:
    ranks, problem = Ranks.parse(text), CASE.build()
    whole, ids = problem.args, problem.args["topk_ids"]
    counted = torch.zeros(ids.shape, dtype=torch.int64)
    for rank in range(ranks.count):
        part = args_of_rank(whole, ranks, rank)
        tokens, experts = ranks.tokens_of(rank, CASE.T), ranks.experts_of(rank, CASE.E)
        assert list(part) == ["x", "w13", "w2", "topk_weights", "topk_ids", "expert_map"]
        assert torch.equal(part["x"], whole["x"][tokens])
        for name in ("w13", "w2"):
            codes = whole[name].dequantize(torch.float32)
            assert torch.equal(part[name].dequantize(torch.float32), codes[experts])
        here = part["expert_map"]
        assert [int(here[e]) for e in experts[:-1]] == list(range(len(experts) - 1))
        mine = ranks.rank_of(ids, CASE.E) == rank
        assert ranks.own or torch.equal(mine, here[ids.long()] >= 0)  # its map says what a rank counts
        counted += mine
    assert bool((counted == 1).all())


def test_ranks_that_hold_other_legal_bits_are_told_from_one_that_is_illegal() -> None:
    rules, problem = contract("grouped,ranks=3/dtype/add=dtype"), CASE.build()
    assert rules.ranks is not None
    right = Simulation(rules).moe_w4a16(*problem.args.values())
    outs = [right["out"].clone() for _ in range(3)]
    outs[2][0, 0] += 1
    joined = joined_outputs([{"out": out} for out in outs], problem.args, rules.ranks)
    verdict = judge_output(problem, {**right, **joined}, rules, explain=False)
    assert "rank 2 returned illegal bits; ranks 0-1 returned legal ones" in verdict.summary
    other = Simulation(contract("grouped,ranks=3/dtype/add=dtype/join=sequential")).moe_w4a16(*problem.args.values())
    assert not torch.equal(other["out"], right["out"])
    copies = joined_outputs(
        [{"out": out} for out in (right["out"], right["out"], other["out"])], problem.args, rules.ranks
    )
    verdict = judge_output(problem, {**right, **copies}, rules, explain=False)
    assert (verdict.tier, verdict.stage) == ("determinism", "out")
    assert verdict.summary[0].startswith("rank 2 returned other bits than rank 0 in ")
