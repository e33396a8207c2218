"""The same questions put to kernels of one op: a made layer turned into its arguments, its result into rows of h."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..cases.case import Problem
from ..cases.inputs import strided
from ..cases.optable import WIDTHS
from .isolate import OF_EIGHT_BITS, Bench, Layer, Probe, Weight
from .suspects import BIAS, REDUCTION

T = torch.Tensor


@dataclass
class OneOpBench(Bench):
    """A Bench for int4_linear, grouped_gemm, padded_gemm, dequantize_int4 and unpack_int4: what it observes is h.

    h of the two that only read a weight is x times what they read, computed here in fp64. It has an even number of
    columns: one less than the case's where that is odd, but at least two.
    """

    observe: str = "h"

    def __post_init__(self) -> None:
        case = self.case
        sizes = case.sizes
        self.k1 = 1
        self.D = case.torch_dtype or torch.bfloat16
        self.E, self.H, self.I = sizes.get("E", 1), case.K, max(case.N // 2, 1)
        self.Z = self.plain_zero()
        self.random = torch.Generator().manual_seed(case.seed & 0xFFFFFFFF)

    @property
    def experts(self) -> bool:
        """Whether the op has experts."""
        return "E" in self.case.sizes

    def allowed(self, **changes: Any) -> bool:
        """Say whether the kernel takes the case with these fields changed; fields that the op lacks do not matter."""
        known = {n: v for n, v in changes.items() if n in self.case.sizes or n == "routing"}
        if "routing" in known and self.case.routing == "-":
            return False
        return super().allowed(**known)

    def problem(self, layer: Layer) -> Problem:
        """Turn the layer's first half into the op's arguments."""
        case = self.case.replace(N=2 * self.I)  # an even number of columns, as if gate and up
        w = self.packed(layer.w13 if self.experts else _first(layer.w13))
        if not self.experts:
            w = replace(w, packed=w.packed[0], scale=w.scale[0], zero=None if w.zero is None else w.zero[0])
        rows, k = layer.ids.shape
        changes = {name: value for name, value in (("T", rows), ("k", k)) if name in case.sizes}
        flags = (case.flags & {"weight", *WIDTHS}) | ({"strided"} if layer.strided else set())
        made = case.replace(**changes, flags=frozenset(flags))
        as_stored = layer.but(x=layer.x.to(self.D), ids=layer.ids.to(torch.int32))
        return self.record.made_problem(made, as_stored, w).to(self.device)

    def answer(self, layer: Layer, poison: float = 3.0) -> T:
        """Run the kernel once; return its rows in slot order, fp64."""
        problem = self.problem(layer)
        return self.record.made_rows(problem, layer, self.outputs(problem, poison)["out"].double().cpu())


def _first(w: Weight) -> Weight:
    return Weight(w.u[:1], w.s[:1], w.z[:1])


@dataclass
class LmHeadBench(OneOpBench):
    """A Bench for int8_lm_head: what it observes is its output, over an even number of vocabulary rows."""

    def __post_init__(self) -> None:
        case = self.case
        self.k1, self.E, self.H, self.I, self.Z = 1, 1, case.K, max(case.V // 2, 1), 0
        self.D = case.torch_dtype or torch.bfloat16
        self.random = torch.Generator().manual_seed(case.seed & 0xFFFFFFFF)

    def quanta(self) -> list[int]:
        """List codes at both ends, powers of two and their neighbours."""
        return OF_EIGHT_BITS

    def problem(self, layer: Layer) -> Problem:
        """Turn the layer's first half into the op's arguments."""
        case, w = self.case, _first(layer.w13)
        made = case.replace(
            T=len(layer.x), V=2 * self.I, flags=frozenset({"strided"}) if layer.strided else frozenset()
        )
        scale = w.s[0].float()
        scale = scale[:, 0].contiguous() if case.G == -1 else scale.contiguous()
        args = {"x": strided(layer.x.to(self.D), made), "codes": w.u[0].to(torch.int8), "scale": scale, "bias": None}
        return Problem(made, args, {"group_size": case.G}, True).to(self.device)


def router(bench: Bench) -> Iterator[Probe]:
    """The router weight of padded_gemm: 1 is none, 1/2 halves."""
    if "weight" not in bench.case.flags:
        return
    layer = bench.plain()
    whole = bench.answer(layer)
    none = replace(bench, case=bench.case.replace(flags=bench.case.flags & {*WIDTHS}))
    half = bench.answer(layer.but(router=layer.router / 2)) * 2
    detail = bench.differ(whole, none.answer(layer), "at weight 1") or bench.differ(
        half, whole, "at weight 1/2, doubled"
    )
    if not detail and bench.allowed(k=(k := bench.case.k)):
        layer = bench.plain(k=k)
        ones = bench.answer(layer.but(router=torch.ones(1, k)))
        of_slot = 2.0 ** -(1.0 + torch.arange(k))
        got = bench.answer(layer.but(router=of_slot[None])) / of_slot[:, None].double()
        detail = bench.differ(got, ones, "by slots, divided by their weights")
    yield Probe("router weight", REDUCTION, "a router weight of 1 is none at all, and 1/2 halves", not detail, detail)


def bias(bench: Bench) -> Iterator[Probe]:
    """The bias of a linear layer or a head."""
    if "bias" in bench.record.data_flags:
        detail = _bias(bench)
        yield Probe("bias", BIAS, "x = 0 plus a bias gives the bias", not detail, detail)


def _bias(bench: Bench) -> str:
    made = bench.problem(bench.plain(x=torch.zeros(1, bench.H)))
    b = torch.arange(1, 2 * bench.I + 1).remainder(100).to(bench.D)
    made.args["bias"] = b.to(bench.device)
    return bench.differ(bench.outputs(made)["out"].double().cpu(), b.double()[None])
