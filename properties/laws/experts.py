"""Laws about experts: their names mean nothing, they do not see each other, and a weight of zero silences one."""

from __future__ import annotations

from functools import partial

import torch

from moeracle.ref.weight import Int4Weight

from ..case import Case
from ..generator import Stream
from ..inputs import local_experts
from ..problem import Problem
from .agree import agree
from .bench import Bench, Silent, law
from .change import (
    axes_of,
    by_token,
    expert_map_of,
    local_slots,
    map_weights,
    other_codes,
    permutation,
    reordered,
    routed,
    tokens_of,
    topk_ids_of,
    with_args,
)

FALLBACK = 2  # pivots tried by the law about other experts


@law
def law_relabelling_experts(bench: Bench, case: Case) -> None:
    """f with expert e called p[e], its id, logits and weights alike, = f: which number an expert has does not matter.

    Bit for bit on exact data under every contract with an fp32 accumulator, and for dispatch on any data. topk_softmax:
    ids and weights of rows without ties, which go to the lower id. Silent under an expert_map, whose ranks own ids.
    """
    problem, results = bench.start(exact=True)
    if case.E < 2 or (case.op != "topk_softmax" and expert_map_of(problem) is not None):
        raise Silent
    name = permutation(problem, "experts", case.E)  # expert e is called name[e]
    expected = by_token(problem, results)
    if case.op == "topk_softmax":
        logits = torch.empty_like(problem.args["logits"])
        logits[:, name] = problem.args["logits"]
        renamed = with_args(problem, logits=logits)
        expected = {**expected, "ids": name[expected["ids"].long().clamp(0, case.E - 1)]}
    else:
        ids = topk_ids_of(problem)
        new = torch.where(ids < 0, ids, name[ids.long().clamp(min=0)].to(ids.dtype))
        weights = map_weights(problem, lambda w: reordered(w, torch.argsort(name)))
        renamed = _with_ids(problem, new, weights)
        if case.op == "moe_align_block_size":
            called = name[expected["expert"].clamp(min=0)]
            expected = {"expert": torch.where(expected["expert"] < 0, expected["expert"], called)}
    got = by_token(renamed, bench.run(renamed, "its experts renumbered"))
    agree(bench, renamed, got, expected, "its experts renumbered", ties=False)


def _with_ids(problem: Problem, ids: torch.Tensor, weights: dict[str, Int4Weight]) -> Problem:
    """Return the problem with other topk_ids [T, k] and int4 weights."""
    if problem.case.op in ("grouped_gemm", "padded_gemm"):
        return routed(problem, tokens_of(problem), ids, problem.args.get("topk_weights"), **weights)
    return with_args(problem, topk_ids=ids, **weights)


@law
def law_other_experts_weights(bench: Bench, case: Case) -> None:
    """A row's result depends on its own experts' weights only: every other expert's codes may change.

    Bit for bit on any data where the contract is deterministic (same computation: shapes and ids stay), else exact.
    """
    problem, results = bench.same_computation()
    ids = topk_ids_of(problem)
    if not ids.numel() or case.E < 2:
        raise Silent
    experts = torch.arange(local_experts(case))
    expected = by_token(problem, results)
    for kept in _kept_experts(problem, experts):
        changed = with_args(problem, **map_weights(problem, partial(other_codes, changed=~kept)))
        on = f"other codes in expert{'s' if int((~kept).sum()) > 1 else ''} {_listed(experts[~kept])}"
        got = by_token(changed, bench.run(changed, on))
        mine = torch.where(ids < 0, True, kept[ids.long().clamp(0, len(kept) - 1)])
        mine &= local_slots(problem) | (ids < 0)  # a slot of another rank has no weights here
        for name, value in expected.items():
            where = mine[:, :, None] if value.ndim == 3 else mine.all(1)[:, None]
            bench.equal(name, got[name], value, axes_of(problem, value), where & value.isfinite(), on)


def _kept_experts(problem: Problem, experts: torch.Tensor) -> list[torch.Tensor]:
    """Return bool [E] masks of experts that keep their weights; together they leave every neighbour pair apart once."""
    if problem.case.op != "moe_w4a16":
        return [experts % 2 == parity for parity in (0, 1)]
    # A token needs all of its experts kept, so keep those of one token at a time.
    ids = topk_ids_of(problem)
    tokens = Stream(problem.case.seed, "law.pivot").below((FALLBACK,), ids.shape[0]).tolist()
    kept = [torch.isin(experts, ids[t]) for t in dict.fromkeys(tokens)]
    return [mask for mask in kept if not bool(mask.all())]


