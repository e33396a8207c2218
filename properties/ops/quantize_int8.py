"""quantize_int8: the int8 quantizer of the lm_head."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.weights.quantize import quantize_int8

from ..bisect.suspects import QUANTIZER
from ..cases.case import Case, Problem
from ..cases.changes import FACTOR, multiplied
from ..cases.data import activations, bell, spread_out, tiny
from ..cases.optable import Argument, Result
from ..cases.record import Agreement, Comparison, Tensors
from ..common.generator import FORMATS, Bits, Stream, integer_bits, to_tensor
from ..common.verdict import Verdict
from ..compare.index_parts import tally_mask
from ..golden.derive import to_fp32
from ..golden.rational import as_tensor
from ..laws.batch import law_permuting_tokens, law_splitting_batches
from ..laws.scaling import law_scaling_by_powers_of_two
from ..laws.weights import law_negating_weights, law_quantizing_again
from .families import TupleOp


class QuantizeInt8(TupleOp):
    """What the harness knows of quantize_int8."""

    name = "quantize_int8"
    summary = (
        "scale = max(amax, 1e-10) / 127 of each group; codes = w / scale, rounded to nearest even, within -128..127."
    )
    arguments = (
        Argument("w", "D [V, K]", "The weight; D may be fp32 too."),
        Argument("group_size", "int", "G, or -1 for one group a row.", size="G"),
    )
    results = (
        Result("codes", "int8 [V, K]", "Codes.", ("row", "column")),
        Result("scale", "float32 [V] or [V, K/G]", "Scales.", ("row", "group")),
    )
    dims = ("V", "K", "G")
    dtypes = ("bf16", "fp16", "fp32")
    data = ("normal", "outliers", "wide", "subnormal", "integers")
    starter = "return ref.quantize_int8(w, group_size)"

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """quantize_int8: w [V, K], group_size."""
        fmt, stream, shape = FORMATS[case.dtype], Stream(case.seed, "w"), (case.V, case.K)
        if case.data == "integers":  # multiples of s/2 with the largest at 127 s: half of them are ties
            values = stream.below(shape, 509) - 254
            values[:, :: case.K if case.G == -1 else case.G] = 254
            lower: Bits = (stream.below((case.V, 1), 6) << fmt.mantissa).astype(fmt.uint)  # a power of two for each row
            bits = integer_bits(values, -1, fmt)
            bits = np.where(values == 0, bits, bits - lower)
        elif case.data == "wide":
            bits = spread_out(stream, fmt, shape, -14 if fmt.mantissa == 10 else -30, 10)
        elif case.data == "subnormal":  # and a row of zeros, whose amax is below the quantizer's floor
            bits = tiny(stream, fmt, shape)
            bits[0] = 0
        elif case.data == "outliers":
            bits = activations("outliers", fmt, *shape, case.seed)
        else:
            bits = bell(stream, fmt, shape, -5)
        return Problem(case, {"w": to_tensor(bits, fmt), "group_size": case.G}, exact=case.data == "integers")

    # ---- Judging: shapes, bands, references, derivations ----

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        (V, K), G = problem.args["w"].shape, problem.args["group_size"]
        return {"codes": (V, K), "scale": (V,) if G == -1 else (V, K // G)}

    def judge_parts(self, problem: Problem, parts: list[torch.Tensor], verdict: Verdict) -> None:
        """The scale within an ulp of amax/127, the codes as rounded from the kernel's own scale.

        A quotient w/s of an approximate division (2 ulp) may fall on the other side of a tie, except where s is a power
        of two, which every division gets right; nothing else is open.
        """
        w, G = problem.args.values()
        V, K = w.shape
        groups = 1 if G == -1 else K // G
        codes, scale = parts[0].double(), parts[1].double().reshape(V, groups)
        amax = w.double().abs().reshape(V, groups, -1).amax(-1)
        expected = amax.clamp(min=1e-10) / 127
        off = ~((scale - expected).abs() <= expected * 2.0**-22)
        tier = "interval" if bool(scale[off].isfinite().all()) else "nonfinite"

        def tell_scale(v: int, g: int) -> str:
            return f"got {float(scale[v, g]):.8g}, legal {float(expected[v, g]):.8g} ± 2 ulp"

        tally_mask(verdict, self.result("scale"), off, tier, tell_scale)
        if verdict.status != "legal":
            return
        slack = torch.where(torch.frexp(scale).mantissa == 0.5, 0.0, 2.0**-22).repeat_interleave(K // groups, 1)
        quotient = w.double() / scale.repeat_interleave(K // groups, 1)
        reach = quotient.abs() * slack
        lo, hi = (torch.round(quotient + side).clamp(-128, 127) for side in (-reach, reach))

        def tell_code(v: int, c: int) -> str:
            least, most = int(lo[v, c]), int(hi[v, c])
            return f"got {int(codes[v, c])}, legal {least if least == most else f'{least} or {most}'}"

        tally_mask(verdict, self.result("codes"), ~((lo <= codes) & (codes <= hi)), "bits", tell_code)

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        return self.named(quantize_int8(*problem.args.values()))

    def compared(self, output: Any) -> torch.Tensor:
        """Each code [V, K] times its scale: what a test of a quantizer compares."""
        codes, scale = output
        per_group = scale.reshape(len(codes), -1)
        values: torch.Tensor = codes.float() * per_group.repeat_interleave(codes.shape[1] // per_group.shape[1], 1)
        return values

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Scale amax/127 and quotients w/scale correctly rounded to fp32, the codes to the nearest even integer."""
        w, G = problem.args.values()
        K = w.shape[1]
        size = K if G == -1 else G
        floor = float(torch.tensor(1e-10, dtype=torch.float32))
        codes, scales = [], []
        for row in w.double().tolist():
            groups = [row[start : start + size] for start in range(0, K, size)]
            steps = [to_fp32(Fraction(max(floor, *map(abs, group))) / 127) for group in groups]
            quotients = [
                Fraction(to_fp32(Fraction(v) / Fraction(s))) for g, s in zip(groups, steps, strict=True) for v in g
            ]
            codes.append([max(-128, min(127, round(q))) for q in quotients])  # Fraction's round: ties to even
            scales.append(steps)
        scale = as_tensor(scales, K // size, torch.float32)
        return {"codes": torch.tensor(codes).to(torch.int8), "scale": scale[:, 0].contiguous() if G == -1 else scale}

    def cost(self, case: Case) -> int:
        return case.sizes["V"] * case.sizes["K"]

    # ---- Laws and diagnosis ----

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_scaling_by_powers_of_two,
        law_negating_weights,
        law_quantizing_again,
    )

    elementwise = True
    token_letter = "V"
    token_args = ("w",)

    def token_axes(self, value: torch.Tensor) -> tuple[str, ...]:
        return ("row", "k")[: value.ndim]

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        return [("w", {"w": multiplied(problem.args["w"])})]

    def scaled_results(self, problem: Problem, results: Tensors) -> Iterator[Comparison]:
        """Codes stay and scales grow, but for rows below the quantizer's floor."""
        V, K = problem.case.V, problem.case.K
        floor = results["scale"].double() > 1e-11  # the quantizer's 1e-10 / 127, with a margin
        per_group = floor.reshape(V, -1)
        wide = per_group.repeat_interleave(K // per_group.shape[1], 1)
        yield Comparison("codes", results["codes"].int(), ("row", "k"), wide)
        scale = results["scale"].double() * FACTOR
        yield Comparison("scale", scale, ("row", "group")[: scale.ndim], floor)

    def agreement(self, problem: Problem, got: Tensors, expected: Tensors, *, ties: bool) -> Iterator[Agreement]:
        """Scales within the two approximate divisions' 2^-21; codes equal unless the quotient is that near a tie."""
        scale, other = expected["scale"].double(), got["scale"].double()
        axes = ("row", "group")[: scale.ndim]
        yield Agreement("scale", (other - scale).abs() <= scale * 2.0**-21, other, scale, axes)
        w, per_group = problem.args["w"].double(), scale.reshape(problem.case.V, -1)
        quotient = w / per_group.repeat_interleave(problem.case.K // per_group.shape[1], 1)
        from_tie = (quotient - quotient.floor() - 0.5).abs()
        clear = from_tie > quotient.abs() * 2.0**-19 + 2.0**-30
        codes, wanted = got["codes"].int(), expected["codes"].int()
        yield Agreement("codes", codes == wanted, codes, wanted, ("row", "k"), clear)

    # ---- Inference, bisection and the bench ----

    nothing_inferred = "no contract names a rounding of it; `moeracle check` judges its codes and scales"

    one_stage = QUANTIZER
