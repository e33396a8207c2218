"""Our layers over 2 and 4 ranks as kernels: `moeracle check moeracle.ranks`, on GPUs with `--device cuda`."""

from __future__ import annotations

from .kernels.ranks.moe_w4a16 import all_reduce, all_to_all, gather_scatter
from .target.load import kernel

# A form, and where its ranks round: each keeps its partial sum in D, or hands on rows.
FORMS = {
    all_reduce: "dtype/add=dtype",
    all_to_all: "rows/own",
    gather_scatter: "dtype/join=sequential/own",
}
for count in (2, 4):
    for form, rounds in FORMS.items():
        kernel(
            "moe_w4a16", name=f"{form.__name__}_{count}", world_size=count, zeros=("sym", "asym"),
            contract=f"grouped,accumulator=fp32,ranks={count}/{rounds}",
        )(form)  # fmt: skip
