"""Kernels that are right for the plain case alone are found, and kernels that decline a case are not asked about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS, PLACEMENTS, SCALES
from moeracle.properties.cases.placement import experts_here
from moeracle.properties.cases.record import record_of
from moeracle.properties.cases.routings import draw_topk, may_be
from moeracle.properties.cases.weights import ONE_SIGN
from moeracle.properties.common.verdict import Verdict
from moeracle.properties.fault_matrix.hunt import SEED_STEP
from moeracle.properties.faults import find_fault
from moeracle.properties.hunt.must_run import must_run, weight_forms
from moeracle.properties.simulate import Simulation, simulated_kernel
from moeracle.properties.trial.trial import run_trial
from moeracle.ref import moe_align_block_size, moe_permute
from moeracle.ref.contracts.contract import contract
from moeracle.ref.weights.weight import Int4Weight
from moeracle.target.declaration import Kernel, make_kernel
from moeracle.target.load import load_target
from support import legal_kernels
from support.legal_kernels import grouped, moe, silu, unpermute

LEGAL = {k.op: k for k in load_target(legal_kernels.__file__).kernels}


def mapped(x: Any, w13: Any, w2: Any, router: Any, ids: Any, expert_map: Any) -> torch.Tensor:
    """A right layer with a sixth parameter that has no default."""
    E = w13.E if expert_map is None else len(expert_map)
    rows, offsets, inv = moe_permute(x, ids, E, expert_map)
    y = grouped(silu(grouped(rows, w13, offsets)), w2, offsets)
    y[int(offsets[-1]) :] = 0
    return unpermute(y, router, inv)


def global_for_local(expert_map: torch.Tensor | None) -> torch.Tensor | None:
    """Forget what the map says of the experts that are here: their global number."""
    if expert_map is None:
        return None
    here = int((expert_map >= 0).sum())
    return torch.where(torch.arange(len(expert_map)) < here, torch.arange(len(expert_map)), -1).int()


WRONG: dict[str, Callable[..., Any]] = {
    "moe_permute": lambda x, ids, E, m: moe_permute(x, ids, E, global_for_local(m)),
    "moe_align_block_size": lambda ids, B, E, m: moe_align_block_size(ids, B, E, global_for_local(m)),
    "moe_w4a16": lambda x, w13, w2, router, ids, expert_map=None: mapped(
        x, w13, w2, router, ids, global_for_local(expert_map)
    ),
}


def fixed(kernel: Kernel) -> list[Verdict]:
    cases = [case for case in must_run(kernel) if kernel.why_not(case) is None]
    return [run_trial(kernel, case, explain=False) for case in cases if not case.flags.isdisjoint(PLACEMENTS)]


@pytest.mark.parametrize("op", WRONG)
def test_a_global_id_taken_for_a_local_one_is_right_on_rank_zero_alone(op: str) -> None:
    verdicts = fixed(make_kernel(WRONG[op], op, layout="exllama" if OPS[op].weight else None))
    by_word = {word: [v.status for v in verdicts if word in Case.parse(v.case).flags] for word in PLACEMENTS}
    assert set(by_word["ep2"]) == {"legal"}
    for word in PLACEMENTS[1:]:
        assert "illegal" in by_word[word], word


@pytest.mark.parametrize("op", [*WRONG, "grouped_gemm", "padded_gemm"])
def test_right_kernels_read_every_placement(op: str) -> None:
    kernel = make_kernel(mapped, op, layout="exllama") if op == "moe_w4a16" else LEGAL[op]
    verdicts = fixed(kernel)
    assert len(verdicts) >= len(PLACEMENTS)
    assert [v.text() for v in verdicts if not v.ok] == []
    for case in (Case.parse(v.case) for v in verdicts):
        broken = [v for law in record_of(op).laws if (v := law(kernel, case)) is not None and not v.ok]
        assert not broken, broken[0].text()


def test_a_layer_without_the_parameter_is_asked_without_a_map() -> None:
    kernel = make_kernel(moe, "moe_w4a16")
    assert not any(not case.flags.isdisjoint(PLACEMENTS) for case in must_run(kernel))
    case = Case.parse("moe_w4a16/T5-E6-k2-H32-I32-G32/bf16/exllama-sym/uniform+epany/normal/s1")
    assert kernel.why_not(case) == "it has no parameter expert_map"
    assert run_trial(make_kernel(mapped, "moe_w4a16"), case.replace(flags=frozenset())).ok  # None is passed on


@pytest.mark.parametrize("word", PLACEMENTS)
def test_placements_number_their_experts(word: str) -> None:
    seen = set()
    for E in (1, 2, 5, 48):
        for seed in range(12):
            here = experts_here(E, {word}, seed)
            assert here
            assert len(set(here)) == len(here) == Case.of("moe_align_block_size", T=1, E=E, k=1, B=1, seed=seed,
                                                          flags=(word,)).local_experts  # fmt: skip
            assert set(here) <= set(range(E))
            seen.add(tuple(here))
            assert word != "epany" or E == 1 or here != list(range(len(here)))
    assert len(seen) > {"eprobin": 12, "epany": 20}.get(word, 2)
    assert experts_here(5, {"weight"}, 0) is None


def slices_of_rows(x: Any, ids: Any, E: int, expert_map: Any) -> Any:
    """Read ids as if their rows lay one after another."""
    return moe_permute(x, ids.as_strided(ids.shape, (ids.shape[1], 1)), E, expert_map)


def test_ids_that_come_otherwise_are_read_wrongly() -> None:
    case = Case.parse("moe_permute/T9-E5-k2-K8/bf16/-/uniform+slices/normal/s1")
    assert run_trial(make_kernel(slices_of_rows, "moe_permute"), case).status == "illegal"
    words = lambda x, ids, E, m: moe_permute(x, ids.view(torch.int32)[:, : ids.shape[1]], E, m)
    case = Case.parse("moe_permute/T9-E5-k2-K8/bf16/-/uniform+int64/normal/s1")
    assert run_trial(make_kernel(words, "moe_permute"), case).status == "illegal"
    assert run_trial(LEGAL["moe_permute"], case).ok


def first_slots_only(x: Any, w13: Any, w2: Any, router: Any, ids: torch.Tensor) -> torch.Tensor:
    """A right layer for distinct ids: of an expert that is repeated, the first slot alone counts."""
    k = ids.shape[1]
    earlier = torch.tril(ids[:, :, None] == ids[:, None, :], -1).any(2)
    assert k
    return moe(x, w13, w2, router, torch.where(earlier, -1, ids))


@pytest.mark.parametrize("routing", ["uniform", "onehot", "empty", "balanced", "zipf2"])
def test_laws_keep_what_a_routing_promises(routing: str) -> None:
    declared: Any = {"contract": "grouped", "supports": lambda case: case.routing != "repeat" or "distinct ids"}
    kernel = make_kernel(first_slots_only, "moe_w4a16", layout="exllama", **declared)
    judged = 0
    for seed in range(6):
        text = f"moe_w4a16/T9-E{(3, 5)[seed % 2]}-k3-H64-I32-G32/bf16/exllama-sym/{routing}/normal/s{seed}"
        for law in record_of("moe_w4a16").laws:
            verdict = law(kernel, Case.parse(text))
            assert verdict is None or verdict.ok, verdict.text()
            judged += 0 if verdict is None else verdict.judged
    assert judged > 1000


@pytest.mark.parametrize("routing", OPS["moe_w4a16"].routings)
def test_every_routing_keeps_its_own_promise(routing: str) -> None:
    for seed in range(8):
        ids, _ = draw_topk(routing, 7, 6, 3, seed)
        assert may_be(routing, ids, 6)
    twice = ids.clone()
    twice[0] = 1
    assert may_be(routing, twice, 6) == (routing == "repeat")
    nobody = ids.clone()
    nobody[0, 0] = -1
    assert may_be(routing, nobody, 6) == (routing == "ignored")


def weighs_first(x: Any, w13: Any, w2: Any, router: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """A legal layer whose router weights enter in GEMM1's epilogue; its order of sums depends on the rows of a call."""
    rows, offsets, inv = moe_permute(x, ids, w13.E)
    weight = torch.empty(len(rows), 1)
    weight[inv.long()] = router.reshape(-1, 1)
    h = torch.zeros(len(rows), w13.N, dtype=x.dtype)
    for e in range(w13.E):
        span = slice(int(offsets[e]), int(offsets[e + 1]))
        h[span] = legal_kernels.dot(rows[span], legal_kernels.weights(w13, x)[e]).mul(weight[span]).to(x.dtype)
    return unpermute(grouped(silu(h), w2, offsets), torch.ones_like(router), inv)


