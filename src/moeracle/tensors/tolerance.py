"""What an atol and an rtol would have let pass, beside what is legal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from moeracle.properties.cases.case import Problem
from moeracle.properties.cases.record import record_of
from moeracle.properties.common.torch_state import our_arithmetic
from moeracle.properties.diagnose.candidates import candidates
from moeracle.properties.diagnose.evidence import Evidence
from moeracle.properties.faults import FAULTS

from .errors import NotJudged
from .judge import judge_tensors
from .verdict import TensorVerdict

__all__ = ["ToleranceReport", "tolerance_report"]

MOST_SHOWN = 8


@dataclass(frozen=True)
class ToleranceReport:
    """What one comparison with a reference needed, and what such a tolerance cannot see.

    Args:
        legal: whether the output is legal under the contract.
        atol: the least atol that passes with the rtol given.
        rtol: that rtol.
        rtol_alone: the least rtol that passes with atol = 0; inf where the output misses a zero of the reference.
        tolerance: the (atol, rtol) that the rest is said of: the test's own, or else the least.
        share: of the elements that need not be close.
        passes: outputs that are wrong whoever made them, and whether they pass: "zeros", "rows swapped",
            "another expert's rows", "one row lost".
        missed: ids of known faults whose outputs are illegal, judged by the same stages, and pass.
        seen: ids of known faults whose outputs do not pass.
        why_no_faults: why none was planted, or "".
    """

    legal: bool
    atol: float
    rtol: float
    rtol_alone: float
    tolerance: tuple[float, float]
    passes: Mapping[str, bool] = field(default_factory=dict)
    missed: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    why_no_faults: str = ""
    share: float = 0.0

    def text(self) -> str:
        """Return the report in a few lines."""
        atol, rtol = self.tolerance
        wrong = [name for name, passed in self.passes.items() if passed]
        free = f", {self.share:.3g} of the elements free," if self.share else ""
        lines = [
            f"the output is {'legal' if self.legal else 'illegal'}; against the reference it needs "
            f"atol={self.atol:.3g} with rtol={self.rtol:.3g}, or rtol={self.rtol_alone:.3g} alone",
            f"at atol={atol:.3g}, rtol={rtol:.3g}{free} of the wrong outputs tried these pass: "
            f"{', '.join(wrong) or 'none'}",
        ]
        if self.why_no_faults:
            return "\n".join([*lines, f"known faults: {self.why_no_faults}"])
        names = [f"{id} {FAULTS[id].title}" for id in self.missed]
        more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
        planted = len(self.missed) + len(self.seen)
        lines.append(
            f"of {planted} known faults planted it misses {len(names)}: {'; '.join(names[:MOST_SHOWN]) or 'none'}{more}"
        )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


def tolerance_report(
    op: str,
    out: Any,
    *args: Any,
    atol: float | None = None,
    rtol: float | None = None,
    share: float = 0.0,
    **more: Any,
) -> ToleranceReport:
    """Say which tolerance a comparison with the fp32 reference needs, and what such a tolerance lets pass.

    Args:
        op, out, args, more: as `judge_tensors` takes them.
        atol, rtol: the test's own; None for both takes the least atol that passes with rtol = 0.
        share: of the elements that need not be close, 0 to 1.
    Returns:
        ToleranceReport; str() of it is what to print.
    Raises:
        NotJudged: the tensors cannot be judged, or the op has no floats to put a tolerance on.
    """
    if not 0 <= share < 1:
        raise NotJudged(f"share: got {share}, must be from 0 to below 1")
    for name, value in (("atol", atol), ("rtol", rtol)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value < math.inf):
            raise NotJudged(f"{name}: got {value!r}, must be a finite number from 0 on, or None")
    verdict = judge_tensors(op, out, *args, explain=False, **more)
    record = record_of(op)
    if not record.has("compared"):
        raise NotJudged(f"{op}: {record.without.get('compared', 'has no floats')}; no tolerance can be put on it")
    with our_arithmetic():
        return _reported(verdict, atol, rtol, share)


def _reported(verdict: TensorVerdict, atol: float | None, rtol: float | None, share: float) -> ToleranceReport:
    problem, record = verdict.problem, record_of(verdict.problem.case.op)
    compared: Callable[[Mapping[str, torch.Tensor]], torch.Tensor] = lambda parts: record.compared(
        record.as_output(dict(parts))
    ).double()
    expected = compared(record.reference(problem, torch.float32))
    got = compared(verdict.outputs)
    error, size = (got - expected).abs().nan_to_num(torch.inf), expected.abs()
    with_rtol = rtol or 0.0
    least = max(0.0, _largest(error - with_rtol * size, share)) * (1 + 2.0**-40)
    alone = _largest(torch.where(error == 0, 0.0, error / size), share)
    own = (least, with_rtol) if atol is None and rtol is None else (atol or 0.0, with_rtol)

    def passes(wrong: torch.Tensor) -> bool:
        near = (wrong - expected).abs() <= own[0] + own[1] * size  # NaN passes nowhere
        return int((~near).sum()) <= share * near.numel()

    missed, seen, why = _faults(verdict, compared, passes)
    found = {name: passes(wrong) for name, wrong in _wrong(problem, expected) if not torch.equal(wrong, expected)}
    return ToleranceReport(verdict.ok, least, with_rtol, alone, own, found, missed, seen, why, share)


def _largest(values: torch.Tensor, share: float) -> float:
    """Return the largest value but for a share of them."""
    if not values.numel():
        return 0.0
    return float(values.flatten().kthvalue(values.numel() - int(share * values.numel())).values)


def _wrong(problem: Problem, expected: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Return outputs that no kernel may return, by what is wrong with them."""
    made = [("zeros", torch.zeros_like(expected))]
    rows = expected.reshape(-1, expected.shape[-1])
    if len(rows) > 1:
        swapped, lost = rows.clone(), rows.clone()
        swapped[[0, 1]] = rows[[1, 0]]
        lost[-1] = 0
        made += [("rows swapped", swapped.reshape(expected.shape)), ("one row lost", lost.reshape(expected.shape))]
    moved = _with_other_experts(problem)
    return made if moved is None else [*made, ("another expert's rows", moved)]


