"""One pytest session that judges kernels: which tests there are, and whether anything was judged at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moeracle.exit_codes import UNJUDGED
from moeracle.properties.cases.case import Case
from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.properties.common.endings import Ended
from moeracle.properties.hunt.effort import profile_named
from moeracle.properties.hunt.must_run import must_run, spread
from moeracle.properties.hunt.search import laws_of
from moeracle.properties.suite.outcome import JUDGED, Subject
from moeracle.ref.errors import require
from moeracle.target.declaration import require_device

from .commands.loading import IN_PROCESS, limits_of, load, release
from .target.load import Kernel, Target


def _replay_target(target: Target, kernel: Kernel, device: str | None) -> str:
    narrow = sum(k.op == kernel.op for k in target.kernels) > 1 and not target.name.endswith(f":{kernel.name}")
    text = f"{target.name}:{kernel.name}" if narrow else target.name
    return text if device is None else f"{text} --device {device}"


def _fixed(kernel: KernelLike) -> list[Case]:
    """Return a kernel's fixed cases; none where asking it for them ended its process: then the hunt says how."""
    try:
        return must_run(kernel)
    except Ended:
        return []


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
            self.subjects = [
                Subject(kernel, _replay_target(target, kernel, device))
                for target in (load(text, device, self.in_process, limits) for text in targets)
                for kernel in target.kernels
            ]
            for subject in self.subjects:
                require_device(subject.kernel.device, f"kernel {subject.kernel.name}")
            self.fixed = [_fixed(subject.kernel) for subject in self.subjects]
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
        for subject, cases in zip(self.subjects, self.fixed, strict=True):
            who = f"{subject.kernel.op}.{subject.kernel.name}"
            if "moeracle_case" in names:
                params += [pytest.param(subject, case, id=f"{who}-{case}") for case in cases]
            elif "moeracle_law" in names:
                few = spread(cases, self.law_cases)
                params += [
                    pytest.param(subject, law, few, id=f"{who}-{law.__name__}") for law in laws_of(subject.kernel.op)
                ]
            else:
                params.append(pytest.param(subject, id=who))
        more = ["moeracle_case"] if "moeracle_case" in names else []
        more = ["moeracle_law", "moeracle_law_cases"] if "moeracle_law" in names else more
        metafunc.parametrize(["moeracle_subject", *more] if more else "moeracle_subject", params)

    def _release(self) -> None:
        for subject in self.subjects:
            release(subject.kernel)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            counts = [value for name, value in report.user_properties if name == JUDGED]
            self.cases += len(counts)
            self.elements += sum(int(str(value)) for value in counts)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Make a session in which nothing was judged fail: a green light must mean something."""
        self._release()
        is_worker = hasattr(session.config, "workerinput")
        judged_nothing = self.elements == 0 and not session.config.option.collectonly
        if not is_worker and judged_nothing and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = UNJUDGED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.in_process:
            terminalreporter.write_line(f"moeracle: {IN_PROCESS}")
        if self.elements:
            terminalreporter.write_line(f"moeracle: {self.elements:,} elements judged in {self.cases:,} tests")
        elif not terminalreporter.config.option.collectonly:
            terminalreporter.write_line("moeracle: nothing could be judged; the skips above say why (-rs)")