def test_weights_before_silu_leave_no_false_alarm() -> None:
    kernel = make_kernel(weighs_first, "moe_w4a16", layout="exllama", contract="grouped,router_weight=input")
    verdicts = []
    for data in ("normal", "integers", "samesign", "sweep"):
        case = Case.parse(f"moe_w4a16/T9-E5-k2-H96-I64-G32/bf16/exllama-sym/uniform/{data}/s3")
        verdicts += [run_trial(kernel, case), *(law(kernel, case) for law in record_of("moe_w4a16").laws)]
    said = [v for v in verdicts if v is not None]
    assert [v.text() for v in said if not v.ok] == []
    laws = {v.stage or v.stages[0].stage for v in said}
    assert {"law_splitting_batches", "law_permuting_tokens", "law_zero_router_weight", "law_order_of_slots"} <= laws


def test_a_router_weight_that_enters_elsewhere_is_named() -> None:
    """x times the router weight rounded to D, judged as if the weight entered GEMM1's sums."""
    simulation = Simulation("grouped,router_weight=input_dtype")
    kernel = make_kernel(
        lambda *args: simulation.moe_w4a16(*args)["out"], "moe_w4a16", layout="exllama",
        contract="grouped,router_weight=input",
    )  # fmt: skip
    verdict = run_trial(kernel, Case.parse("moe_w4a16/T3-E4-k1-H64-I64-G32/fp16/exllama-sym/uniform/normal/s1"))
    assert verdict.status == "illegal"
    assert "would pass at: contract 'grouped,router_weight=input_dtype' | atol=" in verdict.text()


