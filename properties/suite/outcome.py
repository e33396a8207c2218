"""From a verdict to a pytest outcome: skipped with the reason, or failed with the verdict's own text."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.properties.common.verdict import Verdict
from moeracle.properties.hunt.search import Run

JUDGED = "moeracle_judged"
BROKEN = "moeracle_broken"  # the kernel that a failed test is about, and how it failed


Prepare = Callable[[KernelLike], "tuple[KernelLike, Run | None]"]


class Asked(NamedTuple):
    """What a session asks of every kernel beside its profile, as the options of `moeracle check` of these names do.

    Args:
        cases: judged in place of all others, if there are any.
        after: run before those.
        shapes: returns a kernel's cases of given shapes, which are judged too; None: no shapes were given.
        require: sizes that must have been judged, "T>=4096".
        max_skipped: the largest share of cases that may be skipped; None: any.
    """

    cases: tuple[Case, ...] = ()
    after: tuple[Case, ...] = ()
    shapes: Callable[[KernelLike], list[Case]] | None = None
    require: tuple[str, ...] = ()
    max_skipped: float | None = None


class Subject:
    """A kernel, the TARGET text that a replay line names, and how it is judged: as `moeracle check` judges it.

    Args:
        kernel: as it was declared.
        target: the text.
        prepare: returns the kernel under the contract that it is judged by, and how one case is run; asked once.
        asked: what the session asks beside.
    """

    def __init__(
        self, kernel: KernelLike, target: str, prepare: Prepare | None = None, asked: Asked | None = None
    ) -> None:
        self.kernel, self.target, self.prepare, self.asked = kernel, target, prepare, asked or Asked()

    @functools.cached_property
    def judged(self) -> tuple[KernelLike, Run | None]:
        """The kernel with its contract, which is inferred where none was declared, and how one case is run."""
        return (self.kernel, None) if self.prepare is None else self.prepare(self.kernel)


def settle(request: pytest.FixtureRequest, verdict: Verdict, subject: Subject) -> None:
    """Count what was judged, then skip or fail as the verdict says; legal passes."""
    if verdict.status in ("skipped", "vacuous"):
        pytest.skip(verdict.reason or verdict.status)
    count(request, verdict.judged)
    if verdict.status == "illegal":
        fail(request, verdict, subject)


def count(request: pytest.FixtureRequest, elements: int) -> None:
    """Remember how many elements a test judged; properties travel from xdist's workers to its controller."""
    request.node.user_properties.append((JUDGED, elements))


def fail(request: pytest.FixtureRequest, verdict: Verdict, subject: Subject) -> None:
    """Fail the test with the verdict's text and nothing else: a traceback of ours would not help."""
    how = f"tier={verdict.tier} stage={verdict.stage}".removesuffix(" stage=")
    request.node.user_properties.append((BROKEN, f"[{verdict.op}] {subject.kernel.name} of {subject.target}|{how}"))
    target, _, device = subject.target.partition(" --device ")
    text = verdict.text(target)
    pytest.fail(f"{text} --device {device}" if device else text, pytrace=False)
