"""`bisect_settings`: the smallest set of settings that turns a legal kernel illegal (delta debugging).

Andreas Zeller, Ralf Hildebrandt: Simplifying and Isolating Failure-Inducing Input, https://doi.org/10.1109/32.988498
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from moeracle.ref.errors import require

Settings = dict[str, "str | None"]  # None: not set


@dataclass
class Answer:
    """What one set of settings does: "legal", "illegal", "unjudged" or "flaky", why in one line, error over bound."""

    status: str
    reason: str = ""
    stage: str = ""
    max_ratio: float | None = None
    seconds: float = 0.0


@dataclass
class ConfigReport:
    """What `moeracle bisect config` found.

    Args:
        good, bad: the settings compared; None: not set.
        differing: the names in which they differ.
        minimal: those of them that must be as in BAD for the kernel to go wrong; no smaller subset of it does.
        without: what the kernel does with everything as in BAD but the minimal set as in GOOD.
        answers: each set of names that was tried (as in BAD, the rest as in GOOD) and what it did.
        stages: the report of `bisect stages` under the minimal set, as plain values, or None.
        seconds: wall time.
    """

    good: Settings
    bad: Settings
    differing: list[str]
    minimal: list[str] = field(default_factory=list)
    without: Answer | None = None
    answers: list[tuple[tuple[str, ...], Answer]] = field(default_factory=list)
    stages: dict[str, Any] | None = None
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "good": self.good, "bad": self.bad, "differing": self.differing, "minimal": self.minimal,
            "without": None if self.without is None else vars(self.without),
            "tried": [{"as_in_bad": list(names), **vars(answer)} for names, answer in self.answers],
            "stages": self.stages, "seconds": round(self.seconds, 3),
        }  # fmt: skip


def bisect_settings(
    good: Settings,
    bad: Settings,
    ask: Callable[[Settings], Answer],
    on_tried: Callable[[tuple[str, ...], Answer], None] | None = None,
) -> ConfigReport:
    """Find a minimal set of settings that must be as in BAD.

    Args:
        good, bad: settings by name; a name that only one of them has is not set in the other.
        ask: judges the kernel under given settings.
        on_tried: called for each set that is tried.
    Raises:
        ValueError: they do not differ, GOOD is not legal, or BAD is not illegal.
    """
    names = [name for name in dict.fromkeys((*good, *bad)) if good.get(name) != bad.get(name)]
    require(bool(names), "--bad: got the same settings as --good, must differ from them")
    report = ConfigReport(dict(good), dict(bad), names)
    seen: dict[tuple[str, ...], Answer] = {}

    def answer(chosen: Sequence[str]) -> Answer:
        key = tuple(name for name in names if name in set(chosen))
        if key not in seen:
            seen[key] = ask(mixed(good, bad, key))
            report.answers.append((key, seen[key]))
            if on_tried:
                on_tried(key, seen[key])
        return seen[key]

    for chosen, option, want in (([], "--good", "legal"), (names, "--bad", "illegal")):
        first = answer(chosen)
        if first.status != want:
            raise ValueError(
                f"{option}: these settings are {first.status} ({first.reason}), must be {want} on this case"
            )
    report.minimal = minimal_set(names, lambda chosen: answer(chosen).status == "illegal")
    rest = [name for name in names if name not in report.minimal]
    report.without = answer(rest)
    return report


def mixed(good: Settings, bad: Settings, names: Sequence[str]) -> Settings:
    """Return GOOD's settings with these names as in BAD."""
    every = {name: good.get(name) for name in dict.fromkeys((*good, *bad))}
    return {**every, **{name: bad.get(name) for name in names}}


def minimal_set(names: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> list[str]:
    """Return a subset that fails, none of whose elements can be left out (ddmin).

    Args:
        names: all of them together fail.
        fails: judges a subset.
    """
    left, parts = list(names), 2
    while len(left) > 1:
        pieces = [left[i * len(left) // parts : (i + 1) * len(left) // parts] for i in range(parts)]
        piece = next((piece for piece in pieces if fails(piece)), None)
        if piece is not None:
            left, parts = piece, 2
            continue
        rests = ([name for name in left if name not in piece] for piece in pieces)
        rest = next((rest for rest in rests if parts > 2 and fails(rest)), None)
        if rest is not None:
            left, parts = rest, max(parts - 1, 2)
        elif parts >= len(left):
            break
        else:
            parts = min(len(left), 2 * parts)
    return left
