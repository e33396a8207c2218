"""The fixed cases: each data recipe, layout, zero point and dtype once, and the borders that kernels forget."""

from __future__ import annotations

import pytest

from moeracle.properties.cases.case import Case
from moeracle.properties.hunt.hunt import judge_cases
from moeracle.properties.suite.outcome import Subject, count, fail, settle


def test_case(request: pytest.FixtureRequest, moeracle_subject: Subject, moeracle_case: Case) -> None:
    kernel, run = moeracle_subject.judged
    if not moeracle_subject.requested.cases:
        first = not any(result.failures for result in moeracle_subject.found)  # the one that is shown
        verdict = moeracle_subject.run(kernel, moeracle_case, device=kernel.device, explain=first)
        settle(request, verdict, moeracle_subject)
        return
    after = [case for case in moeracle_subject.requested.after if case.op == kernel.op]
    judge_cases(kernel, after, run=run, laws=False)
    result = judge_cases(kernel, [moeracle_case], run=run)  # the laws, too, as `moeracle check --case` does
    moeracle_subject.found.append(result)
    for failure in result.failures:
        failure.after = [str(case) for case in after]
        count(request, failure.judged)
        fail(request, failure, moeracle_subject)
    if not result.judged:
        pytest.skip("; ".join(result.skipped) or "not judged")
    count(request, sum(v.judged for v in result.judged))
