"""silu_and_mul: the activation between the two GEMMs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from moeracle.ref.activation import ACTIVATIONS
from moeracle.ref.bounds.activation import silu_mul_band
from moeracle.ref.bounds.band import exactly
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.ops.silu_and_mul import silu_and_mul

from ..bisect.suspects import ACTIVATION
from ..cases.case import Case, Problem
from ..cases.changes import like, multiplied, with_args
from ..cases.data import bell, spread_out, tiny
from ..cases.inputs import EXACT, strided
from ..cases.optable import Argument, Result
from ..cases.record import Piece, Tensors
from ..common.drift import Errors
from ..common.generator import FORMATS, Bits, Format, Stream, integer_bits, power_bits, to_tensor
from ..compare.floats import all_rows, pieces
from ..compare.statistics import errors_of_silu
from ..golden.derive import activated
from ..infer.calls import Calls
from ..infer.found import Inference
from ..infer.small import find_silu
from ..laws.activation import law_beyond_the_limit
from ..laws.batch import law_batch_invariance, law_permuting_tokens, law_splitting_batches
from ..laws.scaling import law_columns_are_independent, law_scaling_by_powers_of_two
from .families import FloatOp, rounded


class SiluAndMul(FloatOp):
    """What the harness knows of silu_and_mul."""

    name = "silu_and_mul"
    summary = (
        "out = silu(h[:, :I]) * h[:, I:], silu(g) = g / (1 + exp(-g)); or what the contract's `activation` names "
        f"({', '.join(ACTIVATIONS)})."
    )
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

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        R, columns = problem.args["h"].shape
        return {"out": (R, columns // 2)}

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        h = problem.args["h"]
        for rows in pieces(all_rows(h)):
            yield "out", rows, 0, silu_mul_band(exactly(h[rows]), rules, h.dtype)

    def errors(self, case: Case, rules: Contract, stage: str) -> Errors | None:
        return errors_of_silu(rules)

    def open_zero_sign(self, case: Case, stage: str) -> bool:
        return True

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        return rounded({"out": silu_and_mul(problem.args["h"], dtype=dtype)}, problem.case)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        h = problem.args["h"]
        return {"out": activated(h, contract, h.dtype, True)}

    # ---- Laws and diagnosis ----

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_batch_invariance,
        law_scaling_by_powers_of_two,
        law_columns_are_independent,
        law_beyond_the_limit,
    )

    has_exact_data = True
    elementwise = True
    token_args = ("h",)

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        h = problem.args["h"]
        gate, up = h.chunk(2, dim=1)
        if not contract.activation.linear_in_up:
            return []
        return [("the up half", {"h": like(h, torch.cat([gate, multiplied(up)], dim=1))})]

    def exact_under(self, problem: Problem, rules: Contract) -> Problem:
        """Gates are multiples of 128, too large to be squared: they become whole numbers."""
        if rules.activation.kind != "relu2":
            return problem
        gate, up = problem.args["h"].chunk(2, dim=1)
        return with_args(problem, h=like(problem.args["h"], torch.cat([gate * 2.0**-7, up], dim=1)))

    def change_columns(self, problem: Problem, columns: torch.Tensor) -> Problem:
        h = problem.args["h"]
        return with_args(problem, h=like(h, torch.where(columns.repeat(2), -h, h)))

    # ---- Inference, bisection and the bench ----

    inferred = ("silu", "activation", "store_rounding", "deterministic")

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
