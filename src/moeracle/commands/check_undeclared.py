"""What `moeracle check` does with a kernel that declares no contract: it infers one, and judges by its order, too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.record import record_of
from moeracle.properties.common.verdict import Verdict
from moeracle.properties.infer import Inference, infer
from moeracle.properties.infer.drive import find_site
from moeracle.properties.infer.small import is_small, small_case
from moeracle.properties.trial.trial import run_trial
from moeracle.ref.contracts.contract import SCHEDULES, Contract
from moeracle.target.declaration import DeclaredError, Kernel
from moeracle.target.load import runs_interpreted

from .console import Progress
from .infer import INTERPRETED_K

CHECK_K = 256
ENOUGH = 3  # cases that an order does not predict, after which it is no longer asked


class Notes(Protocol):
    """Whoever is told what inference finds, and how far it is."""

    def __call__(self, phase: str, done: int, total: int) -> None: ...
    def note(self, text: str) -> None:
        """Take one line."""


def infer_for_check(kernel: Kernel, progress: Progress | Notes) -> Kernel:
    """Return a kernel that declares no contract with the one its outputs show, and say so."""
    who = f"[{kernel.op}] {kernel.name}"
    if not record_of(kernel.op).inferred:
        return kernel
    _check_supports(kernel)
    progress.note(f"{who}: declares no contract; inferring one first")
    fallback = f"judged under the op's default, {kernel.contract.name}"
    wanted = INTERPRETED_K if runs_interpreted(kernel) else CHECK_K
    for k in (wanted, None):
        try:
            result = infer(kernel, k=k, tick=progress)
            break
        except Exception as error:  # a kernel may be wrong in any way; then it is judged, not inferred
            problem = " ".join(str(error).split())[:200] or type(error).__name__
    else:
        progress.note(f"{who}: no contract inferred ({problem}); {fallback}")
        return kernel
    if not result.explained:
        progress.note(
            f"{who}: no contract explains its outputs ({result.why_not}); nearest is {result.nearest}; {fallback}"
        )
        return kernel
    rules = result.contract
    exact = "; judged at tolerance zero where its order predicts the bits" if scheduled(rules) else ""
    progress.note(f"{who}: inferred {rules.name} in {result.seconds:.1f} s{exact}{_unknown(result)}")
    return replace(kernel, contract=rules)


def _check_supports(kernel: Kernel) -> None:
    """Raise what `supports` raised, a user's mistake, before anything is said of inferring."""
    try:
        if is_small(kernel.op):
            small_case(kernel, None, None)
        else:
            find_site(kernel)
    except DeclaredError:
        raise
    except ValueError:
        return


def _unknown(result: Inference) -> str:
    """Say of which of a layer's GEMMs no order is known."""
    if result.second is None or result.contract.schedule is not None:
        return ""
    return "; no order for GEMM1" if result.contract.gemm2_schedule is not None else "; no order for its GEMMs"


def scheduled(rules: Contract) -> bool:
    """Say whether a contract has any schedule."""
    return any(getattr(rules, field) is not None for field in SCHEDULES)


class OrderFirst:
    """Judges a case under an inferred order; where that does not predict its bits, within the contract's bound.

    An order learned at one size is no promise: where it depends on sizes, holding it against a kernel would be a false
    alarm.
    """

    def __init__(self) -> None:
        self.exact, self.lost = 0, dict[str, str]()

    def __call__(self, kernel: Kernel, case: Case, **options: Any) -> Verdict:
        """Run and judge one case, as run_trial does."""
        plain = replace(kernel, contract=kernel.contract.unscheduled)
        if len(self.lost) >= ENOUGH or not scheduled(kernel.contract):
            return run_trial(plain, case, **options)
        verdict = run_trial(kernel, case, **options)
        if verdict.status == "legal":
            self.exact += 1
        if verdict.status != "illegal":
            return verdict
        within = run_trial(plain, case, **options)
        if within.status != "illegal":
            self.lost.setdefault(str(case), verdict.stage)
        return within

    def order_line(self) -> str:
        """Say how far the order held, or nothing if there was none."""
        if not self.lost:
            return f"; under its order in {self.exact:,} of them" if self.exact else ""
        case, stage = next(iter(self.lost.items()))
        left = f" and the cases after the first {ENOUGH} such" if len(self.lost) >= ENOUGH else ""
        said = f"the order inferred does not predict {stage or 'the result'} of {case}{left}: judged within the bound"
        return f"; under its order in {self.exact:,} of them, but {said}"
