"""Laws about experts: their names mean nothing, they do not see each other, and a weight of zero silences one."""

from __future__ import annotations

from functools import partial

import torch

from moeracle.ref.weights.weight import Int4Weight

from ..cases.case import Case, Problem
from ..cases.changes import (
    expert_map_of,
    ids_here,
    local_slots,
    map_weights,
    other_codes,
    permutation,
    reordered,
    topk_ids_of,
    with_args,
)
from ..cases.record import record_of
from ..common.generator import Stream
from .agree import agree
from .bench import Bench, Silent, law


@law
def law_relabelling_experts(bench: Bench, case: Case) -> None:
    """f with expert e called p[e], its id, logits and weights alike, = f: which number an expert has does not matter.

    Bit for bit on exact data under every contract with an fp32 accumulator, and for dispatch on any data. topk_softmax:
    ids and weights of rows without ties, which go to the lower id. Silent under an expert_map, whose ranks own ids, and
    where slots are added in D in the order of experts.
    """
    problem, results = bench.start(exact=True)
    record, rules = record_of(case.op), bench.contract
    by_number = "k" in case.sizes and rules.slot_order == "experts" and rules.sum_in_dtype(case.k)
    if case.E < 2 or expert_map_of(problem) is not None or (record.layer and by_number):
        raise Silent
    name = permutation(problem, "experts", case.E)  # expert e is called name[e]
    weights = map_weights(problem, partial(reordered, order=torch.argsort(name)))
    renamed, expected = record.rename_experts(problem, record.by_token(problem, results), name, weights)
    got = record.by_token(renamed, bench.run(renamed, "its experts renumbered"))
    agree(bench, renamed, got, expected, "its experts renumbered", ties=False)


@law
def law_other_experts_weights(bench: Bench, case: Case) -> None:
    """A row's result depends on its own experts' weights only: every other expert's codes may change.

    Bit for bit on any data where the contract is deterministic (same computation: shapes and ids stay), else exact.
    """
    problem, results = bench.same_computation()
    if not topk_ids_of(problem).numel() or case.local_experts < 2:
        raise Silent
    ids = ids_here(problem)
    experts = torch.arange(case.local_experts)
    record = record_of(case.op)
    expected = record.by_token(problem, results)
    for kept in record.experts_kept(problem, experts):
        changed = with_args(problem, **map_weights(problem, partial(other_codes, changed=~kept)))
        on = f"other codes in expert{'s' if int((~kept).sum()) > 1 else ''} {_listed(experts[~kept])}"
        got = record.by_token(changed, bench.run(changed, on))
        mine = torch.where(ids < 0, True, kept[ids.clamp(min=0)])
        if not record.layer:
            mine &= local_slots(problem) | (topk_ids_of(problem) < 0)  # a row of another rank's may hold anything
        for name, value in expected.items():
            where = mine[:, :, None] if value.ndim == 3 else mine.all(1)[:, None]
            bench.equal(name, got[name], value, record.token_axes(value), where & value.isfinite(), on)


def _listed(experts: torch.Tensor, most: int = 8) -> str:
    names = [str(e) for e in experts.tolist()]
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


@law
def law_zero_router_weight(bench: Bench, case: Case) -> None:
    """A slot whose router weight is 0 adds nothing, whichever expert it names: f is the same with another one there.

    Where ids are distinct in a row, they stay so. moe_w4a16: on exact data, since other ids make other tiles; under
    every contract, for 0 times a finite row is 0 in the sum, in GEMM2 and (silu(0) = 0) on the input, so that tokens
    with a stage that overflows are left out. moe_unpermute:
    the row itself is replaced (same computation). padded_gemm with weights: the row is 0, unless its sums overflow.
    """
    record = record_of(case.op)
    problem, results = bench.start(exact=True) if record.layer else bench.same_computation()
    weights = problem.args.get("topk_weights")
    if weights is None or not weights.numel():
        raise Silent
    T, k = weights.shape
    silent = torch.zeros(T, k, dtype=torch.bool)
    silent[torch.arange(T), torch.from_numpy(Stream(case.seed, "law.slot").below((T,), k))] = True
    zeroed = with_args(problem, topk_weights=torch.where(silent, torch.zeros(()), weights))
    on = "a router weight of each token set to 0"
    before = record.by_token(zeroed, bench.run(zeroed, on))["out"]
    axes = record.token_axes(before)
    other = record.silent_slot(zeroed, silent)
    if other is None:
        where = silent[:, :, None] & record.by_token(problem, results)["out"].isfinite()
        bench.equal("out", before, torch.zeros_like(before), axes, where, on, "zeros")
        return
    if case.E < 2 and "topk_ids" in problem.args:
        raise Silent  # there is no other expert to name
    got = record.by_token(other, bench.run(other, f"{on} and its row replaced"))["out"]
    spoken = torch.ones(T, 1, dtype=torch.bool)
    if record.layer and not _surely_finite(other):  # 0 times a row that overflows is NaN
        stages = record.reference(other, torch.float64)
        finite = [stages[name].isfinite().view(T, -1).all(1, keepdim=True) for name in ("h", "a", "y")]
        spoken = torch.stack(finite).all(0)
    if record.layer and bench.contract.one_group == "after_store":  # and so may a sum before its scale
        spoken = spoken & before.isfinite() & got.isfinite()
    said = f"{on} and its row replaced"
    bench.equal("out", got, before, axes, spoken, said, "the kernel on the zeroed weights")


def _surely_finite(problem: Problem) -> bool:
    """Say whether no stage of a layer can leave D's range: seen from the largest operands, long before it is near."""
    x, weights = problem.args["x"], [problem.args.get(name) for name in ("w13", "w2")]
    weight = max(1.0, float(problem.args["topk_weights"].abs().amax()))
    largest, most = weight * float(x.abs().amax()), float(torch.finfo(x.dtype).max) / (16 * weight)
    for w in weights:
        if not isinstance(w, Int4Weight) or w.bias is not None:
            return False
        largest *= 2**w.bits * w.K * float(w.scale.abs().amax())  # |u - z| <= 2^bits, a carried zero point's too
        if not largest < most:
            return False
        largest = max(largest, 1.0) ** 3  # no activation is more than a gate's square times up
    return True


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
    if "inv" in args:
        new["inv"] = args["inv"].reshape(-1, k)[:, order].reshape(-1).contiguous()
    on = "the slots of every token in another order"
    got = bench.run(with_args(problem, **new), on)["out"]
    bench.equal("out", got, results["out"], record_of(case.op).token_axes(got), on=on)


@law
def law_block_size(bench: Bench, case: Case) -> None:
    """The alignment's block size decides where rows are computed, never what: f is the same with 2B.

    padded_gemm: bit for bit on exact data. moe_align_block_size: every slot is in a block of the same expert.
    """
    problem, results = bench.start(exact=True)
    record = record_of(case.op)
    other = record.with_block_size(problem, 2 * case.B)
    on = f"blocks of {2 * case.B}"
    agree(bench, other, record.by_token(other, bench.run(other, on)), record.by_token(problem, results), on)


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
    record = record_of(case.op)
    agree(bench, changed, record.by_token(changed, bench.run(changed, on)), record.by_token(problem, results), on)
