"""A kernel of which a failure is known has this test in place of all others: red where its entry does not hold."""

from __future__ import annotations

import pytest

from moeracle.properties.hunt.history import confirm
from moeracle.properties.hunt.hunt import judge_cases
from moeracle.properties.suite.hunted import hunted
from moeracle.properties.suite.outcome import Subject, count, left


def test_known(request: pytest.FixtureRequest, moeracle_subject: Subject) -> None:
    known, subject = moeracle_subject.known, moeracle_subject
    assert known is not None
    if known.expired:
        pytest.fail(known.expired, pytrace=False)
    if known.quarantine:
        pytest.skip(known.quarantine)
    kernel, run = subject.judged
    if subject.requested.cases:
        given = [case for case in subject.requested.cases if case.op == kernel.op]
        result = judge_cases(kernel, given, run=run)
        confirm(kernel, result, run)
    else:
        result = hunted(request.config.getoption, kernel, subject, laws=True)
    subject.found.append(result)
    count(request, sum(v.judged for v in result.judged))
    if result.left and not result.failures:
        left(request.node, result.left_words, subject)
    if subject.requested.cases and not result.failures:  # right in these, which says nothing of others
        if not result.judged:
            pytest.skip("; ".join(result.skipped) or "not judged")
        return
    known.said = known.settle(result)
    if known.said["wrong"]:
        texts = [verdict.text(subject.target) for verdict in result.failures]
        pytest.fail("\n".join([known.said["text"], *texts]), pytrace=False)
    pytest.xfail(known.said["text"])
