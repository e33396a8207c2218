"""One kernel's hunt, as a session's options ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.properties.hunt.effort import HuntResult
from moeracle.properties.hunt.history import confirm
from moeracle.properties.hunt.hunt import hunt
from moeracle.properties.suite.outcome import Subject


def hunted(option: Callable[[str], Any], kernel: KernelLike, subject: Subject, *, laws: bool = False) -> HuntResult:
    """Hunt as the session's options say, and ask a fresh process whether what was found comes back.

    Args:
        option: returns the value of an option.
        kernel: under the contract that it is judged by.
        subject: whose kernel it is.
        laws: whether laws are put to it, too.
    """
    result = hunt(
        kernel,
        profile=option("moeracle_profile"),
        examples=option("moeracle_examples"),
        seed=option("moeracle_seed"),
        run=subject.run,
        laws=laws,
        shard=None if subject.known else subject.requested.shard,
        spent=subject.requested.budget,
        again=[case for case in subject.requested.again if case.op == kernel.op],
        more=subject.requested.shapes(kernel) if subject.requested.shapes else (),
    )
    confirm(kernel, result, subject.judged[1])
    return result
