"""The hunt: Hypothesis draws cases, and shrinks the first that fails."""

from __future__ import annotations

import pytest

from moeracle.properties.hunt.hunt import hunt
from moeracle.properties.suite.outcome import Subject, count, fail


def test_hunt(request: pytest.FixtureRequest, moeracle_subject: Subject) -> None:
    option = request.config.getoption
    result = hunt(
        moeracle_subject.kernel,
        profile=option("moeracle_profile"),
        examples=option("moeracle_examples"),
        seed=option("moeracle_seed"),
        fixed=False,
        laws=False,
    )
    count(request, sum(v.judged for v in result.judged))
    if result.failures:
        fail(result.failures[0], moeracle_subject)
    if not result.judged:
        pytest.skip("; ".join(result.skipped) or "no case drawn")
