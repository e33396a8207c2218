"""A law about activations with a limit: what lies beyond it counts as the limit itself."""

from __future__ import annotations

import torch

from ..cases.case import Case
from ..cases.changes import like, with_args
from .bench import Bench, Silent, law


@law
def law_beyond_the_limit(bench: Bench, case: Case) -> None:
    """f(gate, up) = f(gate, up clipped): what lies beyond a limit gives the bits that the limit gives.

    The gate is clipped from above, where the limit holds for the gate, and up on both sides. Same computation, so only
    for deterministic contracts; silent where the activation has no limit. Both are what the activation itself does, but
    nothing here computes one: the kernel is compared with itself.
    """
    how = bench.contract.activation
    if how.limit is None or not bench.contract.deterministic:
        raise Silent
    problem, results = bench.start()
    h = problem.args["h"]
    gate, up = h.chunk(2, dim=1)
    clipped = torch.cat([how.limited(gate), how.within(up)], dim=1)
    got = bench.run(with_args(problem, h=like(h, clipped)), "h clipped to the limit")["out"]
    bench.equal("out", got, results["out"], ("row", "n"), None, "h clipped to the limit")
