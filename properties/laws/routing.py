"""Laws about routing: probabilities, prefixes of a choice, and rows that keep their contents on the way."""

from __future__ import annotations

import torch

from ..cases.case import Case, Problem
from ..cases.changes import expert_map_of, local_slots
from ..cases.record import record_of
from .bench import Bench, Silent, law
from .softmax import clear_rows, topk_tolerance, without_softmax


@law
def law_weights_are_probabilities(bench: Bench, case: Case) -> None:
    """Router weights are in 0..1, descend, and add up to 1 at most; to 1 if renormalized, or if k = E.

    Every kernel, within twice a softmax's own error; rows without a finite softmax have weights 0.
    """
    problem, results = bench.start()
    logits, weights = problem.args["logits"].double(), results["weights"].double()
    slack = topk_tolerance(logits, torch.ones_like(weights))
    dead = without_softmax(logits)
    axes, on, rule = ("token", "slot"), "the case itself", "what probabilities are"
    legal = torch.where(dead[:, None], torch.zeros(()), weights.clamp(0, 1))
    bench.demand("weights", (weights - legal).abs() <= slack * ~dead[:, None], weights, legal, axes, None, on, rule)
    later, before = weights[:, 1:], weights[:, :-1]
    bench.demand("weights[1:]", later <= before + slack[:, 1:], later, before, axes, None, on, "weights[:-1]")
    total = weights.sum(1)
    whole = (case.k == case.E or problem.args["renormalize"]) & ~dead
    right = torch.where(whole, (total - 1).abs() <= slack[:, 0] * 2, total <= 1 + slack[:, 0] * 2)
    bench.demand("sum of weights", right, total, torch.where(dead, 0.0, 1.0), ("token",), None, on, rule)


@law
def law_choosing_fewer(bench: Bench, case: Case) -> None:
    """The best k - 1 experts are the first k - 1 of the best k, in the same proportions.

    Ids of rows whose logits lie apart or tie exactly; weights within a softmax's own error.
    """
    if case.k < 2:
        raise Silent
    problem, results = bench.start()
    k = case.k - 1
    fewer = Problem(case.replace(k=k), {**problem.args, "top_k": k})
    on = f"top_k = {k}"
    got = bench.run(fewer, on)
    rows = clear_rows(problem.args["logits"], case.k, ties=True)[:, None]
    bench.equal("ids", got["ids"], results["ids"][:, :k], ("token", "slot"), rows, on)
    ours, theirs = got["weights"].double(), results["weights"][:, :k].double()
    left, right = ours * theirs[:, :1], theirs * ours[:, :1]
    close = (left - right).abs() <= 2 * topk_tolerance(problem.args["logits"], right)
    bench.demand("weights times the other's first", close, left, right, ("token", "slot"), rows, on)


@law
def law_rows_keep_their_contents(bench: Bench, case: Case) -> None:
    """x_permuted[inv[t k + j]] = x[t], and lies among its expert's rows: undoing the permutation gives the tokens back.

    Copies: every kernel, on any data; slots without an expert on this rank are left out.
    """
    problem, results = bench.start()
    x, mine = problem.args["x"], local_slots(problem)
    rows = record_of(case.op).by_token(problem, results)["x_permuted"]
    expected = torch.where(mine[:, :, None], x[:, None, :].expand(rows.shape), torch.zeros((), dtype=x.dtype))
    axes, on = ("token", "slot", "k"), "the case itself"
    bench.equal("x_permuted[inv]", rows, expected, axes, None, on, "x")
    ids, mapping = problem.args["topk_ids"].long(), expert_map_of(problem)
    local = ids if mapping is None else torch.where(ids < 0, ids, mapping.long()[ids.clamp(min=0)])
    place, offsets = results["inv"].long().reshape(case.T, case.k), results["expert_offsets"]
    found = torch.searchsorted(offsets, place.contiguous(), right=True) - 1
    bench.equal("expert of row", found, local, ("token", "slot"), mine, on, "topk_ids")


@law
def law_every_slot_has_one_place(bench: Bench, case: Case) -> None:
    """Every slot is in exactly one block, one of its own expert, and ignored slots are in none.

    Integers: every kernel. Under an expert_map, a block holds its expert's local number, -1 for one elsewhere.
    """
    problem, results = bench.start()
    ids, mapping = problem.args["topk_ids"].long(), expert_map_of(problem)
    named = ids if mapping is None else mapping.long()[ids.clamp(min=0)]
    expected = torch.where(ids < 0, torch.tensor(-2), named)
    found = record_of(case.op).by_token(problem, results)["expert"]
    name, axes = "expert of slot (-2 none, -3 several)", ("token", "slot")
    bench.equal(name, found, expected, axes, None, "the case itself", "topk_ids")
