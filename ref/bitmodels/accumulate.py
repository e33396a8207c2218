"""Bit models: the one fp32 accumulator a kernel of a declared schedule can end with.

A Schedule says which instruction multiplies and adds, how many inputs it takes, in what order, and how partial results
are joined. Then nothing is left to choose, and `accumulate` returns the bits. The rules are in fp32_trees (fp32)
and tensor_core (matrix units); special values are described there.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import require
from .fp32_levels import held32, tree32
from .fp32_trees import dot32, fma32, lanes32, mul32, multiply_add, products_are_exact, reduce32
from .schedule import Schedule
from .tensor_core import INSTRUCTIONS, fused_dot

__all__ = ["INSTRUCTIONS", "Schedule", "accumulate"]


def accumulate(
    a: torch.Tensor,
    w: torch.Tensor,
    schedule: Schedule,
    *,
    scale: torch.Tensor | None = None,
    zero: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the fp32 accumulators of a w^T that a kernel of this schedule ends with, bit for bit.

    out[m,n] = start[m,n] + sum_k a[m,k] w[n,k]; with a scale, tiles are post-scaled:
    acc + (sum_tile a w - zero * sum_tile a) * s.

    Args:
        a: [M, K], bf16 or fp16; for fp32 instructions also fp32. For a matrix unit whose sums are not held also
            [B, M, K]: B problems at once, and then all else has a leading B, too.
        w: [N, K], likewise; a matrix unit wants both of one dtype. With a scale: codes, as numbers.
        schedule: what adds them, in what order.
        scale: [N, K/G], any float dtype, G a multiple of the tile (or of the chunk of lanes), or None.
        zero: [N, K/G], what a hoisted zero point subtracts (z, or 128+z for codes left at 128+u), or None. The sum of a
            is taken as the products' sum is; z * sum and the difference are rounded each, or once if zero_fused; then
            the scale enters.
        bias: [N], only with a schedule of bias_fused: fp32 sums times scale, plus bias, are rounded once.
        start: float32 [M, N], the accumulator that the first tile continues from, or None for +0; only where tiles are
            chained to one accumulator: no splits, no deal, no lanes or held sums, no scale of the finished sum.
    Returns:
        float32 [M, N]; no error: the schedule's only value.
    Raises:
        ValueError: shapes or dtypes do not fit, the schedule does not cover K, or tiles do not divide a scale's group.
    Source: docs/bit-models.md; FPRev (arxiv.org/abs/2411.00442) for orders as trees.
    """
    (*batch, M, K), N = a.shape, w.shape[-2]
    many = len(batch) == 1 and schedule.how.core is not None and not schedule.held and bias is None and start is None
    require(not batch or many, f"a: got shape {tuple(a.shape)}, must be [M, K] with schedule {schedule}")
    must = f"must be [{''.join(f'{size}, ' for size in batch)}N, K={K}]"
    require(w.shape == (*batch, N, K), f"w: got shape {tuple(w.shape)}, {must}")
    spans = schedule.spans(K)
    if scale is not None:
        G = K // scale.shape[-1]
        unit = K if schedule.scale_last else schedule.held or schedule.chunk or schedule.tile
        require(scale.shape == (*batch, N, K // G), f"scale: got shape {tuple(scale.shape)}, must be [N={N}, K/G]")
        require(unit is not None and G % unit == 0, f"tile: got {unit}, must divide the scale's group of {G}")
        scale = scale.float()
    require(scale is not None or not schedule.scale_last, f"scale: got none, must be there for schedule {schedule}")
    require(zero is None or (scale is not None and zero.shape == scale.shape), "zero: must have the scale's shape")
    if start is not None:
        got = f"start: got {start.dtype} {tuple(start.shape)}, must be torch.float32 [M={M}, N={N}]"
        require(start.dtype == torch.float32 and start.shape == (M, N), got)
        one = schedule.combine == "chained" and schedule.split_k == schedule.deal == 1
        one = one and not (schedule.lanes or schedule.held or schedule.scale_last)
        require(one, f"start: got one with schedule {schedule}, must be None unless tiles chain to one accumulator")
    out = torch.empty(*batch, M, N, device=a.device)
    # Outputs at once: as many as caches hold.
    at_once = 1 << (20 if a.is_cuda else 14 if schedule.how.core is None else 12)
    if schedule.order in ("pairwise", "halves", "lanes", "tree"):
        at_once = max(1, (at_once << 6) // max(schedule.tile or K, 1))
    if batch and batch[0] > (each := max(1, at_once // max(1, M * N))):
        for some in (slice(start, start + each) for start in range(0, batch[0], each)):
            s, z = (None if x is None else x[some] for x in (scale, zero))
            out[some] = accumulate(a[some], w[some], schedule, scale=s, zero=z)
        return out
    rows = min(M, 128 if not a.is_cuda else 4096) or 1
    columns = max(1, at_once // rows)
    fused = schedule.how.fused and not (schedule.how.rounding == "rne" and products_are_exact(a, w))
    for m in range(0, M, rows):
        for n in range(0, N, columns):
            here = slice(n, n + columns)
            s, z = (None if x is None else x[..., here, :].float() for x in (scale, zero))
            last, s = (s, None) if schedule.scale_last else (None, s)
            if schedule.lanes:
                x, y = a[m : m + rows].float(), w[here].float()
                out[m : m + rows, here] = _lanes(x, y, schedule, s, z, fused)
                continue
            begin = None if start is None else start[m : m + rows, here]
            x, y = a[..., m : m + rows, :], w[..., here, :]
            splits = [_split(x, y, schedule, spans_of, s, z, fused, begin) for spans_of in spans]
            total = reduce32(torch.stack(splits), schedule.split_combine) if splits[1:] else splits[0]
            if last is not None:
                b = None if bias is None or not schedule.bias_fused else bias[here].float().expand_as(total)
                total = mul32(total, last.mT) if b is None else fma32(total, last.mT, b)
            out[..., m : m + rows, here] = total
    return out


def _lanes(
    a: torch.Tensor,
    w: torch.Tensor,
    schedule: Schedule,
    scale: torch.Tensor | None,
    zero: torch.Tensor | None,
    fused: bool,
) -> torch.Tensor:
    enters = {"scale_fused": schedule.scale_fused, "zero_fused": schedule.zero_fused}
    how = schedule.how.rounding
    return lanes32(a, w, schedule.lanes, schedule.chunk, fused=fused, scale=scale, zero=zero, rounding=how, **enters)


def _split(
    a: torch.Tensor,
    w: torch.Tensor,
    schedule: Schedule,
    spans: list[tuple[int, int]],
    scale: torch.Tensor | None,
    zero: torch.Tensor | None,
    fused: bool,
    first: torch.Tensor | None = None,
) -> torch.Tensor:
    """Add one split's tiles, chained ones to `first`."""
    rounding, K = schedule.how.rounding, a.shape[-1]
    chained = schedule.combine == "chained"
    if schedule.held:
        x, y = (torch.stack([_tile(t, *span, schedule) for span in spans]).float() for t in (a, w))
        groups = None if scale is None else _groups(schedule, spans, K, scale)
        how = (fused, groups, schedule.scale_fused, rounding)
        return held32(x, y, schedule.levels, schedule.held, *how)
    if schedule.deal > 1:
        dealt = [_split(a, w, replace(schedule, deal=1), spans[i :: schedule.deal], scale, zero, fused)
                 for i in range(schedule.deal)]  # fmt: skip
        return reduce32(torch.stack(dealt), schedule.split_combine, rounding)
    total = torch.zeros(*a.shape[:-1], w.shape[-2], device=a.device) if first is None else first
    if spans and chained and scale is None and schedule.how.core is not None and schedule.order != "reversed":
        # One chain of whole steps: where tiles end makes no difference.
        x, y = (torch.cat([_tile(t, *span, schedule) for span in spans], -1) for t in (a, w))
        return _dot(x, y, schedule, total, fused)
    parts = []
    for start, stop in spans:
        x, y = _tile(a, start, stop, schedule), _tile(w, start, stop, schedule)
        part = _dot(x, y, schedule, total if chained and scale is None else None, fused)
        if scale is not None:
            group = start * scale.shape[-1] // K
            if zero is not None:
                sum_a = _dot(x, torch.ones_like(y[..., :1, :]), schedule, None, fused)
                part = multiply_add(sum_a, -zero[..., None, :, group], part, schedule.zero_fused, rounding)
            s = scale[..., None, :, group]
            part = multiply_add(part, s, total, schedule.scale_fused, rounding) if chained else mul32(part, s, rounding)
        if chained:
            total = part
        else:
            parts.append(part)
    return reduce32(torch.stack(parts), schedule.combine, rounding) if parts else total


def _groups(schedule: Schedule, spans: list[tuple[int, int]], K: int, scale: torch.Tensor) -> torch.Tensor:
    """Return the scale of each held sum, [tiles, sums, N]: all of its inputs must be in one group."""
    G = K // scale.shape[1]
    order = torch.tensor(schedule.k_order or range(schedule.tile or 0), device=scale.device)
    places = order.repeat((schedule.tile or 0) // len(order)).view(-1, len(order))
    places = (places + torch.arange(len(places), device=scale.device)[:, None] * len(order)).view(-1, schedule.held)
    of_sum = places // schedule.held
    together = bool((of_sum == of_sum[:, :1]).all())
    require(together, f"k_order: scatters the inputs of one of {schedule}'s held sums, must keep them together")
    starts = torch.tensor([start for start, _ in spans], device=scale.device)
    group = (starts[:, None] + of_sum[None, :, 0] * schedule.held) // G
    return scale.T[group.clamp(max=scale.shape[1] - 1)]


def _tile(x: torch.Tensor, start: int, stop: int, schedule: Schedule) -> torch.Tensor:
    """Take inputs start to stop of x [..., K], with zeros beyond K, in the instruction's order."""
    part = torch.nn.functional.pad(x[..., start:stop], (0, max(stop - x.shape[-1], 0)))
    if not schedule.k_order:
        return part
    order = torch.tensor(schedule.k_order, device=x.device)
    return part.unflatten(-1, (-1, len(schedule.k_order)))[..., order].flatten(-2)


def _dot(x: torch.Tensor, y: torch.Tensor, schedule: Schedule, acc: torch.Tensor | None, fused: bool) -> torch.Tensor:
    how = schedule.how
    if how.core is None:
        narrow = x.dtype if how.narrow else None
        require(narrow != torch.float32, f"a: got {x.dtype}, must be of D for {schedule.instruction}")
        x, y = x.float(), y.float()
        if schedule.levels:
            return tree32(x, y, schedule.levels, fused=fused, rounding=how.rounding, narrow=narrow)
        return dot32(x, y, schedule.order, acc, fused=fused, rounding=how.rounding)
    if schedule.order == "reversed":  # the last instruction first; each takes its own inputs as ever
        x, y = (t.unflatten(-1, (-1, schedule.step)).flip(-2).flatten(-2) for t in (x, y))
    return fused_dot(x, y, how.core, acc, step=schedule.products or how.step)
