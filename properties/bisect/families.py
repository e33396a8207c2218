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
OF_STORED: dict[str, tuple[Family, ...]] = {
    "h": (*_FIRST_GEMM, *_MANY),
    "a": (layer.activation,),
    "y": (weights.w2_alone, layer.gemm2, rows.experts_apart, *_MANY),
    "out": (layer.whole_row, rows.slots, rows.last_word, rows.many_slots),
}
OF_ONE_GEMM: tuple[Family, ...] = (*_FIRST_GEMM, router, layer.whole_row, bias, *_MANY)
OF_READER: tuple[Family, ...] = (weights.zero_weights, weights.signs, *_READING)
