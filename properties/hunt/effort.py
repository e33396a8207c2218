"""How hard a hunt looks, what it asks of a kernel, and what it found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from moeracle.ref.errors import unknown

from ..common.verdict import Verdict

__all__ = ["HuntResult", "Profile", "profile_named"]


@dataclass(frozen=True)
class Profile:
    """How hard to look.

    Args:
        examples: how many cases are drawn.
        law_cases: how many cases the laws are put to.
        shrink_cost: what shrinking one failure may cost, in smallest cases (cases/cost.py).
    """

    examples: int
    law_cases: int
    shrink_cost: int


PROFILES = {"smoke": Profile(20, 3, 400), "ci": Profile(100, 16, 1000), "nightly": Profile(2000, 64, 6000)}


def profile_named(name: str) -> Profile:
    """Return the profile of that name.

    Args:
        name: one of PROFILES.
    Returns:
        Profile.
    Raises:
        ValueError: there is none; the nearest is suggested.
    """
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    return PROFILES[name]


@dataclass
class HuntResult:
    """What one hunt found, and how much was judged on the way.

    Args:
        kernel, op, layout, contract, device: what was judged, under what, where.
        seed, examples: what was asked for.
        verdicts: one for every distinct case that was run, in order.
        skipped: reason to count, of cases that the kernel does not take or that would prove nothing.
        failures: the verdicts to show; a hunt stops at its first and shrinks it, and shows two that ended the process.
        law_checks: law to count, of laws that held.
        seconds: how long it took.
        left: what to count, of cases that were not judged because the time was over.
        error: why judging itself failed, a mistake of this library's, or "".
        source: where the kernel is written, "FILE:LINE", or "".
    """

    kernel: str
    op: str
    layout: str | None
    contract: str
    device: str
    seed: int
    examples: int
    verdicts: list[Verdict] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    failures: list[Verdict] = field(default_factory=list)
    law_checks: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    left: Counter[str] = field(default_factory=Counter)
    error: str = ""
    source: str = ""

    @property
    def judged(self) -> list[Verdict]:
        """The verdicts that say something: legal or illegal; none if all but cases without elements were skipped."""
        found = [v for v in self.verdicts if v.status in ("legal", "illegal")]
        empty = not any(v.judged or v.status == "illegal" for v in found)
        return [] if empty and self.skipped else found

    @property
    def status(self) -> str:
        """What was found.

        "illegal" if anything was wrong, "error" if judging failed, "legal" if all that was judged is and nothing was
        left, else "unjudged".
        """
        if self.failures or self.error:
            return "illegal" if self.failures else "error"
        return "legal" if self.judged and not self.left else "unjudged"

    @property
    def left_words(self) -> str:
        """What was left because the time was over: "drawn cases: 60, laws: 12"; "" if nothing was."""
        return ", ".join(f"{what}: {count:,}" for what, count in self.left.items())
