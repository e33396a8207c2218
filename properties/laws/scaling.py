"""Laws about values: powers of two pass every rounding, exact sums are linear, columns do not see each other."""

from __future__ import annotations

import torch

from moeracle.ref.rounding import round_to

from ..cases.case import Case
from ..cases.changes import FACTOR, with_args
from ..cases.inputs import strided
from ..cases.record import record_of
from ..common.generator import Stream
from .bench import Bench, Silent, law

# Recipes whose every fp32 step stays among the normal numbers, times four too.
SCALABLE = ("normal", "outliers", "cancelling", "codes16", "integers", "onehot", "samesign")


@law
def law_scaling_by_powers_of_two(bench: Bench, case: Case) -> None:
    """f(4 x) = 4 f(x), bit for bit: a power of two passes through every rounding, fp32 sum and cast unchanged.

    Scaled in turn, with a bias if there is one: x and the weights' scales of a GEMM; the router weights (not where they
    enter on the input) and, in bf16, w2's scales of an MoE layer; the up half of silu_and_mul; what the quantizer reads
    (codes stay, scales grow). Same computation, so only for deterministic contracts; elements that are subnormal,
    overflow, are not finite, or lie below the quantizer's floor are left out, and so are recipes made of such.
    """
    record = record_of(case.op)
    if record.sums_products and bench.contract.adder.in_dtype and case.dtype == "fp16":
        raise Silent  # its partial sums may be subnormal
    if not bench.contract.deterministic or not (record.elementwise or case.data in SCALABLE):
        raise Silent
    problem, results = bench.start()
    try:
        ways = record.scalings(problem, bench.contract)
    except OverflowError:
        raise Silent from None
    for what, changes in ways:
        on = f"{what} times {FACTOR:g}"
        got = bench.run(with_args(problem, **changes), on)
        for part in record.scaled_results(problem, results):
            value = got[part.name].to(part.expected.dtype)
            bench.equal(part.name, value, part.expected, part.axes, part.where, on)


@law
def law_linearity(bench: Bench, case: Case) -> None:
    """f(a + b) = f(a) + f(b) on rows with one 1 each, whose results are stored exactly; a and b differ in their column.

    Every kernel with an fp32 accumulator must show it bit for bit: f(a) and f(b) are single weights, integers of few
    bits times a power of two, and f(a + b) is their sum, rounded once as the contract stores. Without a bias.
    """
    problem, _ = bench.start(exact=True, without=frozenset({"bias", "weight", "sigmoid", "padvocab"}))
    x = problem.args["x"]
    rows, K = x.shape
    if K < 2 or not rows:
        raise Silent
    stream = Stream(case.seed, "law.columns")
    first = torch.from_numpy(stream.below((rows,), K))
    second = (first + 1 + torch.from_numpy(stream.below((rows,), K - 1))) % K
    hot = [torch.zeros(rows, K, dtype=x.dtype).scatter_(1, c[:, None], 1.0) for c in (first, second)]
    runs = []
    for what, value in (("a", hot[0]), ("b", hot[1]), ("a + b", hot[0] + hot[1])):
        changed = with_args(problem, x=strided(value, problem.case))
        changed.case = problem.case.replace(data="onehot")  # which a kernel may decline
        runs.append(bench.run(changed, f"one-hot rows {what}")["out"])
    total = runs[0].double() + runs[1].double()
    kept = runs[2].dtype
    expected = round_to(total, kept, bench.contract.rounding("out", kept))
    used = record_of(case.op).rows_with_meaning(problem)
    where = None if used is None else used[:, None]
    bench.equal(
        "f(a + b)", runs[2], expected, ("row", "n"), where, "one-hot rows a + b", "the sum of its results on a and on b"
    )


@law
def law_columns_are_independent(bench: Bench, case: Case) -> None:
    """Output column n depends on weight row n alone (on columns n of gate and up): the others may change.

    Bit for bit on any data where the contract is deterministic (same computation), else on exact data. Every second
    column changes, then the others.
    """
    problem, results = bench.same_computation()
    record, out = record_of(case.op), results["out"]
    for parity in (0, 1):
        columns = torch.arange(out.shape[1]) % 2 != parity  # those that change
        on = f"other values in the {'odd' if parity == 0 else 'even'} columns"
        changed = record.change_columns(problem, columns)
        got = bench.run(changed, on)["out"]
        bench.equal("out", got, out, record.token_axes(out), ~columns & out.isfinite(), on)
