"""judge_argmax: could a legal kernel have chosen these tokens?

A logit is known to an interval, so the arg-max is known where one column's lowest legal logit is above every other
column's highest; elsewhere a legal logit changes it, and each id that can win is legal. Padding never wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from moeracle.properties.cases.case import Problem
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import OpRecord, record_of
from moeracle.properties.common.torch_state import our_arithmetic
from moeracle.ref.bounds.band import Band, store, to_fp32
from moeracle.ref.bounds.deferred import whole
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.errors import unknown

from .errors import NotJudged
from .judge import chosen
from .problem import as_problem, check_strided, plain

__all__ = ["ArgmaxVerdict", "judge_argmax"]

TIES = ("any", "lowest")
STORED = ("D", "fp32")
SHOWN = 3


@dataclass
class ArgmaxVerdict:
    """What judging arg-maxes found.

    Args:
        status: "legal", "illegal", or "vacuous": every id of every token could win.
        ids: int64 [T], what the kernel chose.
        legal: bool [T].
        open: bool [T], where a legal logit changes the arg-max: more than one id could win.
        best: int64 [T], an id that can win.
        lines: of a failure, what is wrong with the first few tokens.
    """

    status: str
    ids: torch.Tensor
    legal: torch.Tensor
    open: torch.Tensor
    best: torch.Tensor
    lines: list[str]

    @property
    def ok(self) -> bool:
        """True for legal only."""
        return self.status == "legal"

    def text(self) -> str:
        """Return what was found, the count of open tokens and the first wrong ones."""
        T = len(self.ids)
        wrong = f"{int((~self.legal).sum())} of {T} arg-maxes illegal"
        open_tokens = f"{int(self.open.sum())} of {T} tokens open: there a legal logit changes the arg-max"
        return "\n".join([f"{self.status}: {wrong}; {open_tokens}", *self.lines])


def judge_argmax(
    op: str,
    ids: torch.Tensor,
    *args: Any,
    vocabulary: int | None = None,
    logits: torch.Tensor | None = None,
    contract: str | Contract | None = None,
    ties: str = "any",
    stored: str = "D",
    **named: Any,
) -> ArgmaxVerdict:
    """Say whether a kernel that keeps the contract could have chosen these ids by the largest of its logits.

    Args:
        op: what gives the logits: int8_lm_head or int4_linear.
        ids: int32 or int64 [T] or [T, 1], the chosen columns.
        args: what that op was called with, in its order: x, codes, scale, bias.
        vocabulary: how many columns are tokens; those from there on are padding, which no token may be. None: all.
        logits: [T, columns], what the kernel stored, where it did: the arg-max is then judged from these, exactly.
        contract: as judge_tensors takes it.
        ties: which of equal logits may win: "any", or the "lowest" id.
        stored: "D" where the kernel compares logits that it has rounded to the activation dtype, "fp32" where sums.
        named: arguments of the op by name, and sizes that no tensor shows.
    Returns:
        ArgmaxVerdict: ok, status, legal and open by token, text().
    Raises:
        NotJudged: in one line what was given and what fits.
    """
    able = [name for name in OPS if _has_logits(record_of(name))]
    if op not in able:
        raise NotJudged(str(unknown("op", op, able)))
    for name, got, legal in (("ties", ties, TIES), ("stored", stored, STORED)):
        if got not in legal:
            raise NotJudged(str(unknown(name, got, legal)))
    record = record_of(op)
    rules = chosen(record, contract, None, None, None, None)[0]
    problem = as_problem(op, args, named, out_dtype=None if logits is None else logits.dtype)
    T, columns = record.shapes(problem)["out"]
    picked = _checked_ids(ids, T)
    tokens = columns if vocabulary is None else vocabulary
    if not 1 <= tokens <= columns:
        raise NotJudged(f"vocabulary: got {tokens}, must be 1..{columns}, the columns that there are")
    if logits is None:
        with our_arithmetic():
            lo, hi = _band_of(record, problem, rules, stored, (T, columns))
    else:
        check_strided("logits", logits)
        if tuple(logits.shape) != (T, columns):
            raise NotJudged(f"logits: got shape {list(logits.shape)}, must be [{T}, {columns}]")
        lo = hi = plain(logits).double()
    return _judged(picked.to(lo.device), lo[:, :tokens], hi[:, :tokens], columns, ties)


def _has_logits(record: OpRecord) -> bool:
    """Say whether an op multiplies every row by one matrix of several columns."""
    return record.sums_products and "E" not in record.dims and not {"N", "V"}.isdisjoint(record.dims)


def _checked_ids(ids: torch.Tensor, T: int) -> torch.Tensor:
    check_strided("ids", ids)
    if ids.dtype not in (torch.int32, torch.int64) or ids.numel() != T or ids.ndim not in (1, 2):
        raise NotJudged(f"ids: got {ids.dtype} {list(ids.shape)}, must be int32 or int64 [{T}]")
    return plain(ids).reshape(T).long()


def _band_of(
    record: OpRecord, problem: Problem, rules: Contract, stored: str, shape: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lowest and the highest legal logit, as the kernel compares them."""
    D = problem.case.torch_dtype
    assert D is not None
    lo, hi = (torch.zeros(shape, dtype=torch.float64, device=problem.device) for _ in range(2))
    rules = record.as_judged(rules)
    for _, rows, first, band in record.bands(problem, rules, {}, exact=problem.exact):
        kept: Band = whole(band)
        kept = store(kept, rules, D) if stored == "D" else to_fp32(kept)
        at = slice(first, first + kept.lo.shape[1])
        lo[rows, at], hi[rows, at] = kept.lo, kept.hi
    return lo, hi


