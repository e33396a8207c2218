"""One pytest session that judges kernels: which tests there are, and whether anything was judged at all."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from moeracle.bench.problems import shape_cases
from moeracle.case_database import read_database
from moeracle.exit_codes import UNJUDGED
from moeracle.kernels.bench.cases import shape_named
from moeracle.known_failures import KnownFailure, of_kernel, of_nobody, read_known_failures, settle
from moeracle.properties.cases.case import Case
from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.properties.common.endings import Ended
from moeracle.properties.hunt.budget import TimeBudget, time_budget
from moeracle.properties.hunt.effort import HuntResult, profile_named
from moeracle.properties.hunt.must_run import must_run, spread
from moeracle.properties.hunt.reach import check_demands, check_shard
from moeracle.properties.hunt.search import Run, laws_of
from moeracle.properties.hunt.shard import shard_named
from moeracle.properties.suite.outcome import BROKEN, JUDGED, LEFT, Known, Requested, Subject, left
from moeracle.ref.errors import require, unknown
from moeracle.target.declaration import DeclaredError, require_device

from .commands.loading import IN_PROCESS, limits_of, load, release
from .pytest_reports import Reports
from .target.load import Kernel, Target, place_of


def _replay_target(target: Target, kernel: Kernel, device: str | None) -> str:
    narrow = sum(k.op == kernel.op for k in target.kernels) > 1 and not target.name.endswith(f":{kernel.name}")
    text = f"{target.name}:{kernel.name}" if narrow else target.name
    return text if device is None else f"{text} --device {device}"


def _fixed(kernel: KernelLike, alone: bool) -> list[Case]:
    """Return a kernel's fixed cases; none where asking it for them failed, if others are there: the hunt says how."""
    try:
        return must_run(kernel)
    except DeclaredError:
        if alone:
            raise  # a user's mistake
        return []
    except Ended:
        return []


def _requested(config: pytest.Config) -> Requested:
    option = config.getoption
    cases, after = (tuple(Case.parse(text) for text in option(f"moeracle_{name}")) for name in ("case", "after"))
    require(bool(cases) or not after, "--moeracle-after: got a case without --moeracle-case, must come before one")
    demands, share = tuple(option("moeracle_require")), option("moeracle_max_skipped")
    check_demands(demands, share, "--moeracle-")
    shapes = [shape_named(text) for text in option("moeracle_shape")]
    shard = shard_named(option("moeracle_shard"), "--moeracle-shard")
    check_shard(shard, bool(cases), demands, share, "--moeracle-")
    budget = time_budget(option("moeracle_time_budget"), "--moeracle-time-budget")
    begun = getattr(config, "workerinput", {}).get("moeracle_until")  # the session's, not this worker's
    budget = TimeBudget(budget.seconds, begun) if budget and begun else budget
    of_shapes = partial(shape_cases, shapes=shapes) if shapes else None
    again = read_database(Path(file) if (file := option("moeracle_database")) else None)
    return Requested(cases, after, of_shapes, demands, share, shard, budget, tuple(again))


def _known(entry: KnownFailure) -> Known:
    def settled(result: HuntResult) -> dict[str, Any]:
        tiers = [verdict.tier for verdict in result.failures]
        said = settle(entry, tiers, run=bool(result.judged or tiers or not entry.quarantine))
        return {**said.as_dict(), "text": f"known failure: {said.text}"}

    expired = f"known failure: {settle(entry, ()).text}" if entry.expired() else ""
    return Known(expired, entry.quarantine_words if entry.quarantine else "", settled)


