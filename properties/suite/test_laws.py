"""Laws: what every right kernel obeys, whatever the formula."""

from __future__ import annotations

from typing import Any

import pytest

from moeracle.properties.cases.case import Case
from moeracle.properties.suite.outcome import Subject, count, fail


def test_law(
    request: pytest.FixtureRequest, moeracle_subject: Subject, moeracle_law: Any, moeracle_law_cases: list[Case]
) -> None:
    kernel, _ = moeracle_subject.judged
    verdicts = [moeracle_law(kernel, case) for case in moeracle_law_cases if kernel.why_not(case) is None]
    said = [v for v in verdicts if v is not None and v.status in ("legal", "illegal")]
    moeracle_subject.keep(*(v for v in said if v.status == "illegal"))
    moeracle_subject.found[-1].law_checks[moeracle_law.__name__] += sum(v.ok for v in said)
    if not said:
        pytest.skip("the law says nothing about the cases that this kernel takes")
    count(request, sum(v.judged for v in said))
    for verdict in said:
        if verdict.status == "illegal":
            fail(request, verdict, moeracle_subject)
