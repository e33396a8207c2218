"""The hunt of `moeracle check` but for its laws: fixed, tall and drawn cases; the first that fails is shrunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.properties.common.verdict import Verdict, failed
from moeracle.properties.hunt.effort import HuntResult
from moeracle.properties.hunt.history import confirm
from moeracle.properties.hunt.hunt import hunt
from moeracle.properties.hunt.reach import unmet
from moeracle.properties.hunt.search import Run
from moeracle.properties.suite.outcome import Subject, count, fail


def test_hunt(request: pytest.FixtureRequest, moeracle_subject: Subject) -> None:
    option = request.config.getoption
    kernel, run = moeracle_subject.judged
    result = _hunted(option, kernel, run, moeracle_subject)
    if isinstance(result, Verdict):
        fail(request, result, moeracle_subject)
        return
    count(request, sum(v.judged for v in result.judged))
    if result.failures:
        fail(request, result.failures[0], moeracle_subject)
    missed = unmet(result, moeracle_subject.asked.require, moeracle_subject.asked.max_skipped)
    if missed:
        pytest.fail(f"[{kernel.op}] {kernel.name} not judged far enough: {'; '.join(missed)}", pytrace=False)
    if not result.judged:
        pytest.skip("; ".join(result.skipped) or "no case drawn")


def _hunted(
    option: Callable[[str], Any], kernel: KernelLike, run: Run | None, subject: Subject
) -> HuntResult | Verdict:
    """Return the hunt's result; a failed verdict where `supports`, say, raised: the other kernels are judged."""
    try:
        return _confirmed(option, kernel, run, subject)
    except ValueError as error:
        verdict = Verdict(kernel.op, str(getattr(error, "case", "")), kernel.name, kernel.contract.name)
        return failed(verdict, "call", "", str(error))


def _confirmed(option: Callable[[str], Any], kernel: KernelLike, run: Run | None, subject: Subject) -> HuntResult:
    result = hunt(
        kernel,
        profile=option("moeracle_profile"),
        examples=option("moeracle_examples"),
        seed=option("moeracle_seed"),
        run=run,
        laws=False,
        more=subject.asked.shapes(kernel) if subject.asked.shapes else (),
    )
    confirm(kernel, result, run)
    return result
