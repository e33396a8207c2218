"""Judging grouped_topk: which groups and experts a legal fp32 kernel may have chosen, and which rows leave no choice.

A choice score c = s + bias is known to an interval; so is a group's score, its largest c or, under a bias, the sum of
its two largest, for both are monotone in each c. One group (or expert) surely precedes another if the intervals do not
meet, or if both are made of the same logits and biases, so that they tie, and its id is lower. What is left open is the
kernel's to choose: any set of groups that holds whatever surely precedes one of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .topk import Scores, softmax

ULP = 2.0**-24  # of one fp32 operation, relative to its result
TINY = 2.0**-149


class Choice(NamedTuple):
    """What is known of a row's choice scores.

    Args:
        scores: without bias.
        low, high: [T, E], what an fp32 choice score surely reaches and does not exceed.
        key, bias: [T, E], equal keys with equal biases tie: logits, with all that score 0 alike.
        precedes: bool [T, G, G], whether group b surely comes before group a at [t, b, a].
        size: experts a group.
    """

    scores: Scores
    low: torch.Tensor
    high: torch.Tensor
    key: torch.Tensor
    bias: torch.Tensor
    precedes: torch.Tensor
    size: int


def choice_of(logits: torch.Tensor, bias: torch.Tensor | None, num_groups: int, scoring: str) -> Choice:
    """Return what is known of the choice scores of logits [T, E] and their groups.

    Args:
        logits: with rows of any kind.
        bias: fp32 [E] or None.
        num_groups: divides E.
        scoring: "softmax" or "sigmoid".
    """
    T, E = logits.shape
    scores = softmax(logits) if scoring == "softmax" else sigmoid(logits)
    key = torch.where(scores.clamped, 0.0, logits.double())
    key = key.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    low, high = scores.at_least(), scores.at_most()
    add = torch.zeros(E, dtype=torch.float64, device=logits.device) if bias is None else bias.double()
    if bias is not None:
        low, high = _down(low + add), _up(high + add)
    size = E // num_groups
    two = bias is not None and size > 1
    group_low, group_high = (_group(c, num_groups, two) for c in (low, high))
    if two:
        group_low, group_high = _down(group_low), _up(group_high)
    add = add.expand(T, E)
    tied = _tied_groups(key, add, num_groups)
    earlier = torch.ones(num_groups, num_groups, dtype=torch.bool, device=logits.device).triu(1)
    precedes = (group_low[:, :, None] > group_high[:, None, :]) | (tied & earlier)
    return Choice(scores, low, high, key, add, precedes, size)


def sigmoid(logits: torch.Tensor) -> Scores:
    """Return the sigmoid of each logit; its error is that of exp of a rounded argument, a sum and a division."""
    l = logits.double()
    value = torch.sigmoid(l)
    relative = torch.where(l.isfinite(), (8 + l.abs()) * 2.0**-23, 0.0)
    nobody = torch.zeros(len(l), 1, dtype=torch.bool, device=l.device)
    return Scores(torch.where(value.isnan(), 0.0, value), relative, nobody)


def wrong_ids(choice: Choice, ids: torch.Tensor, topk_group: int) -> torch.Tensor:
    """Return bool [T, k]: out of range, chosen before, from a group too many, or behind an expert left behind.

    An expert is left behind if it surely precedes the one chosen and its group is surely kept, or has to be for the
    sake of the groups that the row uses.
    """
    T, E = choice.low.shape
    wrong = (ids < 0) | (ids >= E)
    safe = ids.clamp(0, E - 1)
    groups = choice.precedes.shape[1]
    kept = torch.zeros(T, groups, dtype=torch.bool, device=ids.device)
    for j in range(ids.shape[1]):
        mine = safe[:, j : j + 1] // choice.size
        kept |= choice.precedes.gather(2, mine[:, None, :].expand(T, groups, 1))[:, :, 0]
        kept.scatter_(1, mine, True)
        wrong[:, j] |= kept.sum(1) > topk_group
    behind = choice.precedes.sum(2)  # groups that each one surely precedes
    kept |= groups - 1 - behind < topk_group
    allowed = kept.repeat_interleave(choice.size, 1)
    seen = torch.zeros(T, E, dtype=torch.bool, device=ids.device)
    expert = torch.arange(E, device=ids.device)[None, :]
    for j in range(ids.shape[1]):
        mine = safe[:, j : j + 1]
        wrong[:, j] |= seen.gather(1, mine).flatten()
        seen.scatter_(1, mine, True)
        larger = choice.low > choice.high.gather(1, mine)
        tied = (choice.key == choice.key.gather(1, mine)) & (choice.bias == choice.bias.gather(1, mine))
        wrong[:, j] |= ((larger | (tied & (expert < mine))) & ~seen & allowed).any(1)
    return wrong


def clear_rows(choice: Choice, *, ties: bool) -> torch.Tensor:
    """Return bool [T]: rows whose experts and groups all have one order, with `ties` by the lower id where they tie."""
    groups = choice.precedes.shape[1]
    pairs = (choice.precedes | choice.precedes.transpose(1, 2)).sum((1, 2))
    clear = pairs == groups * (groups - 1)
    order = choice.low.argsort(dim=1, descending=True, stable=True)
    low, high, key, bias = (x.gather(1, order) for x in (choice.low, choice.high, choice.key, choice.bias))
    apart = low[:, :-1] > high[:, 1:]
    tied = (key[:, :-1] == key[:, 1:]) & (bias[:, :-1] == bias[:, 1:])
    return clear & (apart | (tied & ties)).all(1)


def _group(c: torch.Tensor, num_groups: int, two: bool) -> torch.Tensor:
    best = c.unflatten(1, (num_groups, -1)).sort(dim=2, descending=True).values
    return best[..., 0] + best[..., 1] if two else best[..., 0]


def _tied_groups(key: torch.Tensor, bias: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Return bool [T, G, G]: groups that hold the same keys with the same biases, in any order."""
    pairs = torch.stack([key, bias], 2).unflatten(1, (num_groups, -1))
    for column in (1, 0):  # by key, then by bias
        order = pairs[..., column].argsort(dim=2, stable=True)
        pairs = pairs.gather(2, order[..., None].expand(pairs.shape))
    flat = pairs.flatten(2)
    return (flat[:, :, None] == flat[:, None, :]).all(3)


def _down(x: torch.Tensor) -> torch.Tensor:
    return x - x.abs() * ULP - TINY


def _up(x: torch.Tensor) -> torch.Tensor:
    return x + x.abs() * ULP + TINY
