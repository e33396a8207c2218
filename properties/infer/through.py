"""A layer's GEMMs through its other stages: silu held open, so that what goes in comes out as it is.

    a[p, i] = silu(g) * up[p, i],  g = 32:  silu(32) is 32 in fp32, however it is computed, and 32 * up is exact

GEMM2 is asked with any a: each up row of w13 passes one input of x on, and one more input holds the gates open. GEMM1
is asked through a, y or out where h is not stored: w2 passes a on. There each row of x must leave one input at zero,
which then holds the gates open; other rows leave others, so that all inputs are asked about. One slot of weight 1 per
token: what out shows of y is y. Where zero points are subtracted from sums, a large input drowns its neighbours: then
each input of GEMM2 comes from a scale group of its own, and GEMM1 is asked through h only.
"""

from __future__ import annotations

from typing import Any

import torch

from .calls import Calls, ProbeError
from .drive import Dots
from .site import Site

OPEN = 32.0


class GatedDots(Dots):
    """GEMM1 of a layer whose h is not stored, read from a, y or out.

    Args:
        calls, site: as Dots'.
        stage: what is read: "a", "y" or "out".
    """

    def __init__(self, calls: Calls, site: Site, stage: str = "out") -> None:
        super().__init__(calls, site, stage)
        self.N = min(site.case.I, site.case.H)
        K = self.K
        self.gaps = tuple(dict.fromkeys((K - 1, 0, K // 2, K // 3, K // 4, 2)))

    def __call__(
        self, x: torch.Tensor, q: torch.Tensor | None = None, s: torch.Tensor | None = None, *, times: int = 0
    ) -> torch.Tensor:
        """Return the sums [P, N], fp32, as Dots does; each row of x must be 0 at one of `gaps`."""
        q = torch.ones(self.N, self.K) if q is None else q
        s = torch.ones(self.N, self.K // self.G) if s is None else s
        x = x.to(self.dtype)
        got = torch.zeros(len(x), self.N)
        todo = torch.ones(len(x), dtype=torch.bool)
        for gap in self.gaps:
            here = todo & (x[:, gap] == 0)
            if bool(here.any()):
                rows = x[here].clone()
                rows[:, gap] = OPEN
                got[here] = self.ask(rows, self._open(q, s, gap), times)
                todo &= ~here
        assert not bool(todo.any()), "a row of x leaves no gap"
        return got

    def _open(self, q: torch.Tensor, s: torch.Tensor, gap: int) -> dict[str, Any]:
        H, I = self.site.case.H, self.site.case.I
        gate, up, s13 = torch.zeros(I, self.K), torch.zeros(I, self.K), torch.ones(2 * I, self.K // self.G)
        gate[:, gap] = 1
        up[: self.N] = q
        up[:, gap] = 0
        s13[I : I + self.N] = s
        passed = torch.zeros(H, I)
        passed[range(self.N), range(self.N)] = 1
        return self.layer(torch.cat([gate, up]), s13, passed, torch.ones(H, I // self.G))

    def columns(self) -> int:
        return self.site.case.I if self.stage == "a" else self.site.case.H

    def read(self, out: torch.Tensor) -> torch.Tensor:
        return out[:, : self.N].float() / OPEN

    def stored(self, sums: torch.Tensor, way: str) -> list[torch.Tensor]:
        """Return both: h may be rounded before silu·mul, or not; they differ where fp16 is subnormal."""
        (rounded,) = super().stored(sums, way)
        (later,) = super().stored(sums * OPEN, way)
        return [rounded.float(), later.float() / OPEN]


class SecondDots(Dots):
    """GEMM2 of a layer, read from y or out."""

    subnormals = False  # GEMM1 and h are in the way

    def __call__(
        self, x: torch.Tensor, q: torch.Tensor | None = None, s: torch.Tensor | None = None, *, times: int = 0
    ) -> torch.Tensor:
        """Return the stored values [P, N], as Dots does; x [P, K] is what GEMM2 reads as a."""
        x = x.to(self.dtype)
        assert torch.equal(self.fitting(x), x), "a is not 32 times a value of D"
        up = torch.zeros(len(x), self.site.case.H, dtype=self.dtype)
        up[:, self._columns()] = x / OPEN
        up[:, self.K * self.site.stride] = OPEN
        q = torch.ones(self.N, self.K) if q is None else q
        s = torch.ones(self.N, self.K // self.G) if s is None else s
        return self.ask(up, self.weights(q, s), times)

    def weights(self, q: torch.Tensor, s: torch.Tensor) -> dict[str, Any]:
        H, I, G = self.site.case.H, self.K, self.G
        q13 = torch.zeros(2 * I, H)
        q13[:I, I * self.site.stride] = 1
        q13[range(I, 2 * I), self._columns()] = 1
        q2, s2 = torch.zeros(H, I), torch.ones(H, I // G)
        q2[: self.N], s2[: self.N] = q, s
        return self.layer(q13, torch.ones(2 * I, H // G), q2, s2)

    def _columns(self) -> list[int]:
        """Which input of GEMM1 each of GEMM2's comes from."""
        return [k * self.site.stride for k in range(self.K)]

    def columns(self) -> int:
        return self.site.case.H

    def read(self, out: torch.Tensor) -> torch.Tensor:
        return out[:, : self.N]

    def fitting(self, x: torch.Tensor) -> torch.Tensor:
        """Return the nearest 32 times a value of D: in fp16 the smallest values have fewer bits."""
        return ((x.to(self.dtype).double() / OPEN).to(self.dtype).double() * OPEN).to(self.dtype)


def opens(dots: Dots) -> bool:
    """Say whether what goes in comes out as it is: some values, each alone in its row."""
    values = torch.tensor([1.0, 0.5, 1.75, -3.0, 2.0**-10, 96.0], dtype=torch.float64)
    x = torch.zeros(len(values), dots.K, dtype=dots.dtype)
    x[range(len(values)), [1 + 3 * i for i in range(len(values))]] = values.to(dots.dtype)
    try:
        got = dots(x)
    except ProbeError:
        return False
    return bool((got.double() == values[:, None]).all())