class _Notes:
    """Keeps what inference says, in place of showing how far it is."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def __call__(self, phase: str, done: int, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        """Keep one line."""
        self.lines.append(text)


class Judging:
    """The pytest plugin object of a session with `--kernel`.

    Args:
        config: pytest's.
        targets: the TARGETs named.
    Raises:
        pytest.UsageError: a TARGET cannot be loaded, or an option has no legal value, in one line.
    """

    def __init__(self, config: pytest.Config, targets: list[str]) -> None:
        self.elements = 0
        self.is_worker = hasattr(config, "workerinput")
        self.notes: list[str] = []
        self.broken: dict[str, list[tuple[str, str]]] = {}  # of each kernel, the failed tests and how they failed
        self.left: dict[str, Counter[str]] = {}  # of each kernel, what was not judged because the time was over
        self.cases = 0
        self.judging = False
        # xdist fills the cores with processes; threads inside them would only wait for each other.
        torch.set_num_threads(1)
        device = config.getoption("moeracle_device")
        try:
            profile = profile_named(config.getoption("moeracle_profile"))
            examples = config.getoption("moeracle_examples")
            require(examples is None or examples >= 0, f"--moeracle-examples: got {examples}, must be 0 or more")
            seconds = config.getoption("moeracle_case_timeout")
            require(seconds is None or seconds > 0, f"--moeracle-case-timeout: got {seconds}, must be above 0")
            limits = limits_of(seconds, config.getoption("moeracle_max_memory"), option="--moeracle-max-memory")
            self.in_process = bool(config.getoption("moeracle_in_process"))
            self.requested = _requested(config)
            self.reports = Reports(config)
            entries = read_known_failures(Path(known) if (known := config.getoption("moeracle_known")) else None)
            self.subjects = [
                Subject(kernel, _replay_target(target, kernel, device), self._prepared, self.requested)
                for target in (load(text, device, self.in_process, limits, ranks=True) for text in targets)
                for kernel in target.kernels
            ]
            every = [subject.kernel for subject in self.subjects]
            whole = not (
                self.requested.cases or config.getoption("moeracle_op") or any(place_of(t) != t for t in targets)
            )
            gone = of_nobody(entries, every) if whole else []
            self.gone = [one for one in gone if self.requested.shard.has(one.entry.kernel)]
            self._keep_ops(config.getoption("moeracle_op"))
            for subject in self.subjects:
                entry = of_kernel(entries, subject.kernel.op, subject.kernel.name)
                subject.known = _known(entry) if entry is not None else None
                require_device(
                    subject.kernel.device, f"kernel {subject.kernel.name}", getattr(subject.kernel, "world_size", 1)
                )
            given, ops = self.requested.cases, {subject.kernel.op for subject in self.subjects}
            strange = [case for case in given if case.op not in ops]
            require(not strange, f"--moeracle-case: got {strange[:1]}, must be of an op that a kernel has")
            alone = len(self.subjects) == 1
            self.fixed = [
                [case for case in given if case.op == subject.kernel.op] if given else _fixed(subject.kernel, alone)
                for subject in self.subjects
            ]
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error
        if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
            self._release()  # under xdist its workers judge, each in children of its own
        self.law_cases = profile.law_cases
        # Cases with NaN and infinities are meant to make these, in Triton's interpreter.
        for module in ("triton.runtime.interpreter", "numpy"):
            config.addinivalue_line("filterwarnings", f"ignore::RuntimeWarning:{module}")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrize the suite's tests; the order is the order of declaration, the same in every xdist worker."""
        names = metafunc.fixturenames
        if "moeracle_subject" not in names:
            return
        params: list[Any] = []
        shard = self.requested.shard
        for subject, all_cases in zip(self.subjects, self.fixed, strict=True):
            who, known = subject.name, subject.known
            cases = [case for case in all_cases if shard.has(case)]
            if metafunc.function.__name__ == "test_known":
                params += [pytest.param(subject, id=who)] if known and shard.has(who) else []
            elif known and (known.quarantine or not known.expired):
                continue  # test_known asks it all
            elif "moeracle_case" in names:
                params += [pytest.param(subject, case, id=f"{who}-{case}") for case in cases]
            elif self.requested.cases:
                continue  # those and no others
            elif "moeracle_law" in names:
                again = [case for case in self.requested.again if case.op == subject.kernel.op]
                few = [case for case in dict.fromkeys([*again, *spread(all_cases, self.law_cases)]) if shard.has(case)]
                laws = laws_of(subject.kernel.op) if few else []
                params += [pytest.param(subject, law, few, id=f"{who}-{law.__name__}") for law in laws]
            else:
                params.append(pytest.param(subject, id=who))
        more = ["moeracle_case"] if "moeracle_case" in names else []
        more = ["moeracle_law", "moeracle_law_cases"] if "moeracle_law" in names else more
        metafunc.parametrize(["moeracle_subject", *more] if more else "moeracle_subject", params)

    def _keep_ops(self, ops: list[str]) -> None:
        held = list(dict.fromkeys(subject.kernel.op for subject in self.subjects))
        strange = next((op for op in ops if op not in held), None)
        if strange is not None:
            raise unknown("--moeracle-op", strange, held)
        for subject in self.subjects if ops else ():
            if subject.kernel.op not in ops:
                release(subject.kernel)
        self.subjects = [subject for subject in self.subjects if not ops or subject.kernel.op in ops]

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Give a worker of xdist the end of the session's time."""
        if self.requested.budget is not None:
            node.workerinput["moeracle_until"] = self.requested.budget.until

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take what a worker of xdist found."""
        found = getattr(node, "workeroutput", {}).get("moeracle")
        self.reports.others += [found] if found else []

    def pytest_runtest_setup(self, item: Any) -> None:
        """Begin nothing once the time is over."""
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if self.requested.budget is not None and "moeracle_subject" in params and self.requested.budget():
            left(item, f"{item.originalname}: 1", params["moeracle_subject"])

    def _release(self) -> None:
        for subject in self.subjects:
            release(subject.kernel)

    def _prepared(self, kernel: Any) -> tuple[KernelLike, Run | None]:
        """Infer the contract of a kernel that declares none, as `moeracle check` does."""
        if getattr(kernel, "declared", True):
            return kernel, None
        from .commands.check_undeclared import OrderFirst, infer_for_check  # which need much that a contract does not

        return infer_for_check(kernel, _Notes(self.notes)), OrderFirst()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count what was judged; of the tests that one kernel fails, the first stays a failure: it is one bug."""
        about = next((str(value) for name, value in report.user_properties if name == BROKEN), None)
        if about is not None and not self.is_worker and report.when == "call" and report.failed:
            kernel, how = about.rsplit("|", 1)
            failed = self.broken.setdefault(kernel, [])
            failed.append((report.nodeid, how))
            if len(failed) > 1:
                file, line, _ = report.location
                report.outcome = "skipped"
                report.longrepr = (file, line or 0, f"Skipped: {kernel} fails here too ({how}); see {failed[0][0]}")
        for about in (str(value) for name, value in report.user_properties if name == LEFT and report.skipped):
            kernel, what = about.rsplit("|", 1)
            for part in what.split(", "):
                name, count = part.split(": ")
                self.left.setdefault(kernel, Counter())[name] += int(count.replace(",", ""))
        if report.when == "call":
            counts = [value for name, value in report.user_properties if name == JUDGED]
            self.cases += len(counts)
            self.elements += sum(int(str(value)) for value in counts)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Make a session in which nothing was judged fail: a green light must mean something."""
        self._release()
        if self.is_worker:
            session.config.workeroutput["moeracle"] = self.reports.packed(self.subjects)  # type: ignore[attr-defined]
            return
        if session.config.option.collectonly:
            return
        went_well = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        unjudged = went_well and (self.elements == 0 or bool(self.left))
        if unjudged:
            session.exitstatus = UNJUDGED
        if self.gone and went_well:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self.reports.write(self.subjects, int(session.exitstatus), unjudged, self.left)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.in_process:
            terminalreporter.write_line(f"moeracle: {IN_PROCESS}")
        for one in self.gone:
            terminalreporter.write_line(f"moeracle: known failure: {one.text}", red=True)
        for note in self.notes:
            terminalreporter.write_line(f"moeracle: {note}")
        for kernel, failed in self.broken.items():
            hows = ", ".join(f"{how} {n}" for how, n in Counter(how for _, how in failed).most_common())
            terminalreporter.write_line(f"moeracle: {kernel} fails in {len(failed)} tests, shown once: {hows}")
        for kernel, what in self.left.items():
            words = ", ".join(f"{name}: {count:,}" for name, count in what.items())
            terminalreporter.write_line(f"moeracle: the time was over; of {kernel} not judged: {words}", red=True)
        if self.elements:
            terminalreporter.write_line(f"moeracle: {self.elements:,} elements judged in {self.cases:,} tests")
        elif not terminalreporter.config.option.collectonly:
            terminalreporter.write_line("moeracle: nothing could be judged; the skips above say why (-rs)")
