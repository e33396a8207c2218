"""Driving one GEMM of a kernel: from activations, codes and scales to what it stored, through the op's own arguments.

A probe is a row of x. Many rows go in one call; how many at most, and of what sizes, the kernel's `why_not` says.
"""

from __future__ import annotations

from typing import Any

import torch

from moeracle.ref.rounding import round_to
from moeracle.ref.weights.weight import OF_BITS, Int4Weight

from ..cases.record import record_of
from .calls import Calls, ProbeError
from .site import Site, find_site, other_sites, site_of

__all__ = ["Dots", "Site", "find_site", "site_of"]


class Dots:
    """One GEMM of a kernel as probes use it, always with as many rows a call.

    out[p, n] = sum_k x[p, k] * q[n, k] * s[n, k//G], as it was stored.

    Args:
        calls: runs the kernel.
        site: at which sizes.
        stage: which stage holds the sums.
    """

    gaps: tuple[int, ...] = ()  # inputs of which each row of x must leave one at zero
    bias: torch.Tensor | None = None  # of int8_lm_head, [N] of D
    scale_dtype: torch.dtype | None = None  # of scales; None: D
    subnormals = True  # whether a subnormal operand reaches the GEMM as it is

    def __init__(self, calls: Calls, site: Site, stage: str = "out") -> None:
        self.calls, self.site, self.stage = calls, site, stage
        self.record = record_of(site.case.op)
        self.limit = site.case.T
        self.N, self.K, self.G, self.dtype = site.N, site.K, site.G, site.dtype
        self.middle = 1 << (site.case.bits - 1)
        self.zero_point = self.middle  # of every weight; another where the site's form has any

    @property
    def gated(self) -> bool:
        """Whether a layer's first weight has up rows."""
        return "ungated" not in self.site.case.flags

    @property
    def one_scale(self) -> bool:
        """Whether each row of the weight has one scale."""
        return self.G == self.K

    def at(self, site: Site) -> Dots:
        """Return the same GEMM at other sizes."""
        return type(self)(self.calls, site, self.stage)

    def others(self) -> list[tuple[str, Dots]]:
        """Return the same GEMM at another K and at another G, where the kernel takes them."""
        return [(name, self.at(site)) for name, site in other_sites(self.site, self.calls.takes)]

    def enter(self, phase: str) -> None:
        """Say what is asked next."""
        self.calls.phase = phase if self.site.gemm == 1 else f"GEMM2: {phase}"

    def __call__(
        self, x: torch.Tensor, q: torch.Tensor | None = None, s: torch.Tensor | None = None, *, times: int = 0
    ) -> torch.Tensor:
        """Return the stored values [P, N] in D.

        Args:
            x: [P, K], any float dtype, values of D.
            q: [N, K], integers u less the middle, -8..7 or -128..127, or None: all 1.
            s: [N, K/G], values of D, or None: all 1.
            times: run each call that many times more, and note in calls.repeats whether the bits stay.
        """
        N, K, G = self.N, self.K, self.G
        q = torch.ones(N, K) if q is None else q
        s = torch.ones(N, K // G) if s is None else s
        return self.ask(x.to(self.dtype), self.weights(q, s), times)

    def ask(self, x: torch.Tensor, rest: dict[str, Any], times: int) -> torch.Tensor:
        """Return what is stored for rows of x, as many a call as ever.

        A kernel may choose its tile, and so its order, by how many there are.
        """
        rows = len(x)
        x = torch.nn.functional.pad(x, (0, 0, 0, -rows % self.limit))
        parts = [self._call(part, rest, times) for part in x.split(self.limit)]
        return torch.cat(parts)[:rows] if parts else x.new_zeros(0, self.N)

    def weights(self, q: torch.Tensor, s: torch.Tensor) -> dict[str, Any]:
        """Return the op's weight arguments."""
        return self.record.probe_weights(self, q, s)

    def layer(self, q13: torch.Tensor, s13: torch.Tensor, q2: torch.Tensor, s2: torch.Tensor) -> dict[str, Int4Weight]:
        """Return a layer's two weights by name, every expert's the same."""
        return self.record.layer_weights(self, q13, s13, q2, s2)

    def pack(self, q: torch.Tensor, s: torch.Tensor) -> Int4Weight:
        """Return the weight q * s, codes q + the zero point, in the layout and zero-point form of this site."""
        case = self.site.case
        zero = None if case.zero_layout is None else torch.full(s.shape, self.zero_point, dtype=torch.uint8)
        return OF_BITS[case.bits].from_codes(
            (q + self.zero_point).to(torch.uint8), s.to(self.scale_dtype or self.dtype).contiguous(), zero,
            layout=case.layout, zero_layout=case.zero_layout or "unpacked",
        )  # fmt: skip

    def fitting(self, x: torch.Tensor) -> torch.Tensor:
        """Return the nearest values that can be asked for."""
        return x

    def stored(self, sums: torch.Tensor, way: str) -> list[torch.Tensor]:
        """Return what a kernel may store of fp32 sums [P, N], float64, if its stores are rounded that way."""
        return [round_to(sums, self.dtype, way)]

    def answers(self) -> set[str]:
        """Return the stages that the kernel stores."""
        x, w = torch.zeros(self.limit, self.K, dtype=self.dtype), torch.ones(self.N, self.K)
        rest = self.weights(w, torch.ones(self.N, self.K // self.G))
        return set(self.calls.run(self.record.probe_arguments(self.site.case, x, rest)))

    def _call(self, x: torch.Tensor, w: dict[str, Any], times: int) -> torch.Tensor:
        stage = self.stage
        out = self.calls.run(self.record.probe_arguments(self.site.case, x, w), times, (stage,)).get(stage)
        form = "nothing" if out is None else f"{out.dtype} {list(out.shape)}"
        shape = [len(x), self.columns()]
        if out is None or out.dtype != self.dtype or list(out.shape) != shape:
            wanted = f"{self.dtype} {shape}"
            raise ProbeError(f"{self.calls.kernel.name} returned {form} as {stage}, must be {wanted}")
        return self.read(out)

    def columns(self) -> int:
        """Return how many columns the stage has that is read."""
        return self.N

    def read(self, out: torch.Tensor) -> torch.Tensor:
        """Return the sums that a stage shows."""
        return out


def plain_weight(q: torch.Tensor, s: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return q * s [N, K] in D, for ops whose weight is not quantized."""
    return (q.float() * s.float().repeat_interleave(q.shape[1] // s.shape[1], 1)).to(dtype)