def test_nothing_but_legal_passes() -> None:
    for status in ("illegal", "skipped", "vacuous"):
        with pytest.raises(AssertionError, match=r"why|replay"):
            Verdict("int4_linear", "case", status=status, reason="why").raise_if_illegal()
    Verdict("int4_linear", "case").raise_if_illegal()


def test_a_chain_of_any_length_has_a_bound() -> None:
    rules = "grouped,depth=100000000,weight=hoisted,accumulator=dtype,zero_offset=128"
    zeros = make_kernel(lambda x, w, bias: x.new_zeros(len(x), w.N), "int4_linear", contract=rules)
    for data, tiers in (("normal", ("contract",)), ("integers", ("bits", "interval"))):
        case = Case.parse(f"int4_linear/T3-N8-K{8 if data == 'integers' else 512}-G-1/fp16/exllama-sym/-/{data}/s1")
        assert run_trial(zeros, case, explain=False).tier in tiers
    with pytest.raises(ValueError, match=f"depth: got {10**39}, must be 1 to") as error:
        contract(f"grouped,depth={10**400}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("op", [op for op in OPS if set(SCALES) <= set(OPS[op].data_flags)])
def test_scales_may_be_negative_and_cut_out_of_wider_rows(op: str) -> None:
    kernel, forms = simulated_kernel(op), weight_forms(simulated_kernel(op))
    case = must_run(kernel)[0]
    for seed, data in enumerate(OPS[op].data):
        layout, zero = forms[seed % len(forms)]
        case = case.replace(layout=layout, zero=zero, data=data, seed=seed, flags=frozenset(SCALES))
        problem, plain = case.build(), case.replace(flags=frozenset()).build()
        for name, w in problem.args.items():
            if isinstance(w, Int4Weight):
                bare, share = plain.args[name], float((w.scale < 0).double().mean())
                assert torch.equal(w.scale.abs(), bare.scale)
                assert torch.equal(w.codes(), bare.codes())
                assert w.zero is None or torch.equal(w.zero, bare.zero)
                assert share == 0 if data in ONE_SIGN else 0.25 < share < 0.75
                assert not (w.scale.mT if layout in ("gptq", "awq") else w.scale).is_contiguous()
        verdict = run_trial(kernel, case, explain=False)
        assert verdict.ok, verdict.text()


def test_two_fixed_cases_show_with_every_seed_what_they_are_for() -> None:
    """Two experts with more slots each than there are tokens; one expert that has every slot after others had some."""
    for op in ("grouped_gemm", "moe_w4a16", "moe_permute"):
        cases = must_run(simulated_kernel(op))
        crowded = next(i for i, case in enumerate(cases) if case.routing == "repeat" and case.k == 5)
        T, E, k = cases[crowded].T, cases[crowded].E, cases[crowded].k
        counts = [torch.bincount(draw_topk("repeat", T, E, k, seed)[0].flatten(), minlength=E) for seed in range(300)]
        assert all(count.min() > T for count in counts)
        alone, before = cases[crowded - 1], cases[crowded - 2]
        assert (alone.routing, alone.k, alone.T) == ("onehot", 1, before.T * before.k)
        assert before.routing == "uniform"
    for seed in (0, 3):
        stale = find_fault("F165").kernel("grouped_gemm")
        cases = [case.replace(seed=case.seed + SEED_STEP * seed) for case in must_run(stale)]
        alone = next(i for i, case in enumerate(cases) if case.routing == "onehot" and case.k == 1 and case.T == 18)
        assert run_trial(stale, cases[alone - 1], explain=False).ok  # of a fresh kernel
        assert not run_trial(stale, cases[alone], explain=False).ok
