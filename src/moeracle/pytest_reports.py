"""The reports of a pytest session: what its processes found, merged kernel by kernel into the files of `check`."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moeracle.case_database import add_to_database
from moeracle.exit_codes import ILLEGAL, INTERNAL, INTERRUPTED
from moeracle.properties.hunt.effort import HuntResult
from moeracle.properties.hunt.hunt import not_judged
from moeracle.properties.report.report import Report, as_dict, plain, require_writable, write_json
from moeracle.properties.suite.outcome import Subject
from moeracle.ref.errors import require

CODES = {
    pytest.ExitCode.TESTS_FAILED: ILLEGAL,
    pytest.ExitCode.INTERRUPTED: INTERRUPTED,
    pytest.ExitCode.INTERNAL_ERROR: INTERNAL,
}


class Reports:
    """What --moeracle-json, --moeracle-html and --moeracle-database ask for.

    Args:
        config: pytest's.
    Raises:
        ValueError: a file that cannot be written, or two that are the same.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.started = config, time.time()
        files = [config.getoption(f"moeracle_{kind}") for kind in ("json", "html", "database")]
        self.json, self.html, self.database = (Path(name).absolute() if name else None for name in files)
        for path in (self.json, self.html, self.database):
            require_writable(path)
        require(self.json is None or self.json != self.html, f"--moeracle-html: got {self.html}, must be another file")
        self.others: list[bytes] = []  # what xdist's workers found

    def packed(self, subjects: Sequence[Subject]) -> bytes:
        """Return what this process found, for the process that writes the files."""
        return pickle.dumps([(subject.found, subject.known.said if subject.known else None) for subject in subjects])

    def write(
        self, subjects: Sequence[Subject], exitstatus: int, unjudged: bool, left: Mapping[str, Counter[str]]
    ) -> None:
        """Write the files that were asked for.

        Args:
            subjects: in the order of every process.
            exitstatus: of the session.
            unjudged: whether it is one of a session in which something was left, or nothing was judged.
            left: of each kernel, by op.kernel, what was not judged because the time was over.
        """
        if self.json is self.html is self.database is None:
            return
        for parts in map(pickle.loads, self.others):
            for subject, (found, said) in zip(subjects, parts, strict=True):
                subject.found += found
                if subject.known is not None:
                    subject.known.said = subject.known.said or said
        results = {s: replace(merged(s), left=left.get(s.name, Counter())) for s in subjects if _is_in_its_shard(s)}
        results = {s: r for s, r in results.items() if s.requested.shard.of == 1 or r.verdicts or r.skipped or r.left}
        option = self.config.getoption
        device = option("moeracle_device")
        report = Report(
            target=" ".join(option("moeracle_targets")),
            command=["pytest", *map(str, self.config.invocation_params.args)],
            device=device,
            profile=None if option("moeracle_case") else option("moeracle_profile"),
            seed=option("moeracle_seed"),
            started=self.started,
            seconds=time.time() - self.started,
            exit_code=exitstatus if unjudged else CODES.get(pytest.ExitCode(exitstatus), exitstatus),
            results=list(results.values()),
            in_process=bool(option("moeracle_in_process")),
            known={subject.name: said for subject in results if (said := _said(subject))},
            targets={subject.name: subject.target.partition(" --device ")[0] for subject in subjects},
        )
        add_to_database(self.database, report.results)
        if self.json is not None:
            write_json(self.json, report)
        if self.html is not None:
            from moeracle.properties.report.html.page import write_page

            write_page(self.html, [plain(as_dict(report))])


def _is_in_its_shard(subject: Subject) -> bool:
    return subject.known is None or subject.requested.shard.has(subject.name)


def _said(subject: Subject) -> dict[str, Any] | None:
    known = subject.known
    if known is None or not (known.said or known.expired or known.quarantine):
        return None  # its test was not run
    said = known.said or known.settle(not_judged(subject.kernel))
    return {name: value for name, value in said.items() if name != "text"}


def merged(subject: Subject) -> HuntResult:
    """Return what all processes found of one kernel: each case once, and of each kind of failure one, the shrunk first.

    Args:
        subject: with everything that was found.
    """
    whole = not_judged(subject.kernel)
    whole.contract = subject.found[0].contract if subject.found else whole.contract  # inferred, where none is declared
    hunts_first = sorted(subject.found, key=lambda result: len(result.verdicts) < 2)
    seen, kinds = set(), set()
    for result in hunts_first:
        whole.skipped += result.skipped
        whole.law_checks += result.law_checks
        whole.seconds += result.seconds
        for verdict in result.verdicts:
            if (verdict.case, verdict.status, verdict.stage) not in seen and verdict.status in ("legal", "illegal"):
                seen.add((verdict.case, verdict.status, verdict.stage))
                whole.verdicts.append(verdict)
        for failure in result.failures:
            if (failure.tier, failure.stage) not in kinds:
                kinds.add((failure.tier, failure.stage))
                whole.failures.append(failure)
    if subject.known is not None and subject.known.quarantine and not whole.verdicts:
        whole.skipped[subject.known.quarantine] += 1
    return whole
