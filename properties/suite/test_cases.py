"""The fixed cases: each data recipe, layout, zero point and dtype once, and the borders that kernels forget."""

from __future__ import annotations

import pytest

from moeracle.properties.cases.case import Case
from moeracle.properties.suite.outcome import Subject, settle
from moeracle.properties.trial.trial import run_trial


def test_case(request: pytest.FixtureRequest, moeracle_subject: Subject, moeracle_case: Case) -> None:
    kernel, run = moeracle_subject.judged
    settle(request, (run or run_trial)(kernel, moeracle_case, device=kernel.device), moeracle_subject)
