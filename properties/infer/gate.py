"""The order of a shared expert's product with one column, x·g, read through the sigmoid that follows it.

out[p] = y[p] * sigmoid(x·g): with y held at 1, what is stored of the sigmoid of -n/4 tells n, and the sigmoid of sums
that are nothing but rounding error, scaled up to about 1, tells which order left it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from moeracle.ref.bitmodels.accumulate import accumulate
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.rounding import round_to

from ..common.generator import FORMATS, Stream, round_bits, to_tensor
from .drive import plain_weight
from .found import UNDECIDED, Inference
from .guesses import instructions_for, schedules_for
from .levels import shape_of
from .report import note
from .reveal import Counter, NotRevealedError, reveal
from .through import OPEN, GatedDots

A_UNIT = {torch.bfloat16: 0.25, torch.float16: 2.0**13}  # what g is, so that a unit of x is a quarter or a half
NOISE = {torch.bfloat16: (0, 17), torch.float16: (8, 9)}  # powers of two that x and g are scaled by


class GateDots(GatedDots):
    """x·g of a shared expert, one column: rows of x leave a gap that holds y at 1."""

    def __init__(self, calls: Any, site: Any, stage: str = "out") -> None:
        super().__init__(calls, site, stage)
        self.N, self.unit = 1, A_UNIT[self.dtype]

    def _open(self, q: torch.Tensor, s: torch.Tensor, gap: int) -> dict[str, Any]:
        case = self.site.case
        both = torch.zeros(2 * case.I, self.K)
        both[[0, case.I], gap] = 1
        down, s2 = torch.zeros(case.H, case.I), torch.ones(case.H, case.I // self.G)
        down[0, 0], s2[0, 0] = 1, OPEN**-2
        gate = -plain_weight(q, s * self.unit, self.dtype)[0]
        gate[gap] = 0
        return {**self.layer(both, torch.ones(2 * case.I, self.K // self.G), down, s2), "gate_weight": gate}

    def read(self, out: torch.Tensor) -> torch.Tensor:
        return out[:, :1].float()

    def counts(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sums [P, 1] that a sigmoid shows, to the next whole unit of x."""
        value = -torch.logit(self(x).double()) / self.unit
        unit = 1.0 if self.dtype == torch.bfloat16 else 2.0**-14
        whole = (value / unit).round()
        return torch.where((value / unit - whole).abs() < 0.2, whole * unit, value)


INFORMATIVE = 0.2  # share of sums that are not 0, or another length tells nothing
RIGHT = 0.99  # share that the right schedule predicts at least: a sigmoid is not correctly rounded


def find_gate(dots: GateDots, rules: Contract, result: Inference) -> Contract:
    """Return the rules with gate_schedule, where one predicts what is stored, here and at another length."""
    counter = Counter(dots.counts, dots.K, dots.dtype, dots.gaps)
    try:
        root = reveal(counter, range(dots.K), counter.size.most)
    except NotRevealedError as error:
        note(result, "gate_schedule", None, f"order of x·g not revealed: {error}", UNDECIDED)
        return rules
    shape = shape_of(root)
    step = shape.step if shape else 1
    names = sorted(instructions_for(step), key=lambda name: ("rz" in name, name))
    wanted = [replace(s, instruction=name) for s in schedules_for(root, dots.K) for name in names]
    here: list[str] = []
    asked = [dots, *(other for _, other in dots.others() if other.K != dots.K)]
    for each in asked:
        assert isinstance(each, GateDots)
        x, q, got = _noise(each)
        if float((got != 0.5).double().mean()) < INFORMATIVE and each is not dots:
            continue
        if each is dots:
            result.checks["gate_schedule"] = partial(_predicts, each, x, q, got, rules)
        wanted = [s for s in wanted if _predicts(each, x, q, got, rules, s)]
        here = here or [str(s) for s in wanted]
    order = shape.words() if shape else "irregular"
    if not wanted:
        only = f", {here[0]} at K = {dots.K}" if here else ""
        note(result, "gate_schedule", None, f"x·g: {order}; no schedule predicts it at every length{only}", UNDECIDED)
        return rules
    same = [str(s) for s in wanted[1:9] if len(str(s)) < 90]
    note(result, "gate_schedule", str(wanted[0]), f"x·g: {order}; predicts the sigmoid of rounding errors", same=same)
    return replace(rules, gate_schedule=wanted[0])


def _noise(dots: GateDots) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x [P, K], g [1, K] and what is stored of sigmoid(x·g), x·g being rounding error scaled to about 1."""
    K, P, name = dots.K, min(dots.limit, 256), "bf16" if dots.dtype == torch.bfloat16 else "fp16"
    stream, (of_x, of_g) = Stream(7, "infer.gate"), NOISE[dots.dtype]
    order = torch.from_numpy(stream.permutation(K).copy())
    first, second = order[: K // 2], order[K // 2 : K // 2 * 2]
    half = stream.normal((P, K // 2)) * (2.0 ** -stream.below((P, K // 2), 10)).astype("float32")  # or sums are exact
    values = to_tensor(round_bits(half, FORMATS[name]), FORMATS[name]) * 2.0**of_x
    x, q = torch.zeros(P, K, dtype=dots.dtype), torch.zeros(1, K)
    codes = (1 + torch.from_numpy(stream.below((1, K // 2), 1 << 7)).float() / 128) * 4
    x[:, first], x[:, second] = values, values
    q[:, first], q[:, second] = codes, -codes
    at = order.tolist().index(dots.gaps[0])
    x[:, [dots.gaps[0], int(order[(at + K // 2) % K])]] = 0
    s = torch.full((1, K // dots.G), 2.0**of_g / dots.unit)
    return x, -plain_weight(q, s * dots.unit, dots.dtype), dots(x, q, s)


def _predicts(
    dots: GateDots, x: torch.Tensor, gate: torch.Tensor, got: torch.Tensor, rules: Contract, schedule: Schedule
) -> bool:
    try:
        dot = accumulate(x, gate, schedule).double()
    except ValueError:
        return False
    to_d = lambda value: round_to(value, dots.dtype, rules.rounding("out", dots.dtype))
    dot = to_d(dot).double() if rules.gate == "unfused" else dot
    value = to_d(torch.sigmoid(dot).float().double())
    return float((value.double() == got.double()).double().mean()) >= RIGHT
