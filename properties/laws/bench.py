"""What every law needs: run a kernel on a changed problem, compare, and say what differed.

A law is a function (Bench, Case) -> None, made into a check (kernel, case) -> Verdict | None by the decorator `law`.
Equality is demanded only where every legal kernel must show it. There are two grounds, and each law names its own:

exact data          every partial sum fits the accumulator, so no order, tile or batch size can change the stored value;
same computation    only values change that the compared elements do not depend on (or all by a power of two), never a
                    shape, a stride or an id: a deterministic kernel then does the same operations on them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, cast

import torch

from ..cases.case import Case, Problem
from ..cases.inputs import EXACT
from ..cases.kernel_like import KernelLike
from ..cases.record import Law, record_of
from ..cases.routings import may_be
from ..common.endings import Ended
from ..common.guard import Guarded
from ..common.verdict import StageResult, Verdict, failed
from ..compare.error_map import difference_map
from ..trial.call import call, ending_of

__all__ = ["Bench", "law"]

Results = dict[str, torch.Tensor]
ITSELF = "the kernel on the case itself"


class Silent(Exception):  # noqa: N818  (not an error: the law has nothing to say about this case)
    pass


class Broken(Exception):  # noqa: N818  (a finding, not an error)
    pass


class Bench:
    """One law, put to one kernel on one case.

    Args:
        name: the law's.
        identity: what must hold, in one line.
        kernel, case: who is asked, and about what.
    """

    # Laws about one case share its first run: on its own data, and on exact data.
    _last: ClassVar[list[tuple[KernelLike, str, Problem, Results]]] = []

    def __init__(self, name: str, identity: str, kernel: KernelLike, case: Case) -> None:
        self.kernel, self.case, self.identity = kernel, case, identity
        self.contract = kernel.contract
        self.data = case.data  # of the problem in use
        # Whether legal answers may both be NaN. On exact data sums do not overflow, but in fp16 before their scale.
        self.overflows = self.contract.one_group == "after_store" and case.dtype == "fp16"
        self.verdict = Verdict(case.op, str(case), kernel.name, kernel.contract.name)
        self.result = StageResult(name, 0)
        self.verdict.stages.append(self.result)

    def refuses(self, problem: Problem) -> bool:
        """Say whether the kernel was not made for a problem: its case, or what the case's routing promises of ids."""
        ids = problem.args.get("topk_ids", problem.truth.get("topk_ids"))
        routing = problem.case.routing
        kept = ids is None or routing == "-" or may_be(routing, ids, problem.case.E)
        return not kept or self.kernel.why_not(problem.case) is not None

    def start(self, *, exact: bool = False, without: frozenset[str] = frozenset()) -> tuple[Problem, Results]:
        """Return a problem and the kernel's results on it: the case's own, or the same sizes with exact data.

        Args:
            exact: demand data on which every order of summation gives the same bits.
            without: modifiers of the case to leave out.
        """
        case = self._exact_case() if exact and record_of(self.case.op).has_exact_data else self.case
        case = case.replace(flags=case.flags - without)
        self.data = case.data
        process = getattr(self.kernel.fn, "processes", 0)  # what another one answered is not asked again
        text = f"{case}{' exact' if exact else ''} {process}"
        known = next((last for last in Bench._last if last[0] is self.kernel and last[1] == text), None)
        if known is not None:
            problem, results = known[2], known[3]
        else:
            if self.kernel.why_not(case) is not None:
                raise Silent
            problem = case.build()
            problem = record_of(case.op).exact_under(problem, self.contract) if exact else problem
            results = self.run(problem, "the case itself")
            Bench._last = [(self.kernel, text, problem, results), *Bench._last[:1]]
        if exact and record_of(case.op).has_exact_data and not problem.exact:
            raise Silent
        return problem, results

    def same_computation(self) -> tuple[Problem, Results]:
        """As `start`, on the case's own data; on exact data where the contract lets two runs differ."""
        return self.start(exact=not self.contract.deterministic)

    def _exact_case(self) -> Case:
        record, adder = record_of(self.case.op), self.contract.adder
        parts = self.contract.parts
        in_parts = (parts is not None and parts.add == "dtype") or self.contract.rounds_partials
        if record.sums_products and (adder.in_dtype or in_parts):
            raise Silent  # a 16-bit accumulator holds too few bits for exact sums
        any_slot = "sum_schedule" in record.sums and self.case.k > 2 and self.contract.slot_order == "any"
        if any_slot and self.contract.sum_in_dtype(self.case.k):
            raise Silent  # the same of a sum of slots in D, in an order that nobody declared
        same_sign = record.sums_products and adder.one_sign
        wanted = ("samesign",) if same_sign else EXACT
        return self.case if self.case.data in wanted else self.case.replace(data=wanted[0])

    def run(self, problem: Problem, on: str) -> Results:
        """Run the kernel on guarded inputs and poisoned memory; return its results by name, on the CPU.

        Args:
            problem: its case describes its sizes, so that the kernel may decline it; ids that its routing never has are
                not put to a kernel at all.
            on: how a failure names this problem.
        """
        if self.refuses(problem):
            raise Silent
        guarded = Guarded(problem.to(self.kernel.device).args)
        try:
            output = call(self.kernel, guarded.args, 0, problem.case)
        except Ended as ended:  # not the law's finding: the process that the kernel ran in is gone
            raise Ended(ended.tier, f"on {on}: {ended.lines[0]}", *ended.lines[1:]) from None
        except Exception as error:  # whatever a user's kernel raises is a finding, not our crash
            raise Broken(f"on {on}: {ending_of(error)[1][0]}") from None
        changed = guarded.written()
        if changed:
            raise Broken(f"on {on}: wrote into its input {changed}; inputs must be unchanged")
        return _named(problem, output, on)

    def equal(
        self,
        name: str,
        got: torch.Tensor,
        expected: torch.Tensor,
        axes: tuple[str, ...],
        where: Any = None,
        on: str = "",
        against: str = ITSELF,
    ) -> None:
        """Demand equal values, -0 and 0 alike; NaN never passes, but where sums may overflow.

        Args:
            name: the result's.
            got, expected: of one shape; what the law compares.
            axes: what each dimension is called.
            where: bool, broadcastable: the elements that the law speaks about; None for all.
            on, against: what `got` and `expected` come from, for the failure.
        """
        self.demand(name, got == expected, got, expected, axes, where, on, against)

    def demand(
        self,
        name: str,
        right: torch.Tensor,
        got: torch.Tensor,
        expected: torch.Tensor,
        axes: tuple[str, ...],
        where: Any = None,
        on: str = "",
        against: str = ITSELF,
    ) -> None:
        """Count what was compared, and break the law unless `right` holds everywhere; arguments as `equal`'s."""
        spoken = torch.ones_like(right) if where is None else torch.as_tensor(where).expand(right.shape)
        if self.overflows:
            spoken = spoken & ~(got.isnan() & expected.isnan())
        bad = spoken & ~right
        self.result.judged += int(spoken.sum())
        count = int(bad.sum())
        if not count:
            return
        self.result.illegal += count
        self.verdict.maps = [difference_map(name, axes[0], bad)]
        distance = (got.double() - expected.double()).abs().nan_to_num(torch.inf)
        flat = int(torch.where(bad, distance, -1.0).argmax())
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), bad.shape))
        place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, at, strict=True))
        never = "; NaN equals nothing, not even NaN" if got[at].isnan() and expected[at].isnan() else ""
        raise Broken(
            f"{count:,} of {int(spoken.sum()):,} elements differ; worst {name}[{place}]: "
            f"got {got[at].item():.8g}, by the law {expected[at].item():.8g}{never}",
            f"compared: the kernel on {on}, with {against}{self._substitute()}",
        )

    def fail(self, *lines: str) -> NoReturn:
        """Break the law with the given lines."""
        self.result.illegal += 1
        raise Broken(*lines)

    def _substitute(self) -> str:
        return f"; data {self.data!r} instead of {self.case.data!r}" if self.data != self.case.data else ""


