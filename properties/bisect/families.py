"""The order of the questions: each set of kernels gets the families that can tell its stages apart, the least first.

A family may rely on what those before it have acquitted: columns that all count before codes that all are read, codes
before scales, one row before many, each slot before their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import isolate_layer as layer
from . import isolate_routing as rows
from . import isolate_sum as sums
from . import isolate_weights as weights
from .isolate import Bench, Probe
from .isolate_ops import bias, router
from .suspects import LM_HEAD, ONE_GEMM, READERS

Family = Callable[[Bench], Iterator[Probe]]

_READING: tuple[Family, ...] = (
    weights.unpacking, weights.scales, weights.zero_points, weights.rounding, rows.experts_apart,
)  # fmt: skip
_FIRST_GEMM: tuple[Family, ...] = (
    sums.silence, sums.leaks, weights.zero_weights, weights.signs, sums.gemm1_columns, sums.races, *_READING,
)  # fmt: skip
_MANY: tuple[Family, ...] = (rows.routing, rows.slots)
FUSED: tuple[Family, ...] = (
    *_FIRST_GEMM, layer.activation, layer.gemm2, layer.whole_row, *_MANY, rows.last_word, rows.many_slots,
)  # fmt: skip
_OF_STORED: dict[str, tuple[Family, ...]] = {
    "h": (*_FIRST_GEMM, *_MANY),
    "a": (layer.activation,),
    "y": (weights.w2_alone, layer.gemm2, rows.experts_apart, *_MANY),
    "out": (layer.whole_row, rows.slots, rows.last_word, rows.many_slots),
}
_OF_ONE_GEMM: tuple[Family, ...] = (*_FIRST_GEMM, router, layer.whole_row, bias, *_MANY)
_OF_READER: tuple[Family, ...] = (weights.zero_weights, weights.signs, *_READING)


def families_for(op: str, stored: str = "") -> tuple[Family, ...]:
    """Return the families to ask, in order.

    Args:
        op: one of PROBED.
        stored: of moe_w4a16, the stored stage that is illegal; "" where only the output is stored.
    """
    if op in READERS:
        return _OF_READER
    if op in (*ONE_GEMM, LM_HEAD):
        return _OF_ONE_GEMM
    return _OF_STORED.get(stored, FUSED)
