"""Experiments on a kernel that is a black box: made weights and activations, its answers, two of them compared.

Nearly every probe is a *relation*: two problems that differ in one respect alone, which a right kernel must answer with
the same values. What lies behind that respect sees the same numbers both times, so a relation that fails convicts what
it varied, whatever else is wrong with the kernel. All data are exact: small integers times powers of two, so that every
order of accumulation gives the same sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.weights.layouts import pack_codes
from moeracle.ref.weights.weight import OF_BITS, Int4Weight

from ..cases.case import Case, Problem
from ..cases.inputs import strided
from ..cases.kernel_like import KernelLike
from ..cases.optable import WIDTHS
from ..cases.record import OpRecord, record_of
from ..cases.weights import PAD_WORD
from ..common.guard import Guarded
from ..common.torch_state import our_arithmetic
from ..compare.shapes import as_outputs, wrong_shape
from ..judge import judge
from ..trial.call import call, ending_of
from .made import Layer as Layer
from .made import Weight as Weight

T = torch.Tensor
# Values of u - z, or of the lm_head's codes, that stand for all those of 8 bits.
OF_EIGHT_BITS = [-128, -127, -126, -65, -64, -16, -9, -2, 2, 7, 8, 15, 16, 63, 64, 126, 127]
POISON = 3.0  # what fresh memory holds: not NaN, so that an element nobody wrote does not hide the others


class UnansweredError(Exception):
    """The kernel raised on a made problem, or returned another form; one line."""


@dataclass
class Probe:
    """One question put to a kernel.

    Args:
        name: short, unique.
        suspect: the stage that is convicted if the answer is wrong.
        asks: what must hold, in words.
        passed: whether it held.
        detail: the first thing that did not, in one line.
        also: another stage whose faults give the same outputs, "" if there is none.
    """

    name: str
    suspect: str
    asks: str
    passed: bool = True
    detail: str = ""
    also: str = ""


@dataclass
class Bench:
    """Puts made problems to one kernel.

    Args:
        kernel: op moe_w4a16.
        case: gives dimensions, dtype, layout and zero points; its routing, data and seed are not used.
        rules: the contract that the kernel keeps.
        observe: the stage to look at.
        device: where the kernel runs.
    """

    kernel: KernelLike
    case: Case
    rules: Contract
    observe: str = "out"
    device: str = "cpu"
    calls: int = 0
    k1: int = field(init=False)

    def __post_init__(self) -> None:
        one = self.allowed(k=1, T=1)
        self.k1 = 1 if one else self.case.k
        self.D = self.case.torch_dtype or torch.bfloat16
        self.E, self.H, self.I = self.case.E, self.case.H, self.case.I
        self.Z = self.plain_zero()
        self.random = torch.Generator().manual_seed(self.case.seed & 0xFFFFFFFF)

    def plain_zero(self) -> int:
        """Return the zero point of the plain problem: half the middle leaves codes on both sides below the top bit."""
        middle = 1 << (self.case.bits - 1)
        return middle if self.case.zero_layout is None else middle // 2

    @property
    def record(self) -> OpRecord:
        """What the harness knows of the kernel's op."""
        return record_of(self.case.op)

    def allowed(self, **changes: Any) -> bool:
        """Say whether the kernel takes the case with these fields changed."""
        try:
            return self.kernel.why_not(self.case.replace(**changes)) is None
        except ValueError:
            return False

    # Problems

    def weight(self, N: int, K: int, q: int = 1, scale: float = 1.0) -> Weight:
        """Return a weight whose every element is q * scale, the zero points all alike."""
        groups = 1 if self.case.G == -1 else K // self.case.G
        shape = (self.E, N, groups)
        return Weight(
            torch.full((self.E, N, K), self.Z + q),
            torch.full(shape, scale, dtype=torch.float32),
            torch.full(shape, self.Z),
        )

    def plain(self, rows: int = 1, x: T | None = None, *, k: int | None = None, scale: float | None = None) -> Layer:
        """Return the plainest problem: all weights and experts alike, every token to the first experts, all x 1.

        Args:
            rows: T.  x: [T, H] or None.  k: slots.  scale: of w13; None makes h about 1.
        """
        k = self.k1 if k is None else k
        s13 = 2.0 ** -math.ceil(math.log2(self.H)) if scale is None else scale
        x = torch.ones(rows, self.H) if x is None else x
        w13 = self.weight(2 * self.I, self.H, 1, s13)
        w2 = self.weight(self.H, self.I, 1, 2.0 ** -math.ceil(math.log2(self.I)))
        ids = torch.arange(k).repeat(len(x), 1)
        return Layer(x, ids, torch.full((len(x), k), 2.0 ** -math.ceil(math.log2(k))), w13, w2)

    def onehot(self, column: int, value: float = 1.0) -> T:
        """Return x [1, H] with one column that is not 0."""
        x = torch.zeros(1, self.H)
        x[0, column] = value
        return x

    def draw(self, low: int, high: int, shape: tuple[int, ...]) -> T:
        """Draw integers low..high."""
        return torch.randint(low, high + 1, shape, generator=self.random)

    def quanta(self) -> list[int]:
        """List every u - z but 0; of 8 bits, those that stand for them."""
        if self.case.bits == 8:
            return [q for q in OF_EIGHT_BITS if q >= -self.Z]
        return [q for q in range(-self.Z, 16 - self.Z) if q]

    def draw_codes(self, shape: tuple[int, ...]) -> T:
        """Draw any codes of the case's weight."""
        return self.draw(0, (1 << self.case.bits) - 1, shape)

    def groups(self, w: Weight) -> int:
        """Columns that share a scale."""
        return w.u.shape[2] // w.s.shape[2]

    # Answers

    def problem(self, layer: Layer) -> Problem:
        """Pack a layer as the kernel reads it."""
        rows, k = layer.ids.shape
        case = self.case.replace(
            T=rows, k=k, routing="repeat" if k > self.E else self.case.routing, flags=self.case.flags & {*WIDTHS}
        )
        x = layer.x.to(self.D)
        if layer.strided:
            x = strided(x, case.replace(flags=frozenset({"strided"})))
        args = {
            "x": x, "w13": self.packed(layer.w13), "w2": self.packed(layer.w2),
            "topk_weights": layer.router.float(), "topk_ids": layer.ids.to(torch.int32),
        }  # fmt: skip
        return Problem(case, args, exact=True).to(self.device)

    def packed(self, w: Weight) -> Int4Weight:
        """Pack one weight in the case's layout, zero points and padding."""
        form, zero = self.case.zero_layout, None if self.case.zero_layout is None else w.z.to(torch.uint8)
        made = OF_BITS[self.case.bits].from_codes(
            w.u.to(torch.uint8), w.s.to(self.D), zero, layout=self.case.layout, zero_layout=form or "unpacked"
        )
        if not self.case.pad:
            return made
        words = pack_codes(w.u.to(torch.uint8), self.case.layout, self.case.bits)
        filler = PAD_WORD & 0xFF if words.element_size() == 1 else PAD_WORD
        wide = torch.full((*words.shape[:-1], words.shape[-1] + self.case.pad), filler, dtype=words.dtype)
        wide[..., : words.shape[-1]] = words
        return replace(made, packed=wide[..., : words.shape[-1]])

    def answer(self, layer: Layer, poison: float = POISON) -> T:
        """Run the kernel once; return the observed stage in fp64, on the CPU."""
        return self.outputs(self.problem(layer), poison)[self.observe].double().cpu()

    def outputs(self, problem: Problem, poison: float = POISON) -> dict[str, T]:
        """Run the kernel once on guarded inputs; return what it stored.

        Raises:
            UnansweredError: it raised, or did not return what the op returns.
        """
        self.calls += 1
        try:
            returned = call(self.kernel, Guarded(problem.args).args, 0, problem.case, poison)
        except Exception as error:  # whatever a user's kernel raises is a finding, not our crash
            raise UnansweredError(f"{ending_of(error)[1][0]} on {problem.case}") from error
        output = as_outputs(problem.case.op, returned)
        complaint = output if isinstance(output, str) else wrong_shape(problem, output, self.rules)
        if complaint or isinstance(output, str):
            raise UnansweredError(f"{complaint}, on {problem.case}")
        if self.observe != "h" and self.observe not in output:
            raise UnansweredError(f"stored no {self.observe} on {problem.case}")
        return output

    def is_legal(self, layer: Layer) -> str:
        """Judge one made problem; return "" or the reason against it."""
        problem = self.problem(layer)
        output = self.outputs(problem)
        with our_arithmetic():
            stages = output if self.record.layer else output["out"]
            verdict = judge(problem, stages, self.rules, explain=False)
        return "" if verdict.status != "illegal" else verdict.reason

    # Comparisons

    def differ(self, got: T, want: T, what: str = "") -> str:
        """Return "" where two answers are the same values, else the first difference in one line."""
        if got.shape != want.shape:
            want = want.expand_as(got)
        wrong = got != want
        if not bool(wrong.any()):
            return ""
        at = tuple(wrong.nonzero()[0].tolist())
        row = f"{self.observe}[{', '.join(map(str, at))}]"
        where = f" {what}" if what else ""
        return (
            f"{int(wrong.sum()):,} of {wrong.numel():,} elements{where}: {row} is {got[at]:.6g}, must be {want[at]:.6g}"
        )

    def steady(self, layer: Layer, runs: int = 6) -> bool:
        """Say whether the same problem gets the same answer every time."""
        first = self.answer(layer)
        return all(bool((self.answer(layer) == first).all()) for _ in range(runs - 1))


def hidden(bench: Bench, gate: float, up: float, unit: int | None = None, rows: int = 1) -> Layer:
    """Return a problem whose h is `gate` and `up` in every hidden unit, or in one unit alone."""
    x = torch.zeros(rows, bench.H)
    x[:, 0] = 1
    layer = bench.plain(x=x, scale=1.0)
    I = bench.I
    on = torch.ones(I, dtype=torch.bool) if unit is None else torch.arange(I) == unit
    for part, value in ((slice(None, I), gate), (slice(I, None), up)):
        layer.w13.s[:, part] = abs(value) or 1.0
        q = torch.where(on, (value > 0) - (value < 0), 0)
        layer.w13.u[:, part] = bench.Z + q[None, :, None]
    return layer
