"""shared_expert: the expert that every token visits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.weight import Int4Weight

from ..build import layer_inputs
from ..case import Case
from ..data import bell
from ..generator import FORMATS, Stream, integer_bits, to_tensor
from ..infer.found import OF_GEMM
from ..infer.shared import find_shared
from ..inputs import rows_of
from ..optable import GEMM_DATA, Argument, Result
from ..problem import Problem
from ..weights import int4_weight
from .families import Layer

if TYPE_CHECKING:
    from ..infer.drive import Dots
    from ..infer.found import Inference


class SharedExpert(Layer):
    """What the harness knows of shared_expert."""

    name = "shared_expert"
    summary = "out = sigmoid(x . gate_weight) * ((silu(x @ gate^T) * (x @ up^T)) @ w_down^T)."
    arguments = (
        Argument("x", "D [T, H]", "Activations."),
        Argument("w_gate_up", "Int4Weight [2I, H]", "First weights: gate rows, then up rows."),
        Argument("w_down", "Int4Weight [H, I]", "Second weights."),
        Argument("gate_weight", "D [H]", "Weight of the sigmoid gate.", True),
    )
    results = (
        Result("h", "D [T, 2I]", "After GEMM1; a kernel may leave it out.", ("row", "n")),
        Result("a", "D [T, I]", "After silu and product; a kernel may leave it out.", ("row", "n")),
        Result("y", "D [T, H]", "After GEMM2; a kernel may leave it out.", ("row", "n")),
        Result("out", "D [T, H]", "The layer's output.", ("token", "n")),
    )
    dims = ("T", "H", "I", "G")
    weight = True
    data = (*GEMM_DATA, "sweep", "onehot2")
    data_flags = ("gate", "strided")
    starter = "return ref.shared_expert(x, w_gate_up, w_down, gate_weight).to(x.dtype)"
    starter_contract = "megakernel,weight=exact,accumulator=fp32,stores=out,gate=fp32"

    def weight_shapes(self, sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
        return {"w_gate_up": (2 * sizes["I"], sizes["H"]), "w_down": (sizes["H"], sizes["I"])}

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """shared_expert: x [T, H], w_gate_up [2I, H], w_down [H, I], gate_weight [H] or None.

        The weights are those of an MoE layer with one expert and one slot. Where sums are exact, gate weights are
        multiples of 128: with whole x the dot is one too, and its sigmoid 0, 1/2 or 1, whoever computes it.
        """
        x, plan13, plan2, exact = layer_inputs(case, 1)
        gate, fmt = None, FORMATS[case.dtype]
        if "gate" in case.flags:
            stream = Stream(case.seed, "gate")
            bits = (
                integer_bits(stream.below((case.H,), 3) - 1, 7, fmt)
                if exact
                else bell(stream, fmt, (case.H,), -(case.H.bit_length() // 2))
            )
            gate = to_tensor(bits, fmt)
        up, down = int4_weight(case, "w_gate_up", None, plan13), int4_weight(case, "w_down", None, plan2)
        return Problem(case, {"x": rows_of(x, case), "w_gate_up": up, "w_down": down, "gate_weight": gate}, exact=exact)

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----

    inferred = (*OF_GEMM, "stores", "silu", "gate")
    probe_flags = ("gate",)

    def probe_arguments(self, case: Case, x: torch.Tensor, weights: dict[str, Any]) -> dict[str, Any]:
        return {"x": x, **weights, "gate_weight": weights.get("gate_weight")}

    def layer_weights(
        self, dots: Dots, q13: torch.Tensor, s13: torch.Tensor, q2: torch.Tensor, s2: torch.Tensor
    ) -> dict[str, Int4Weight]:
        return {"w_gate_up": dots.pack(q13, s13), "w_down": dots.pack(q2, s2)}

    def find_around_gemm(self, dots: Dots, rules: Contract, opaque: bool, result: Inference) -> Contract:
        return find_shared(dots, rules, opaque, result)

    one_stage = "shared_expert"
