"""The sums behind the statistical tests of one stage, and the errors it may have; statistics.py explains them."""

from __future__ import annotations

import math
from typing import NamedTuple

THRESHOLD = 6.0
FALSE_ALARM = math.erfc(THRESHOLD / math.sqrt(2)) * 1.5  # of both tests of one stage together, for normal z
LEAST = 400


class Errors(NamedTuple):
    """What the errors of one stage before its store may look like, as shares of the derived bound E.

    Args:
        systematic: b <= systematic * E.
        spread: s = spread * E.
        loss: b <= loss * (|y| + rms of y's row) / 2 too: what truncation takes from partial sums as large as results.
    """

    systematic: float
    spread: float
    loss: float = math.inf


class Drift(NamedTuple):
    """Sums of one stage's statistics; they add over pieces and over cases.

    Args:
        tested: elements n.
        bias, allowed, noise: sum D sign(y), sum b, sum max(1/12, m).  excess, spread, rms_noise: z_rms's in that order.
    """

    tested: int = 0
    bias: float = 0.0
    allowed: float = 0.0
    noise: float = 0.0
    excess: float = 0.0
    spread: float = 0.0
    rms_noise: float = 0.0

    def plus(self, other: Drift) -> Drift:
        """Return the sums of both."""
        return Drift._make(a + b for a, b in zip(self, other, strict=True))

    @property
    def z_bias(self) -> float:
        """Standard deviations by which the mean error exceeds what is allowed; negative: toward zero. 0 below LEAST."""
        if self.tested < LEAST:
            return 0.0
        return math.copysign(max(0.0, abs(self.bias) - self.allowed) / math.sqrt(self.noise), self.bias)

    @property
    def z_rms(self) -> float:
        """Standard deviations by which the mean square exceeds what is allowed; 0 below LEAST."""
        return max(0.0, self.excess - self.spread) / math.sqrt(self.rms_noise) if self.tested >= LEAST else 0.0

    @property
    def max_z(self) -> float:
        """The larger of |z_bias| and z_rms."""
        return max(abs(self.z_bias), self.z_rms)

    @property
    def complaint(self) -> str:
        """Say in one line what no legal kernel does, or ""."""
        if self.max_z <= THRESHOLD:
            return ""
        if abs(self.z_bias) > THRESHOLD:
            mean, may = self.bias / self.tested, self.allowed / self.tested
            way = "toward zero" if mean < 0 else "away from zero"
            what = f"a mean of {abs(mean):.3g} ulp {way} (z = {self.z_bias:.1f}; a legal mean is within {may:.2g} ulp)"
        else:
            what = f"a mean square {self.excess / self.tested:.3g} ulp^2 too large (z = {self.z_rms:.1f})"
        return (
            f"every element is legal, but the errors of n = {self.tested:,} have {what}; "
            f"threshold |z| > {THRESHOLD:g}, false alarms {FALSE_ALARM:.0e} a stage"
        )
