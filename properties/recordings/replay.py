"""Replay: predict every bit of a recording from its inputs and its schedule, and count the bits that are so."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moeracle.ref.bitmodels.accumulate import accumulate
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.bounds.band import Band
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.errors import require
from moeracle.ref.rounding import round_to

from ..cases.case import Case, Problem
from ..cases.optable import OPS
from ..cases.record import record_of
from .recordings import Entry

__all__ = ["Replay", "replay"]

INTEGER = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Replay:
    """How much of one entry was predicted.

    Args:
        entry: which.
        equal: elements whose bits are the predicted ones; of open ones, those within their Band.
        total: all elements.
        open: elements of which only a Band is known: what silu or a sigmoid made, and where it was rounded either way.
        first: the first element that is not as predicted, in words.
    """

    entry: Entry
    equal: int
    total: int
    first: str = ""
    open: int = 0

    @property
    def ok(self) -> bool:
        """Whether every bit is as predicted, of at least one element."""
        return self.equal == self.total > 0


def replay(entry: Entry, tensors: dict[str, torch.Tensor], schedule: str | None = None) -> Replay:
    """Predict one entry's stored bits and compare.

    Args:
        entry: what was recorded.
        tensors: its tensors; the work is done on their device.
        schedule: another schedule's text, to see that it does not fit; None: the entry's own.
    Returns:
        Replay; bits are compared, so -0 is not +0, except where silu or a sigmoid made it. A NaN may hold any payload
        that was rounded to D or that fp32 arithmetic made; a matrix unit's own may not.
    Raises:
        ValueError: the schedule does not cover K, or names no instruction, or nobody can predict the op.
    """
    out = tensors["out"]
    if entry.kind == "dots":
        rules = Schedule.parse(schedule or entry.schedule)
        expected = predict_dots(tensors["a"], tensors["w"], tensors.get("acc"), rules)
        return _counted(entry, [("", expected, expected, out)], nan_bits=True)
    problem = Case.parse(entry.case).build(out.device)
    record, stages = record_of(problem.case.op), []
    predicted = [op for op in OPS if record_of(op).sums]
    require(record.name in predicted, f"replay: got a case of {record.name}, must be {', '.join(predicted)}")
    for name, shape in {**record.shapes(problem), "dot": (len(tensors["out"]), 1)}.items():
        got = tuple(tensors[name].shape) if name in tensors else shape
        require(got == shape, f"recording entry {entry.name}: {name} has shape {got}, must be {shape}")
    contract = entry.rules(schedule)
    for name, band in predict(problem, contract, tensors).items():
        kept = tensors[name].dtype
        lo, hi = (_stored(end, kept, contract.rounding(name, kept)) for end in band)
        if record.open_zero_sign(problem.case, name):
            lo, hi = torch.where(lo == 0, -0.0, lo), torch.where(hi == 0, 0.0, hi)
        stages.append((name, lo, hi, tensors[name]))
    late = contract.schedule is None or contract.schedule.how.core is None or contract.weight == "post"
    return _counted(entry, stages, nan_bits=not late)


def predict(problem: Problem, rules: Contract, given: dict[str, torch.Tensor]) -> dict[str, Band]:
    """Return each stored stage's Band before its store rounding; rows that nobody computes are zeros.

    Args:
        problem: of an op with sums.
        rules: with schedules.
        given: what the kernel stored, by stage: a stage is predicted from the one that was stored before it.
    """
    record, found = record_of(problem.case.op), {}
    for stage, out in given.items():
        zeros = torch.zeros(out.shape, dtype=torch.float64, device=out.device)
        found[stage] = Band(zeros, zeros.clone())
    for stage, rows, first, band in record.bands(problem, record.as_judged(rules), given, exact=False):
        if stage in found:
            for end, value in zip(found[stage], band, strict=True):
                end[:, first : first + value.shape[1]][rows] = value
    return found


def _stored(x: torch.Tensor, dtype: torch.dtype, rounding: str) -> torch.Tensor:
    """Return fp64 values as they are stored: fp32 accumulators as they are, else rounded to D."""
    return x.float() if dtype == torch.float32 else round_to(x, dtype, rounding)


def _counted(
    entry: Entry, stages: list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]], *, nan_bits: bool
) -> Replay:
    equal = total = wide = 0
    first = ""
    for name, lo, hi, got in stages:
        same = _bits(lo) == _bits(got)
        if got.dtype != torch.float32 or not nan_bits:
            same |= lo.isnan() & got.isnan()
        open_ones = (_bits(lo) != _bits(hi)) & ~(lo.isnan() & hi.isnan())
        same = torch.where(open_ones, (lo <= got) & (got <= hi), same)
        equal, total, wide = equal + int(same.sum()), total + same.numel(), wide + int(open_ones.sum())
        wrong = (~same).nonzero()
        if len(wrong) and not first:
            at = tuple(wrong[0].tolist())
            where = f"{name if name != 'out' else ''}{list(at)}"
            first = f"{where}: recorded {_hex(got[at])}, predicted {_hex(lo[at])}"
    return Replay(entry, equal, total, first, wide)


def predict_dots(a: torch.Tensor, w: torch.Tensor, acc: torch.Tensor | None, schedule: Schedule) -> torch.Tensor:
    """Return float32 [P, M, N]: acc + a w^T for each of P problems, under the schedule.

    Args:
        a: [P, M, K], bf16 or fp16.  w: [P, N, K], the same dtype, or int8 codes that the kernel converts to it.
        acc: float32 [P, M, N], what a single chain of a matrix unit starts from, or None for +0.
    """
    w, starts = w.to(a.dtype), [None] * len(a) if acc is None else acc
    return torch.stack([accumulate(x, y, schedule, start=c) for x, y, c in zip(a, w, starts, strict=True)])


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(INTEGER[x.element_size()])


def _hex(x: torch.Tensor) -> str:
    size = x.element_size()
    return f"{int(_bits(x)) & (1 << 8 * size) - 1:0{2 * size}x}"
