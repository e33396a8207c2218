"""How far a matrix unit's chain may end from the exact sum, by its partial sums on the way.

A schedule leaves one legal value, and following it costs a hundred times its products. Most sums need not be followed:
a unit cuts its terms at 2^-bits of the largest exponent in the step, so it loses little where the sum so far is small,
as it is on ordinary data, however large the magnitudes' sum T is. Where both ends of the interval round to one stored
value, it is that one.

With exact partial sums s_0 = 0, s_1, ..., s_C after each chunk of q steps, T_c the magnitudes' sum of a chunk, and any
x that is a partial sum or a product inside it, 2|x| <= |s_c-1| + |s_c| + T_c. A step of p products loses at most
e = (p+1) 2^-bits + 2^-23 (2^-24 where it stores to nearest) of the largest of them, so all J steps lose at most

    e q (|s_1| + ... + |s_C-1| + |s_C|/2 + T/2) (1+e)^J

and what concerns the ends of the range: 2^-149 + e 2^-126 a step, and e times an operand's smallest normal number
times the other, since a subnormal operand's exponent counts as its format's smallest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..bitmodels.accumulate import accumulate
from ..bitmodels.schedule import Schedule
from ..bitmodels.tensor_core import fused_elements
from .band import Band
from .dot import DotWeights, magnitudes

__all__ = ["chained_band", "scheduled_elements"]

CHUNK = 64  # inputs between two partial sums that are looked at
LARGEST = 2.0**120  # of sums so large, some may leave fp32's range on the way
GATHERED, GATHERED_ON_A_GPU = 1 << 22, 1 << 29  # operands of single elements that are held at once
SECOND = 1 + 2.0**-20  # products of two relative errors


def chunk_of(schedule: Schedule) -> int | None:
    """Return after how many inputs a schedule's accumulator holds all of those before; None: it never does."""
    core = schedule.how.core
    if core is None or core.sum_bits is not None or core.form != "fp32":
        return None
    alone = schedule.combine == "chained" and schedule.split_k == schedule.deal == 1
    if not alone or schedule.held or schedule.lanes or schedule.scale_last or schedule.tile_order != "ascending":
        return None
    run = len(schedule.k_order) or 1  # inputs that are added in an order of their own
    if schedule.order != "sequential":
        if schedule.tile is None:
            return None
        run = schedule.tile
    chunk = math.lcm(CHUNK, products_a_step(schedule), run)
    return chunk if chunk <= 4 * CHUNK else None


def products_a_step(schedule: Schedule) -> int:
    """Return how many products a matrix unit adds at once."""
    return schedule.products or schedule.how.step


def chained_band(
    a: torch.Tensor, w: DotWeights, schedule: Schedule, counts: Sequence[int]
) -> tuple[Band, torch.Tensor] | None:
    """Return the Band of a schedule's sums and where it is one, bool [M, N]; None of a schedule that is no plain chain.

    Args:
        a: D [M, K].
        w: [n, N, K], with operands of D and no scale; the i-th matrix is for the next counts[i] rows of a.
        schedule: of these dot products.
    """
    chunk, core, K = chunk_of(schedule), schedule.how.core, a.shape[1]
    if chunk is None or core is None or w.operands is None or w.operands.scale is not None or not K:
        return None
    a64 = a.double()
    s = torch.zeros(a.shape[0], w.values.shape[-2], dtype=torch.float64, device=a.device)
    size = magnitudes(a64, w.sizes, counts, narrow=True).mul_(0.5)
    t = size * 2
    for k in range(0, K, chunk):
        start = 0
        for i, count in enumerate(counts):
            if count:
                mine = s[start : start + count]
                torch.addmm(mine, a64[start : start + count, k : k + chunk], w.values[i, :, k : k + chunk].T, out=mine)
            start += count
        size.add_(s.abs(), alpha=1.0 if k + chunk < K else 0.5)
    products, tile = products_a_step(schedule), schedule.tile or K
    e = ((products + 1) * 2.0**-core.bits + (2.0**-23 if core.store == "rtz" else 2.0**-24)) * SECOND
    steps = -(-K // tile) * -(-tile // products)
    growth = math.exp(steps * e) * SECOND
    smallest = torch.finfo(a.dtype).smallest_normal
    largest = max(smallest, *(float(x.abs().amax()) for x in (a, w.sizes)))
    lost = steps * (2.0**-149 + e * (2.0**-126 + smallest * largest)) * growth
    small = (size < LARGEST) & (t < LARGEST)  # no NaN either
    radius = size.mul_(e * -(-chunk // products) * growth).add_(t, alpha=K * 2.0**-52).add_(lost)
    return Band(s - radius, s + radius), small


def scheduled_elements(
    a: torch.Tensor,
    values: torch.Tensor,
    schedule: Schedule,
    rows: torch.Tensor,
    matrices: torch.Tensor,
    columns: torch.Tensor,
) -> torch.Tensor:
    """Return float64 [p]: what the schedule's accumulators end with, of single elements.

    Args:
        a: D [M, K].
        values: D [n, N, K].
        schedule: a matrix unit's.
        rows, matrices, columns: int64 [p], which elements.
    """
    if schedule.k_order or schedule.order != "sequential":
        return _elements_in_their_order(a, values, schedule, rows, matrices, columns)
    n, N, K = values.shape
    core = schedule.how.core
    assert core is not None
    of_all = values.reshape(n * N, K)
    return fused_elements(a, of_all, rows, matrices * N + columns, core, step=products_a_step(schedule)).double()


def _elements_in_their_order(
    a: torch.Tensor,
    values: torch.Tensor,
    schedule: Schedule,
    rows: torch.Tensor,
    matrices: torch.Tensor,
    columns: torch.Tensor,
) -> torch.Tensor:
    out = torch.empty(len(rows), dtype=torch.float64, device=a.device)
    at_once = max(1, (GATHERED if a.device.type == "cpu" else GATHERED_ON_A_GPU) // a.shape[1])
    for start in range(0, len(rows), at_once):
        some = slice(start, start + at_once)
        x, y = a[rows[some]].unsqueeze(1), values[matrices[some], columns[some]].unsqueeze(1)
        out[some] = accumulate(x, y, schedule).double().flatten()
    return out
