"""shared_expert: the expert that every token visits."""

from __future__ import annotations

from ..optable import GEMM_DATA, Argument, Result
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

    def weight_shapes(self, sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
        return {"w_gate_up": (2 * sizes["I"], sizes["H"]), "w_down": (sizes["H"], sizes["I"])}

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

    # ---- Inference, bisection and the bench ----