def _judged(ids: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor, columns: int, ties: str) -> ArgmaxVerdict:
    T, tokens = lo.shape
    lo, hi = lo.nan_to_num(-torch.inf, torch.inf, -torch.inf), hi.nan_to_num(torch.inf, torch.inf, -torch.inf)
    least = lo.amax(1, keepdim=True)
    may_win = hi >= least
    if ties == "lowest":  # above every lower id's lowest logit, not only equal to it
        below = torch.cat([torch.full_like(least, -torch.inf), lo.cummax(1).values[:, :-1]], 1)
        may_win &= (hi > below) | (below == -torch.inf)
    inside = (ids >= 0) & (ids < tokens)
    legal = inside & may_win.gather(1, ids.clamp(0, tokens - 1)[:, None])[:, 0]
    best, open_ = may_win.int().argmax(1), may_win.sum(1) > 1
    lines = [_said(t, ids, lo, hi, best, columns) for t in (~legal).nonzero().flatten().tolist()[:SHOWN]]
    vacuous = tokens > 1 and bool(may_win.all()) and T > 0
    status = "illegal" if not bool(legal.all()) else "vacuous" if vacuous else "legal"
    return ArgmaxVerdict(status, ids, legal, open_, best, lines)


def _said(t: int, ids: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor, best: torch.Tensor, columns: int) -> str:
    """Return one line about a wrong token: what was chosen, and what beats it."""
    got, tokens, right = int(ids[t]), lo.shape[1], int(best[t])
    if not 0 <= got < tokens:
        what = "padding" if tokens <= got < columns else "no column"
        return f"  token {t}: got {got}, which is {what}: the vocabulary has {tokens} ids; id {right} can win"
    winner = int(lo[t].argmax())
    line = f"  token {t}: got {got}, whose logit is at most {float(hi[t, got]):.9g}; "
    line += f"id {winner}'s is at least {float(lo[t, winner]):.9g}"
    if winner == got or float(hi[t, got]) == float(lo[t, winner]):
        line += f"; of equal logits the lowest id wins, which is {right}"
    others = [u for u in range(len(ids)) if u != t and got == int(best[u])]
    return line + (f"; {got} is the arg-max of token {others[0]}" if others else "")
