"""unpack_int4: read the codes out of packed words."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from moeracle.ref.bounds.band import exactly
from moeracle.ref.contracts.contract import Contract

from ..bisect.made import Weight
from ..bisect.suspects import OTHER_STAGES, UNPACK
from ..cases.case import Problem
from ..cases.optable import Result
from ..cases.record import Piece, Tensors
from ..compare.floats import all_rows, pieces
from ..laws.weights import law_an_expert_alone, law_inverting_words, law_layouts_agree, law_packing_again
from .families import WeightReader


class UnpackInt4(WeightReader):
    """What the harness knows of unpack_int4."""

    name = "unpack_int4"
    summary = "codes[..., n, k] = the 4-bit code of weight (n, k), 0..15."
    results = (Result("out", "uint8 [..., N, K]", "Codes 0..15.", ("expert", "n", "k")),)
    data = ("normal", "codes16")
    starter = "return w.codes()"

    # ---- Judging: shapes, bands, references, derivations ----

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        codes = problem.args["w"].codes()
        codes = codes.reshape(-1, codes.shape[-1])
        for rows in pieces(all_rows(codes)):
            yield "out", rows, 0, exactly(codes[rows])

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        return {"out": problem.args["w"].codes()}

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        return {"out": problem.args["w"].codes()}

    # ---- Laws and diagnosis ----

    laws = (
        law_packing_again,
        law_inverting_words,
        law_an_expert_alone,
        law_layouts_agree,
    )

    # ---- Inference, bisection and the bench ----

    returns_codes = True
    last_stage = UNPACK

    def stage_shown(self, stage: str, stores: bool) -> str:
        """It reads codes, and neither zero points nor scales."""
        return stage if stage in OTHER_STAGES else UNPACK

    def as_weights(self, made: Weight, out: torch.Tensor) -> torch.Tensor:
        columns = made.u.shape[2] // made.s.shape[2]
        z, s = (part[: len(out)].double().repeat_interleave(columns, 2) for part in (made.z, made.s))
        return (out - z) * s
