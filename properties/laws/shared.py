"""Laws about the shared expert's gate, and about the sigmoid in it."""

from __future__ import annotations

import torch

from ..cases.case import Case
from ..cases.changes import like, with_args
from .bench import Bench, Silent, law

AXES = ("token", "n")


@law
def law_no_gate_weight_halves(bench: Bench, case: Case) -> None:
    """A gate weight of 0 halves the output: sigmoid(0) = 1/2, and 2 f(x; g = 0) = f(x; no gate).

    Bit for bit on exact data, where both are one rounding of one number; elements that half of is no normal number are
    left out. A kernel may take another path without a gate.
    """
    problem, results = bench.start(exact=True, without=frozenset({"gate"}))
    zero = torch.zeros(case.H, dtype=problem.args["x"].dtype)
    with_gate = case.replace(data=problem.case.data, flags=problem.case.flags | {"gate"})
    changed = with_args(problem, gate_weight=zero)
    changed.case = with_gate
    got, out = bench.run(changed, "a gate weight of 0")["out"].double(), results["out"].double()
    limits = torch.finfo(problem.args["x"].dtype)
    fits = (out == 0) | (out.abs() >= 4 * limits.smallest_normal)
    bench.equal("2 out", got * 2, out, AXES, fits, "a gate weight of 0", "its output without a gate")


@law
def law_gates_of_both_signs_add_up(bench: Bench, case: Case) -> None:
    """f(x; g) + f(x; -g) = f(x; no gate), since sigmoid(d) + sigmoid(-d) = 1; within the roundings of D.

    Every kernel, on the case's own data: two products and the output itself, each within half an ulp of D, and the two
    gates, which are rounded to D too; all but the last relative to the ungated output.
    """
    if "gate" not in case.flags:
        raise Silent
    problem, results = bench.same_computation()
    gate = problem.args["gate_weight"]
    other = bench.run(with_args(problem, gate_weight=-gate), "the gate weight negated")["out"].double()
    plain = with_args(problem, gate_weight=None)
    plain.case = problem.case.replace(flags=problem.case.flags - {"gate"})
    whole = bench.run(plain, "no gate")["out"].double()
    limits = torch.finfo(problem.args["x"].dtype)
    total = results["out"].double() + other
    # Two gates and two products are rounded, each by eps/2 at most, and y may be that of another path.
    slack = whole.abs() * limits.eps * 4 + 8 * limits.smallest_normal
    spoken = whole.isfinite() & (bench.contract.gate != "unfused")
    right = (total - whole).abs() <= slack
    bench.demand("sum", right, total, whole, AXES, spoken, "g and -g", "its output without one")


@law
def law_sigmoids_of_both_signs_add_up(bench: Bench, case: Case) -> None:
    """sigmoid(x·w) + sigmoid(-x·w) = 1, within two roundings to D; without a sigmoid, f(-x) = -f(x) bit for bit."""
    problem, results = bench.same_computation()
    x = problem.args["x"]
    got = bench.run(with_args(problem, x=like(x, -x)), "x negated")["out"].double()
    out = results["out"].double()
    if not problem.args["sigmoid"]:
        bench.equal("out", -got, out, AXES, out.isfinite(), "x negated")
        return
    eps = torch.finfo(x.dtype).eps
    legal = torch.ones_like(out)
    bench.demand("sum", (out + got - 1).abs() <= 2 * eps, out + got, legal, AXES, None, "x and -x", "what sigmoids do")