def _with_other_experts(problem: Problem) -> torch.Tensor | None:
    """Return the reference's answer if every slot met the next expert's weight; None for an op without experts."""
    record, ids = record_of(problem.case.op), problem.args.get("topk_ids")
    if ids is None or not record.sums_products or problem.case.E < 2:
        return None
    moved = torch.where(ids < 0, ids, (ids + 1) % problem.case.E)
    other = Problem(problem.case, {**problem.args, "topk_ids": moved}, problem.truth)
    return record.compared(record.as_output(record.reference(other, torch.float32))).double()


def _faults(
    verdict: TensorVerdict,
    compared: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
    passes: Callable[[torch.Tensor], bool],
) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Plant every known fault: which pass although their output is illegal, which do not, or why none was planted."""
    from moeracle.properties.diagnose import why_not
    from moeracle.properties.judge import judge

    problem, rules, record = verdict.problem, verdict.rules, record_of(verdict.problem.case.op)
    listed = [c for c in candidates(problem.case, rules) if c.id in FAULTS]
    reason = why_not(problem, len(listed))
    if reason is not None:
        return (), (), reason.replace("not looked for", "none planted")
    on_cpu = problem.to("cpu")
    evidence = Evidence(on_cpu, {name: value.cpu() for name, value in verdict.outputs.items()}, rules)
    given = record.results[-1].name if record.layer else ""
    missed: dict[str, None] = {}
    seen: dict[str, None] = {}
    for candidate in listed:
        try:
            # Of a layer the whole of it, not one stage from the kernel's own: that is what a tolerance is put on.
            output = getattr(candidate.simulation(), problem.case.op)(*evidence.args.values())
        except (ValueError, RuntimeError, IndexError, KeyError):  # it does not exist in this shape
            continue
        parts = record.by_name(output) or {}
        stored = {name: parts[name] for name in verdict.outputs if name in parts}  # the judge sees what it was given
        if judge(on_cpu, record.as_output(stored), rules, explain=False).status != "illegal":
            continue
        target = {given: parts[given]} if given else parts
        (missed if passes(compared(target).to(problem.device)) else seen)[candidate.id] = None
    return tuple(id for id in missed if id not in seen), tuple(seen), ""
