"""shared_expert: the expert that every token visits."""

from __future__ import annotations

from typing import Any

from moeracle.ref.contract import Contract

from ..build import layer_inputs
from ..case import Case
from ..cases.changes import scaled_weight
from ..data import bell
from ..generator import FORMATS, Stream, integer_bits, to_tensor
from ..inputs import rows_of
from ..laws.batch import law_permuting_tokens, law_splitting_batches
from ..laws.scaling import law_scaling_by_powers_of_two
from ..laws.shared import law_gates_of_both_signs_add_up, law_no_gate_weight_halves
from ..laws.weights import law_layouts_agree
from ..optable import GEMM_DATA, Argument, Result
from ..problem import Problem
from ..weights import int4_weight
from .families import Layer


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

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_scaling_by_powers_of_two,
        law_no_gate_weight_halves,
        law_gates_of_both_signs_add_up,
        law_layouts_agree,
    )

    token_args = ("x",)

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        if problem.case.dtype == "fp16":
            return []  # y may be subnormal, where rounding does not scale
        return [("w_down's scales", {"w_down": scaled_weight(problem.args["w_down"])})]

    # ---- Inference, bisection and the bench ----
