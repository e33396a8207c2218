"""The hunt of `moeracle check` but for its laws: fixed, tall and drawn cases; the first that fails is shrunk."""

from __future__ import annotations

import pytest

from moeracle.properties.hunt.history import confirm
from moeracle.properties.hunt.hunt import hunt
from moeracle.properties.hunt.reach import unmet
from moeracle.properties.suite.outcome import Subject, count, fail


def test_hunt(request: pytest.FixtureRequest, moeracle_subject: Subject) -> None:
    option = request.config.getoption
    kernel, run = moeracle_subject.judged
    result = hunt(
        kernel,
        profile=option("moeracle_profile"),
        examples=option("moeracle_examples"),
        seed=option("moeracle_seed"),
        run=run,
        laws=False,
        more=moeracle_subject.asked.shapes(kernel) if moeracle_subject.asked.shapes else (),
    )
    confirm(kernel, result, run)
    count(request, sum(v.judged for v in result.judged))
    if result.failures:
        fail(request, result.failures[0], moeracle_subject)
    missed = unmet(result, moeracle_subject.asked.require, moeracle_subject.asked.max_skipped)
    if missed:
        pytest.fail(f"[{kernel.op}] {kernel.name} not judged far enough: {'; '.join(missed)}", pytrace=False)
    if not result.judged:
        pytest.skip("; ".join(result.skipped) or "no case drawn")
