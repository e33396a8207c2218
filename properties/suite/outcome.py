"""From a verdict to a pytest outcome: skipped with the reason, or failed with the verdict's own text."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.properties.common.verdict import Verdict

JUDGED = "moeracle_judged"


class Subject(NamedTuple):
    """A kernel, and the TARGET text that a replay line names."""

    kernel: KernelLike
    target: str


def settle(request: pytest.FixtureRequest, verdict: Verdict, subject: Subject) -> None:
    """Count what was judged, then skip or fail as the verdict says; legal passes."""
    if verdict.status in ("skipped", "vacuous"):
        pytest.skip(verdict.reason or verdict.status)
    count(request, verdict.judged)
    if verdict.status == "illegal":
        fail(verdict, subject)


def count(request: pytest.FixtureRequest, elements: int) -> None:
    """Remember how many elements a test judged; properties travel from xdist's workers to its controller."""
    request.node.user_properties.append((JUDGED, elements))


def fail(verdict: Verdict, subject: Subject) -> None:
    """Fail the test with the verdict's text and nothing else: a traceback of ours would not help."""
    target, _, device = subject.target.partition(" --device ")
    text = verdict.text(target)
    pytest.fail(f"{text} --device {device}" if device else text, pytrace=False)
