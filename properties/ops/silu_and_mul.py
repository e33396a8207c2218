"""silu_and_mul: the activation between the two GEMMs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moeracle.ref.contract import Contract

from ..bisect.suspects import ACTIVATION
from ..case import Case
from ..data import bell, spread_out, tiny
from ..generator import FORMATS, Bits, Format, Stream, integer_bits, power_bits, to_tensor
from ..infer.small import find_silu
from ..inputs import EXACT, strided
from ..optable import Argument, Result
from ..problem import Problem
from .families import FloatOp

if TYPE_CHECKING:
    from ..infer.calls import Calls
    from ..infer.found import Inference


class SiluAndMul(FloatOp):
    """What the harness knows of silu_and_mul."""

    name = "silu_and_mul"
    summary = "out = silu(h[:, :I]) * h[:, I:], silu(g) = g / (1 + exp(-g))."
    arguments = (Argument("h", "D [R, 2I]", "Gates, then ups."),)
    results = (Result("out", "D [R, I]", "Activations.", ("row", "n")),)
    dims = ("T", "I")
    data = ("normal", "outliers", "wide", "subnormal", "integers", "samesign", "allgates")
    data_flags = ("strided",)
    starter = "return ref.silu_and_mul(h).to(h.dtype)"
    starter_contract = "megakernel"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """silu_and_mul: h [T, 2I], gate columns first."""
        fmt, shape = FORMATS[case.dtype], (case.T, case.I)
        gate, up = _gate_and_up(case.data, fmt, shape, Stream(case.seed, "gate"), Stream(case.seed, "up"))
        h = to_tensor(np.concatenate([gate, up], axis=1), fmt)
        return Problem(case, {"h": strided(h, case)}, exact=case.data in EXACT)

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----

    inferred = ("silu", "store_rounding", "deterministic")

    def find_rules(self, calls: Calls, case: Case, result: Inference) -> Contract:
        return find_silu(calls, case, result)

    one_stage = ACTIVATION
    step_of_layer = True

    def step_case(self, layer: Case, sizes: dict[str, int]) -> Case:
        return super().step_case(layer, {**sizes, "T": layer.R})


def _gate_and_up(recipe: str, fmt: Format, shape: tuple[int, int], gates: Stream, ups: Stream) -> tuple[Bits, Bits]:
    half = fmt.mantissa == 10
    if recipe == "allgates":  # times 1, so that what is stored is silu itself
        return every_finite(gates, fmt, shape), np.full(shape, power_bits(0, fmt), fmt.uint)
    if recipe in EXACT:  # gates in multiples of 128: silu is ReLU, and every product fits fp16
        low = 0 if recipe == "samesign" else -15
        gate, up = low + gates.below(shape, 16 - low), low + ups.below(shape, 16 - low)
        return integer_bits(gate, 7, fmt), integer_bits(up, 0, fmt)
    if recipe == "wide":  # gates to beyond ±100
        return spread_out(gates, fmt, shape, -12 if half else -24, 8), spread_out(
            ups, fmt, shape, -8 if half else -24, 5 if half else 24
        )
    gate, up = bell(gates, fmt, shape, 1), bell(ups, fmt, shape)
    if recipe == "outliers":
        gate = np.where(gates.bits(shape, 8) < 8, bell(gates, fmt, shape, 5), gate)
        up = np.where(ups.bits(shape, 8) < 8, bell(ups, fmt, shape, 5), up)
    elif recipe == "subnormal":  # one factor of each product is subnormal
        first = gates.bits(shape, 8) < 128
        gate = np.where(first, tiny(gates, fmt, shape), gate)
        up = np.where(first, up, tiny(ups, fmt, shape))
    return gate, up


def every_finite(stream: Stream, fmt: Format, shape: tuple[int, int]) -> Bits:
    """Return all finite patterns of a 16-bit format in turn (65,280 of bf16, 63,488 of fp16), from any one on."""
    patterns = np.arange(1 << fmt.width, dtype=np.int64)
    finite = patterns[(patterns & (fmt.sign - 1)) >> fmt.mantissa < (fmt.sign >> fmt.mantissa) - 1]
    bits: Bits = np.resize(np.roll(finite, int(stream.below((1,), len(finite))[0])), shape).astype(fmt.uint)
    return bits
