"""Laws about batches: the answer for a token does not depend on where it stands, nor on who stands beside it."""

from __future__ import annotations

import torch

from moeracle.ref.contracts.contract import Contract

from ..cases.case import Case, Problem
from ..cases.changes import permutation
from ..cases.record import record_of
from ..common.generator import Stream
from ..judge import judge
from .agree import agree
from .bench import Bench, Results, Silent, law, law_of_promise

TOKENS_ALONE = 3  # how many are asked about by themselves


def _length(problem: Problem) -> int:
    length = _length_of(problem)
    if length < 2:
        raise Silent
    return length


@law
def law_permuting_tokens(bench: Bench, case: Case) -> None:
    """f(x[p]) = f(x)[p]: shuffling the tokens shuffles the results, and changes none.

    Bit for bit on exact data under every contract with an fp32 accumulator: a row may land in another tile, another
    vector lane or another block, so on other data legal kernels may differ. Dispatch ops only copy: any data.
    topk_softmax and quantize_int8 have no exact data: within twice their own error, ids and codes equal away from ties.
    """
    problem, results = bench.start(exact=True)
    record = record_of(case.op)
    order = permutation(problem, "tokens", _length(problem))
    shuffled = record.take_tokens(problem, order)
    got = record.by_token(shuffled, bench.run(shuffled, "its tokens shuffled"))
    expected = record.by_token(problem, results)
    moved = {name: value[order] for name, value in expected.items()}
    agree(bench, shuffled, got, moved, "its tokens shuffled")


@law
def law_splitting_batches(bench: Bench, case: Case) -> None:
    """f(x) = f(x[:c]) followed by f(x[c:]): a batch may be cut in two.

    Bit for bit on exact data, as law_permuting_tokens: kernels choose tiles, and even algorithms, by the batch size. A
    kernel that does not take one of the two halves' sizes is not asked.
    """
    problem, results = bench.start(exact=True)
    record = record_of(case.op)
    halves, cut = _halves(problem)
    parts = [record.by_token(half, bench.run(half, f"a part of {_length_of(half)} tokens")) for half in halves]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    agree(bench, problem, joined, record.by_token(problem, results), f"the batch cut after {cut}")


@law_of_promise("batch_invariant")
def law_batch_invariance(bench: Bench, case: Case) -> None:
    """f(x[i]) has the bits of f(x)[i]: for any choice i of tokens.

    Only where the contract says batch_invariant, and then on any data: shuffled, cut in two, a few tokens alone,
    and all of them twice, the second time backwards. What the kernel does not take, or the case's routing does not
    promise, is not asked. NaN beside NaN agrees where the case's own answer may be NaN.
    """
    problem, results = bench.start()
    record = record_of(case.op)
    expected, length = record.by_token(problem, results), _length_of(problem)
    legal_nan = record.by_token(problem, legal_nans(problem, results, bench.contract))
    if not length:
        raise Silent
    halves, cut = torch.arange(length), length // 2
    alone = Stream(case.seed, "law.alone").below((TOKENS_ALONE,), length).tolist()
    chosen = {
        "its tokens shuffled": permutation(problem, "tokens", length),
        f"its first {cut} tokens": halves[:cut],
        f"its last {length - cut} tokens": halves[cut:],
        "all tokens, then all of them backwards": torch.cat([halves, halves.flip(0)]),
        **{f"token {t} alone": torch.tensor([t]) for t in dict.fromkeys(alone)},
    }
    for on, index in chosen.items():
        part = record.take_tokens(problem, index)
        if not len(index) or bench.refuses(part):
            continue
        for name, value in record.by_token(part, bench.run(part, on)).items():
            told = ~(value.isnan() & legal_nan[name][index])
            bench.equal(name, value, expected[name][index], record.token_axes(value), told, on)


def legal_nans(problem: Problem, results: Results, rules: Contract) -> Results:
    """Say of each element of some results whether it is NaN and the contract lets it be."""
    nans = {name: value.isnan() for name, value in results.items()}
    if any(bool(where.any()) for where in nans.values()):
        output = results if record_of(problem.case.op).layer else tuple(results.values())
        verdict = judge(problem, output if len(results) > 1 else next(iter(results.values())), rules, explain=False)
        nans = {name: where & ~verdict.illegal_at.get(name, torch.tensor(False)) for name, where in nans.items()}
    return nans


def _length_of(problem: Problem) -> int:
    return problem.case.sizes[record_of(problem.case.op).token_letter]


def _halves(problem: Problem) -> tuple[list[Problem], int]:
    """Cut a problem's tokens in two at a place that its seed decides; return the halves and the place."""
    case, length = problem.case, _length(problem)
    cut = 1 + int(Stream(case.seed, "law.cut").below((1,), length - 1)[0])
    tokens = torch.arange(length)
    return [record_of(case.op).take_tokens(problem, part) for part in (tokens[:cut], tokens[cut:])], cut


@law
def law_dispatch_counts_add_up(bench: Bench, case: Case) -> None:
    """Every slot of an expert has exactly one place, so the counts of two half batches add up to the whole's.

    For moe_permute, expert_offsets add, and inv is a permutation; for moe_align_block_size each half's padded length is
    at least its share. Integers: every kernel.
    """
    problem, results = bench.start()
    halves, _ = _halves(problem)
    parts = [bench.run(half, f"a part of {half.case.T} tokens") for half in halves]
    if "expert_offsets" in results:
        total = parts[0]["expert_offsets"] + parts[1]["expert_offsets"]
        bench.equal("expert_offsets", total, results["expert_offsets"], ("expert",), on="the two halves, added")
        everyone = torch.arange(case.R, dtype=results["inv"].dtype)
        bench.equal("sorted inv", results["inv"].sort().values, everyone, ("slot",), on="its inv, sorted")
        return
    lengths = [r["num_tokens_post_padded"] for r in (*parts, results)]
    together = lengths[0] + lengths[1]
    fits = (lengths[2] <= together) & (lengths[2] % case.B == 0)
    bench.demand("num_tokens_post_padded", fits, together, lengths[2], ("entry",), on="the two halves, added")
