"""shared_expert: the expert that every token visits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch

from moeracle.ref.bounds.shared_expert import shared_expert_bands, tiny_dot_band
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.ops.int4_linear import int4_linear
from moeracle.ref.ops.shared_expert import fused_silu_mul, shared_expert
from moeracle.ref.rounding import round_to
from moeracle.ref.weights.weight import Int4Weight

from ..cases.build import layer_inputs
from ..cases.case import Case, Problem
from ..cases.changes import with_larger_scales
from ..cases.data import bell
from ..cases.inputs import rows_of
from ..cases.optable import GEMM_DATA, SCALES, Argument, Result
from ..cases.record import Piece, Tensors
from ..cases.weights import int4_weight
from ..common.drift import Errors
from ..common.generator import FORMATS, Stream, integer_bits, to_tensor
from ..compare.floats import all_rows
from ..compare.statistics import errors_of_gemm
from ..golden.derive import activated, int4_sums, rows_of_floats, store, tiny_sums, to_fp32
from ..golden.rational import as_tensor
from ..golden.transcendental import sigmoid_fp32
from ..infer.drive import Dots
from ..infer.found import OF_GEMM, Inference
from ..infer.shared import find_shared
from ..laws.batch import law_batch_invariance, law_permuting_tokens, law_splitting_batches
from ..laws.scaling import law_scaling_by_powers_of_two
from ..laws.shared import law_gates_of_both_signs_add_up, law_no_gate_weight_halves
from ..laws.weights import law_layouts_agree
from .families import Layer, rounded, stored_before


class SharedExpert(Layer):
    """What the harness knows of shared_expert."""

    name = "shared_expert"
    summary = "out = sigmoid(x . gate_weight) * ((silu(x @ gate^T) * (x @ up^T)) @ w_down^T)."
    arguments = (
        Argument("x", "D [T, H]", "Activations."),
        Argument("w_gate_up", "Int4Weight [2I, H]", "First weights: gate rows, then up rows."),
        Argument("w_down", "Int4Weight [H, I]", "Second weights."),
        Argument("gate_weight", "D [H]", "Weight of the sigmoid gate.", True, flag="gate"),
    )
    results = (
        Result("h", "D [T, 2I]", "After GEMM1; a kernel may leave it out.", ("token", "n")),
        Result("a", "D [T, I]", "After silu and product; a kernel may leave it out.", ("token", "n")),
        Result("y", "D [T, H]", "After GEMM2; a kernel may leave it out.", ("token", "n")),
        Result("out", "D [T, H]", "The layer's output.", ("token", "n")),
    )
    dims = ("T", "H", "I", "G")
    weight = True
    data = (*GEMM_DATA, "sweep", "onehot2")
    data_flags = ("gate", "strided", *SCALES)
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

    sums: Mapping[str, str] = {"schedule": "H", "gemm2_schedule": "I", "gate_schedule": "H"}

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        T, I, H = problem.args["x"].shape[0], problem.args["w_down"].K, problem.args["w_down"].N
        return {"h": (T, 2 * I), "a": (T, I), "y": (T, H), "out": (T, H)}

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        """Each stage from the one before; "dot" is x·g in fp32, which a recording may hold."""
        x, up, down, gate = problem.args.values()
        for stage, rows, band in shared_expert_bands(x, up, down, gate, rules, given=stored_before(given), exact=exact):
            yield stage, rows, 0, band
        if "dot" in given:
            of_gate = replace(
                rules.unscheduled, weight="cast", parts=None, deterministic=True, schedule=rules.gate_schedule
            )
            yield "dot", all_rows(x), 0, tiny_dot_band(x, gate, of_gate)

    def errors(self, case: Case, rules: Contract, stage: str) -> Errors | None:
        if stage == "out":
            return None if "gate" in case.flags else errors_of_gemm(case, case.I, rules)
        return super().errors(case, rules, stage)

    def open_zero_sign(self, case: Case, stage: str) -> bool:
        return super().open_zero_sign(case, stage) or (stage == "out" and "gate" in case.flags)

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        """In fp32 nothing is rounded on the way, as tests of layers compare; in fp64 each stage is, as kernels do."""
        x, up, down, gate = problem.args.values()
        if dtype == torch.float32:
            return rounded({"out": shared_expert(x, up, down, gate)}, problem.case)
        h = round_to(int4_linear(x, up, dtype=dtype), x.dtype)
        halves = h.chunk(2, dim=1)
        a = fused_silu_mul(halves[0], halves[1])
        y = round_to(int4_linear(a, down, dtype=dtype), x.dtype)
        return {"h": h, "a": a, "y": y, "out": shared_expert(x, up, down, gate, rounding="fused", dtype=dtype)}

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Each stage from the one before as it is stored; out is y times the gate, rounded where the contract says."""
        x, w_gate_up, w_down, gate_weight = problem.args.values()
        dtype, keep, (T, H) = x.dtype, store(contract, x.dtype, "y"), x.shape
        h_rounding, wide = (store(contract, dtype, "h"), dtype) if "h" in contract.stores else (to_fp32, torch.float32)
        sums = int4_sums(x, w_gate_up, contract, dtype)
        h = as_tensor(rows_of_floats(sums, h_rounding), 2 * w_down.K, wide)
        a = activated(h, contract, dtype, "a" in contract.stores, "a")
        y = int4_sums(a, w_down, contract, dtype) if T else []
        stages = {"h": h.to(dtype), "a": a.to(dtype), "y": as_tensor(rows_of_floats(y, keep), H, dtype)}
        if gate_weight is None:
            stages["out"] = stages["y"]
        else:
            gated = [_gated(row, s, contract, dtype) for row, s in zip(y, tiny_sums(x, gate_weight), strict=True)]
            stages["out"] = as_tensor(gated, H, dtype)
        return {name: stage for name, stage in stages.items() if name in contract.stores}

    # ---- Laws and diagnosis ----

    laws = (
        law_permuting_tokens,
        law_splitting_batches,
        law_batch_invariance,
        law_scaling_by_powers_of_two,
        law_no_gate_weight_halves,
        law_gates_of_both_signs_add_up,
        law_layouts_agree,
    )

    token_args = ("x",)

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        if problem.case.dtype == "fp16":
            return []  # y may be subnormal, where rounding does not scale
        return [("w_down's scales", {"w_down": with_larger_scales(problem.args["w_down"])})]

    # ---- Inference, bisection and the bench ----

    inferred = (*OF_GEMM, "stores", "silu", "activation", "gate")
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


def _gated(row: list[Fraction], dot: float, contract: Contract, dtype: torch.dtype) -> list[float]:
    """Return one token's stored output: D(y) times D(sigmoid) in fp32, or y, as it is stored, times sigmoid."""
    kept, keep = store(contract, dtype, "y"), store(contract, dtype)
    s = sigmoid_fp32(kept(dot) if contract.gate == "unfused" else dot)
    if contract.gate == "fp32":
        y = [Fraction(kept(v)) for v in row] if "y" in contract.stores else row
        return [keep(to_fp32(v * Fraction(s))) for v in y]
    return [keep(to_fp32(Fraction(kept(v)) * Fraction(kept(s)))) for v in row]
