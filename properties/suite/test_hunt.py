"""The hunt of `moeracle check` but for its laws: fixed, tall and drawn cases; the first that fails is shrunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.properties.common.verdict import Verdict, failed
from moeracle.properties.hunt.effort import HuntResult
from moeracle.properties.hunt.reach import unmet
from moeracle.properties.suite.hunted import hunted
from moeracle.properties.suite.outcome import Subject, count, fail, left


def test_hunt(request: pytest.FixtureRequest, moeracle_subject: Subject) -> None:
    option = request.config.getoption
    kernel, _ = moeracle_subject.judged
    result = _hunted(option, kernel, moeracle_subject)
    if isinstance(result, Verdict):
        moeracle_subject.keep(result)
        fail(request, result, moeracle_subject)
        return
    moeracle_subject.found.append(result)
    count(request, sum(v.judged for v in result.judged))
    if result.failures:
        fail(request, result.failures[0], moeracle_subject)
    if result.left:
        left(request.node, result.left_words, moeracle_subject)
    missed = unmet(result, moeracle_subject.requested.require, moeracle_subject.requested.max_skipped)
    if missed:
        pytest.fail(f"[{kernel.op}] {kernel.name} not judged far enough: {'; '.join(missed)}", pytrace=False)
    if not result.judged:
        pytest.skip("; ".join(result.skipped) or "no case drawn")


def _hunted(option: Callable[[str], Any], kernel: KernelLike, subject: Subject) -> HuntResult | Verdict:
    """Return the hunt's result; a failed verdict where `supports`, say, raised: the other kernels are judged."""
    try:
        return hunted(option, kernel, subject)
    except ValueError as error:
        verdict = Verdict(kernel.op, str(getattr(error, "case", "")), kernel.name, kernel.contract.name)
        return failed(verdict, "call", "", str(error))
