"""Tall cases: one dimension large and the others small, so that each size is reached at a price that a CPU can pay.

A kernel may be wrong from some size on: a grid that is capped, an index of 16 bits, a loop with one stage too few. The
cases are the largest size of each dimension first, a little above a power of two, then powers of two below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any

from ..cases.case import Case
from ..cases.kernel_like import KernelLike
from ..cases.optable import OPS
from ..cases.record import record_of
from .must_run import SIZES, weight_forms
from .strategies import neighbours

# Of each dimension, in the order in which they are judged. Rows of a kernel that runs on a CPU cost the most.
ON_A_CPU: Mapping[str, tuple[int, ...]] = {
    "T": (1032, 1024, 520, 256, 264),
    "E": (1032, 1024, 520, 256, 72),
    "K": (8232, 8192, 4104, 2048, 1032),
    "H": (8232, 8192, 4104, 2048, 1032),
    "N": (8232, 8192, 4104, 2048, 520),
    "I": (8232, 8192, 4104, 2048, 776),
    "V": (16392, 16384, 8200, 4096, 2056),
    "k": (16, 10),
    "G": (512, 256),
    "B": (256, 128),
}
ON_A_GPU: Mapping[str, tuple[int, ...]] = {
    **ON_A_CPU,
    "T": (65544, 65536, 16392, 4096, 1032),
    "K": (16392, 16384, 8200, 4096, 2056),
    "H": (16392, 16384, 8200, 4096, 2056),
    "N": (32776, 16384, 8200, 4096, 2056),
    "I": (16392, 16384, 8200, 4096, 2056),
    "V": (250008, 131072, 65544, 16384, 8200),
}
NIGHTLY = {**ON_A_CPU, "T": (65544, 16392, 4096, *ON_A_CPU["T"]), "E": (2056, *ON_A_CPU["E"])}
SMALL = {"T": 3, "E": 4, "k": 2, "N": 24, "K": 64, "H": 64, "I": 48, "G": -1, "B": 16, "V": 24, "g": 1, "m": 1}
DATA = ("normal", "integers", "outliers", "wide")


def tall_cases(kernel: KernelLike, profile: str, seed: int = 0) -> list[Case]:
    """Return the tall cases that a kernel takes: the largest of each dimension, then the next of each, and so on.

    Args:
        kernel: what it declares decides layouts, dtypes and sizes; those that it declines are rounded up, or left out.
        profile: "smoke" has none; "nightly" goes further on a CPU.
        seed: of the data.
    """
    if profile == "smoke":
        return []
    op, forms = OPS[kernel.op], weight_forms(kernel)
    dtypes = [d for d in op.dtypes if d in kernel.dtypes] if op.dtypes != ("-",) else ["-"]
    if not forms or not dtypes:
        return []
    sizes = ON_A_GPU if kernel.device != "cpu" else NIGHTLY if profile == "nightly" else ON_A_CPU
    form, dtype, data = cycle(forms), cycle(dtypes), cycle([name for name in DATA if name in op.data] or list(op.data))
    found: dict[Case, None] = {}
    for place in range(max(map(len, sizes.values()))):
        for letter in op.dims:
            if place >= len(sizes.get(letter, ())):
                continue
            layout, zero = next(form)
            fields = {"dtype": next(dtype), "data": next(data), "layout": layout, "zero": zero, "seed": seed + place}
            for wanted in _with(kernel.op, letter, sizes[letter][place], fields):
                taken = next((near for near in neighbours(wanted, few=False) if kernel.why_not(near) is None), None)
                if taken is not None:
                    found[taken] = None
                    break
    return list(found)


def _with(op: str, letter: str, size: int, fields: dict[str, Any]) -> Iterator[Case]:
    """Yield cases in which one dimension has at least this size, the plainest first."""
    record, plain = record_of(op), fields.get("routing", OPS[op].routings[0])
    tokens = ({**SMALL, "T": 4}, {**SMALL, "T": 1}, {**SMALL, "T": 16})  # for kernels that take such numbers alone
    wanted = [(small, plain) for small in (SMALL, {**SMALL, "k": 1}, *SIZES, *tokens)]
    wanted += [(SMALL, routing) for routing in OPS[op].routings if routing != plain]
    for small, routing in wanted:
        dims: dict[str, Any] = {d: {**SMALL, **small, **OPS[op].plain_sizes}[d] for d in record.dims}
        dims[letter] = size
        if letter == "k":
            dims["E"] = max(dims["E"], size)
        if letter == "G":  # two groups
            dims |= {d: 2 * size for d in "KHI" if d in dims}
        try:
            yield Case.of(op, **dims, **{**fields, "routing": routing})
        except ValueError:  # these sizes do not go together
            continue
