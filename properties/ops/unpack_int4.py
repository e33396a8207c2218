"""unpack_int4: read the codes out of packed words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..bisect.suspects import UNPACK
from ..optable import Argument, Result
from .families import WeightReader

if TYPE_CHECKING:
    from ..bisect.made import Weight


class UnpackInt4(WeightReader):
    """What the harness knows of unpack_int4."""

    name = "unpack_int4"
    summary = "codes[..., n, k] = the 4-bit code of weight (n, k), 0..15."
    arguments = (
        Argument(
            "w",
            "Int4Weight [N, K] or [E, N, K]",
            "The packed weight, in the layout that the kernel declares; with experts where the case has E.",
        ),
    )
    results = (Result("out", "uint8 [..., N, K]", "Codes 0..15.", ("expert", "n", "k")),)
    dims = ("E", "N", "K", "G")
    weight = True
    data = ("normal", "codes16")
    optional = ("E",)
    starter = "return w.codes()"

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----

    returns_codes = True
    last_stage = UNPACK

    def as_weights(self, made: Weight, out: torch.Tensor) -> torch.Tensor:
        columns = made.u.shape[2] // made.s.shape[2]
        z, s = (part[: len(out)].double().repeat_interleave(columns, 2) for part in (made.z, made.s))
        return (out - z) * s
