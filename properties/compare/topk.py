"""Judging topk_softmax: near-ties may fall either way, surely larger scores and equal logits may not.

An fp32 softmax score is known to (8 + |l - max|) * 2^-23 + E * 2^-24 relative: exp of a rounded argument, E
additions, a division. Below 2^-125 it may have been flushed to 0, where all experts tie.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..cases.optable import Result
from ..common.verdict import Verdict
from .index_parts import tally_mask

FLUSHED = 2.0**-125  # twice the smallest normal: an exp or a quotient below it may come out as 0


class Scores(NamedTuple):
    """fp64 softmax [T, E], its relative error under fp32, and which rows [T, 1] have no finite softmax (all 0)."""

    value: torch.Tensor
    relative: torch.Tensor
    clamped: torch.Tensor

    def at_least(self) -> torch.Tensor:
        """What an fp32 softmax surely reaches."""
        return torch.where(self.value < FLUSHED, 0.0, self.value * (1 - self.relative))

    def at_most(self) -> torch.Tensor:
        """What an fp32 softmax surely does not exceed."""
        return self.value * (1 + self.relative) + 2.0**-149


def softmax(logits: torch.Tensor) -> Scores:
    """Return the softmax of each row of logits [T, E]."""
    l = logits.double()
    top = l.amax(1, keepdim=True)
    clamped = ~top.isfinite()  # a NaN or +inf somewhere, or -inf everywhere
    score = torch.softmax(torch.where(clamped, 0.0, l), 1)
    distance = (l - top).abs().nan_to_num(0.0, posinf=0.0)
    relative = (8 + distance) * 2.0**-23 + l.shape[1] * 2.0**-24
    return Scores(torch.where(clamped, 0.0, score), torch.where(clamped, 0.0, relative), clamped)


def wrong_ids(logits: torch.Tensor, scores: Scores, ids: torch.Tensor) -> torch.Tensor:
    """Return bool [T, k]: out of range, chosen before, or an expert left behind that had to come before this one."""
    (T, E), k, device = logits.shape, ids.shape[1], logits.device
    wrong = (ids < 0) | (ids >= E)
    safe = ids.clamp(0, E - 1)
    at_least, at_most = scores.at_least(), scores.at_most()
    seen = torch.zeros(T, E, dtype=torch.bool, device=device)
    expert = torch.arange(E, device=device)[None, :]
    for j in range(k):
        mine = safe[:, j : j + 1]
        wrong[:, j] |= seen.gather(1, mine).flatten()
        seen.scatter_(1, mine, True)
        larger = at_least > at_most.gather(1, mine)
        tied = (logits == logits.gather(1, mine)) | scores.clamped
        wrong[:, j] |= ((larger | (tied & (expert < mine))) & ~seen).any(1)
    return wrong


def about_id(logits: torch.Tensor, ids: torch.Tensor, t: int, j: int) -> str:
    """Say which expert was chosen for slot j of token t, and which one had to be."""
    got, E = int(ids[t, j]), logits.shape[1]
    if not 0 <= got < E:
        return f"got {got}, must be 0..{E - 1}"
    before = ids[t, :j].tolist()
    if got in before:
        return f"got {got}, chosen already in slot {before.index(got)}"
    finite = bool(logits[t].amax().isfinite())
    score = logits[t].double() if finite else torch.zeros(E, dtype=torch.float64)
    order = torch.sort(score, descending=True, stable=True).indices.tolist()
    first = next(e for e in order if e not in before)
    return f"got {got} (logit {float(logits[t, got]):.8g}), legal {first} (logit {float(logits[t, first]):.8g})"


def chosen_weights(scores: Scores, ids: torch.Tensor, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of the chosen experts and how far a legal kernel may be from them."""
    chosen, error = scores.value.gather(1, ids), scores.relative.gather(1, ids)
    flushed = torch.where(chosen < FLUSHED, chosen, 0.0)
    if not renormalize:
        return chosen, chosen * error + flushed + 2.0**-149
    k, total = ids.shape[1], chosen.sum(1, keepdim=True)
    total = torch.where(total > 0, total, 1.0)
    of_total = (chosen * error + flushed).sum(1, keepdim=True) / total
    expected = chosen / total
    return expected, expected * (error + of_total + (k + 4) * 2.0**-24) + flushed / total + 2.0**-149


def tally_weights(
    verdict: Verdict, result: Result, weights: torch.Tensor, expected: torch.Tensor, spread: torch.Tensor
) -> None:
    """Judge router weights float64 [T, k], which may be `spread` from what is expected."""
    bad = ~((weights - expected).abs() <= spread)  # so written that NaN is bad
    tier = "interval" if bool(weights[bad].isfinite().all()) else "nonfinite"

    def tell(t: int, j: int) -> str:
        legal = f"{float(expected[t, j]):.8g} ± {float(spread[t, j]):.2g}"
        return f"got {float(weights[t, j]):.8g}, legal {legal}"

    tally_mask(verdict, result, bad, tier, tell)