def law(check: Callable[[Bench, Case], None], promise: str | None = None) -> Law:
    """Make a law: the check returns if it holds, raises Broken if not, and Silent if it says nothing about the case.

    The identity shown in a failure is the docstring's first line.

    Args:
        check: called with a Bench, which runs the kernel, and a case.
        promise: the field of a contract that must be true for the law to say anything; None for every contract.
    Returns:
        The law, (kernel, case) -> Verdict, or None where it says nothing.
    """
    identity = (check.__doc__ or "").strip().splitlines()[0]

    @functools.wraps(check)
    def checked(kernel: KernelLike, case: Case) -> Verdict | None:
        if promise is not None and not getattr(kernel.contract, promise):
            return None
        if case.sizes.get("T") == 0:
            return None  # nothing to compare
        started = time.perf_counter()
        bench = Bench(check.__name__, identity, kernel, case)
        try:
            check(bench, case)
        except Silent:
            return None
        except Broken as broken:
            failed(bench.verdict, "law", check.__name__, *broken.args, f"law: {identity}")
        except Ended as ended:
            tier = "law" if ended.tier == "call" else ended.tier
            failed(bench.verdict, tier, check.__name__, *ended.lines, f"law: {identity}")
        bench.verdict.seconds = time.perf_counter() - started
        return bench.verdict if bench.result.judged or bench.verdict.status == "illegal" else None

    made = cast(Law, checked)
    made.promise = promise
    return made


def law_of_promise(promise: str) -> Callable[[Callable[[Bench, Case], None]], Law]:
    """Return the decorator `law` for what only those kernels obey whose contract makes a promise, such as
    batch_invariant."""
    return functools.partial(law, promise=promise)


def _named(problem: Problem, output: Any, on: str) -> Results:
    """Return a kernel's results by name, on the CPU; of a layer `out` alone."""
    record = record_of(problem.case.op)
    wanted, values = record.shapes(problem), output
    if record.layer:
        wanted = {"out": wanted["out"]}
        values = output.get("out") if isinstance(output, dict) else output
    values = [values] if len(wanted) == 1 else values
    if not isinstance(values, (tuple, list)) or len(values) != len(wanted):
        raise Broken(f"on {on}: returned {type(output).__name__}, must return {', '.join(wanted)}")
    for (name, shape), value in zip(wanted.items(), values, strict=True):
        if not isinstance(value, torch.Tensor):
            raise Broken(f"on {on}: returned {name} as {type(value).__name__}, must be a tensor")
        if tuple(value.shape) != shape:
            raise Broken(f"on {on}: {name}: got shape {list(value.shape)}, must be {list(shape)}")
    return {name: value.detach().cpu() for name, value in zip(wanted, values, strict=True)}