def _listed(experts: torch.Tensor, most: int = 8) -> str:
    names = [str(e) for e in experts.tolist()]
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


@law
def law_zero_router_weight(bench: Bench, case: Case) -> None:
    """A slot whose router weight is 0 adds nothing, whichever expert it names: f is the same with another one there.

    moe_w4a16: on exact data, since other ids make other tiles; under every contract, for 0 times a finite row is 0 in
    the sum, in GEMM2 and (silu(0) = 0) on the input. moe_unpermute: the row itself is replaced (same computation).
    padded_gemm with weights: the row is 0.
    """
    exact = case.op == "moe_w4a16"
    problem, _ = bench.start(exact=True) if exact else bench.same_computation()
    weights = problem.args.get("topk_weights")
    if weights is None or not weights.numel():
        raise Silent
    T, k = weights.shape
    silent = torch.zeros(T, k, dtype=torch.bool)
    silent[torch.arange(T), torch.from_numpy(Stream(case.seed, "law.slot").below((T,), k))] = True
    zeroed = with_args(problem, topk_weights=torch.where(silent, torch.zeros(()), weights))
    on = "a router weight of each token set to 0"
    before = by_token(zeroed, bench.run(zeroed, on))["out"]
    axes = axes_of(problem, before)
    if case.op == "padded_gemm":
        bench.equal("out", before, torch.zeros_like(before), axes, silent[:, :, None], on, "zeros")
        return
    if case.op == "moe_unpermute":
        y = problem.args["y"].clone()
        rows = problem.args["inv"].long().reshape(T, k)[silent]
        y[rows] = y[rows].flip(1).neg()
        other = with_args(zeroed, y=y)
    else:
        if case.E < 2:
            raise Silent
        ids = problem.args["topk_ids"]
        other = with_args(zeroed, topk_ids=torch.where(silent & (ids >= 0), (ids + 1) % case.E, ids))
    got = by_token(other, bench.run(other, f"{on} and its row replaced"))["out"]
    bench.equal("out", got, before, axes, on=f"{on} and its row replaced", against="the kernel on the zeroed weights")


@law
def law_order_of_slots(bench: Bench, case: Case) -> None:
    """f is the same when a token names its experts, each with its weight, in another order.

    Bit for bit on exact data where the contract sums the slots in fp32. Silent where it adds slot by slot in D.
    """
    problem, results = bench.start(exact=True)
    k = case.k
    if k < 2 or bench.contract.sum_in_dtype(k):
        raise Silent
    order = permutation(problem, "slots", k)
    args = problem.args
    new: dict[str, torch.Tensor] = {
        name: args[name][:, order].contiguous() for name in ("topk_weights", "topk_ids") if name in args
    }
    if case.op == "moe_unpermute":
        new["inv"] = args["inv"].reshape(-1, k)[:, order].reshape(-1).contiguous()
    on = "the slots of every token in another order"
    got = bench.run(with_args(problem, **new), on)["out"]
    bench.equal("out", got, results["out"], axes_of(problem, got), on=on)


@law
def law_block_size(bench: Bench, case: Case) -> None:
    """The alignment's block size decides where rows are computed, never what: f is the same with 2B.

    padded_gemm: bit for bit on exact data. moe_align_block_size: every slot is in a block of the same expert.
    """
    problem, results = bench.start(exact=True)
    if case.op == "padded_gemm":
        other = routed(problem, tokens_of(problem), topk_ids_of(problem), problem.args["topk_weights"], B=2 * case.B)
    else:
        other = Problem(case.replace(B=2 * case.B), {**problem.args, "block_size": 2 * case.B}, problem.truth, True)
    on = f"blocks of {2 * case.B}"
    agree(bench, other, by_token(other, bench.run(other, on)), by_token(problem, results), on)


@law
def law_order_inside_blocks(bench: Bench, case: Case) -> None:
    """Which slot of an expert comes first in its blocks is open, so f is the same for ids in reverse order.

    Bit for bit on exact data under every contract with an fp32 accumulator; real alignments count with atomics.
    """
    problem, results = bench.start(exact=True)
    ids = problem.args["sorted_token_ids"]
    experts = topk_ids_of(problem).flatten().long()
    new = ids.clone()
    for e in torch.unique(experts).tolist():
        mine = ((ids < case.R) & (experts[ids.long().clamp(max=max(0, case.R - 1))] == e)).nonzero().flatten()
        new[mine] = ids[mine.flip(0)]
    changed = with_args(problem, sorted_token_ids=new)
    on = "every expert's slots in reverse order"
    agree(bench, changed, by_token(changed, bench.run(changed, on)), by_token(problem, results), on)
