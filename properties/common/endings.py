"""How the run of a kernel may end other than by returning: each is a finding, with its kind and its lines."""

from __future__ import annotations

from typing import Any

__all__ = ["ENDINGS", "Ended", "InternalError", "Interrupted"]

ENDINGS = ("crash", "timeout", "exit", "memory", "device")  # tiers of a Verdict; "call" is an exception raised


class Ended(Exception):  # noqa: N818  (a finding, not an error)
    """What a kernel did instead of returning.

    Args:
        tier: one of ENDINGS, or "call": it raised.
        lines: what happened, the first line first; later ones say more.
        case: the case on which it did, where whoever catches this cannot know.
    """

    def __init__(self, tier: str, *lines: str, case: str = "") -> None:
        super().__init__(lines[0])
        self.tier, self.lines, self.case = tier, lines, case


class InternalError(RuntimeError):
    """Judging contradicts itself: a mistake of this library, not of a kernel."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with what a hunt had found until then.

    Args:
        text: what was waited for, or "".
        result: the HuntResult.
    """

    def __init__(self, text: str, result: Any) -> None:
        super().__init__(text)
        self.result = result
