"""quantize_int8: the int8 quantizer of the lm_head."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.quantize import quantize_int8

from ..case import Case
from ..cases.record import Tensors
from ..golden.derive import to_fp32
from ..golden.rational import as_tensor
from ..judge.index_parts import tally_mask
from ..optable import Argument, Result
from ..problem import Problem
from ..verdict import Verdict
from .families import TupleOp


class QuantizeInt8(TupleOp):
    """What the harness knows of quantize_int8."""

    name = "quantize_int8"
    summary = (
        "scale = max(amax, 1e-10) / 127 of each group; codes = w / scale, rounded to nearest even, within -128..127."
    )
    arguments = (
        Argument("w", "D [V, K]", "The weight; D may be fp32 too."),
        Argument("group_size", "int", "G, or -1 for one group a row."),
    )
    results = (
        Result("codes", "int8 [V, K]", "Codes.", ("row", "column")),
        Result("scale", "float32 [V] or [V, K/G]", "Scales.", ("row", "group")),
    )
    dims = ("V", "K", "G")
    dtypes = ("bf16", "fp16", "fp32")
    data = ("normal", "outliers", "wide", "subnormal", "integers")

    # ---- What a case is built into ----

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

    # ---- Inference, bisection and the bench ----
