"""Families of ops: what the ops of one kind have in common, so that each record says only what is its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from moeracle.ref.bounds.band import Band, exactly
from moeracle.ref.bounds.moe_w4a16 import ExpertWeights, batches
from moeracle.ref.contracts.contract import JUDGED, Contract
from moeracle.ref.rounding import round_to
from moeracle.ref.weights.weight import Int4Weight

from ..bisect.families import OF_ONE_GEMM, OF_READER, Family
from ..bisect.isolate import Bench
from ..bisect.isolate_ops import OneOpBench
from ..bisect.made import Layer as MadeLayer
from ..bisect.made import Weight
from ..bisect.suspects import GEMM1, GEMM2, ROUTING, SCALE
from ..cases.build import gemm_weight_plan
from ..cases.case import Case, Problem
from ..cases.changes import multiplied, topk_ids_of, with_args, with_larger_bias, with_larger_scales
from ..cases.data import PLAIN, power_scales
from ..cases.optable import Argument
from ..cases.record import Agreement, OpRecord, Rows, Tensors
from ..cases.weights import WeightPlan, int4_weight
from ..common.drift import Errors
from ..common.generator import FORMATS
from ..compare.floats import ROWS_AT_ONCE, ROWS_ON_A_GPU
from ..compare.other_expert import slots_of_other_experts
from ..compare.statistics import errors_of_gemm, errors_of_silu
from ..infer.drive import Dots
from ..infer.fit import int4_sums
from ..infer.found import OF_GEMM

IN_BANDS = "its floats are judged by bands"
IN_PARTS = "its results are judged part by part, most of them exactly"

# Arguments that several ops have.
LOGITS = Argument("logits", "D [T, E]", "Router logits; D may be fp32 too.")
RENORMALIZE = Argument(
    "renormalize", "bool", "Whether the chosen weights are divided by their sum.", flag="renorm", plain=False
)
TOPK_IDS = Argument(
    "topk_ids",
    "int32 [T, k]",
    "The chosen experts of each token, 0..E-1; -1 marks a slot that does nothing.",
    within=("-1", "E-1"),
)
WEIGHT_OF_EXPERTS = Argument(
    "w",
    "Int4Weight [E, N, K]",
    "One weight an expert, in the layout that the kernel declares; E counts the experts of this rank.",
)


def rounded(results: Tensors, case: Case) -> Tensors:
    """Round a reference's results once to the case's dtype."""
    D = case.torch_dtype
    assert D is not None
    return {name: round_to(t, D) if t.dtype == torch.float64 else t.to(D) for name, t in results.items()}


class TupleOp(OpRecord):
    """An op that returns a tuple of tensors, most of them exact: routing, dispatch, the quantizer."""

    # ---- Judging: shapes, bands, references, derivations ----

    without: Mapping[str, str] = {"bands": IN_PARTS}
    no_rounding_to_choose = True

    def named(self, parts: Iterable[torch.Tensor]) -> Tensors:
        """Name the tensors of a tuple."""
        return dict(zip((result.name for result in self.results), parts, strict=True))

    def by_name(self, output: Any) -> dict[str, Any] | None:
        if not isinstance(output, (tuple, list)) or len(output) != len(self.results):
            return None
        return self.named(output)

    def as_output(self, results: Tensors) -> Any:
        return tuple(results[result.name] for result in self.results)


class Router(TupleOp):
    """A router: weights and ids [T, k] of logits [T, E]."""

    dtypes = ("bf16", "fp16", "fp32")
    data = ("normal", "ties", "nonfinite", "outliers", "wide")

    # ---- Judging: shapes, bands, references, derivations ----

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        shape = problem.args["logits"].shape[0], problem.args["top_k"]
        return {"weights": shape, "ids": shape}

    def compared(self, output: Any) -> torch.Tensor:
        weights: torch.Tensor = output[0]
        return weights

    def cost(self, case: Case) -> int:
        return max(1, case.R) * case.sizes["E"]

    # ---- Laws and diagnosis ----

    token_args = ("logits",)

    def token_axes(self, value: torch.Tensor) -> tuple[str, ...]:
        return ("token", "slot")[: value.ndim]

    def clear(self, problem: Problem, expected: Tensors, ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which rows [T] leave no choice, and how far two legal kernels' weights may be apart there."""
        raise NotImplementedError(f"{self.name}: clear")

    def agreement(self, problem: Problem, got: Tensors, expected: Tensors, *, ties: bool) -> Iterator[Agreement]:
        """Ids of rows that leave no choice, and their weights within two kernels' errors."""
        (rows, apart), axes = self.clear(problem, expected, ties), ("token", "slot")
        yield Agreement("ids", got["ids"] == expected["ids"], got["ids"], expected["ids"], axes, rows[:, None])
        close = (got["weights"].double() - expected["weights"].double()).abs() <= apart
        yield Agreement("weights", close, got["weights"], expected["weights"], axes, rows[:, None])

    # ---- Inference, bisection and the bench ----

    nothing_inferred = "its weights are fp32 within a bound that no contract changes; `moeracle check` judges them"
    one_stage = ROUTING


class FloatOp(OpRecord):
    """An op that returns one tensor of floats."""

    # ---- Judging: shapes, bands, references, derivations ----

    without: Mapping[str, str] = {"judge_parts": IN_BANDS}

    def by_name(self, output: Any) -> dict[str, Any] | None:
        return {"out": output} if isinstance(output, torch.Tensor) else None

    def as_output(self, results: Tensors) -> Any:
        return results["out"]

    def compared(self, output: Any) -> torch.Tensor:
        out: torch.Tensor = output["out"] if isinstance(output, dict) else output
        return out


class WeightReader(FloatOp):
    """An op that reads packed weights out."""

    arguments = (
        Argument(
            "w",
            "Int4Weight [N, K] or [E, N, K]",
            "The packed weight, in the layout that the kernel declares; with experts where the case has E.",
        ),
    )
    dims = ("E", "N", "K", "G")
    weight = True
    optional = ("E",)

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """unpack_int4, dequantize_int4: w, with experts if the case has E."""
        fmt = FORMATS[case.dtype]
        variant = 1 + case.seed % 2 if case.data == "subnormal" else PLAIN  # only scales can be subnormal here
        if case.data == "integers":
            plan = WeightPlan(lambda shape, stream: power_scales(stream, fmt, shape, 0, 2))
        else:
            plan = gemm_weight_plan(case, case.K, None, variant)
        return Problem(case, {"w": int4_weight(case, "w", case.sizes.get("E"), plan)}, exact=True)

    # ---- Laws and diagnosis ----

    elementwise = True

    def token_axes(self, value: torch.Tensor) -> tuple[str, ...]:
        return ("expert", "n", "k")[-value.ndim :]

    # ---- Judging: shapes, bands, references, derivations ----

    no_rounding_to_choose = True

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {"out": tuple(problem.args["w"].shape)}

    def rows(self, problem: Problem, stage: str) -> Rows:
        w = problem.args["w"]
        experts = None if w.E is None else torch.arange(w.E).repeat_interleave(w.N)
        return Rows("row", experts, w.G if w.G < w.K else 0)

    def place(self, problem: Problem, stage: str, row: int, column: int) -> str:
        w = problem.args["w"]
        expert = "" if w.E is None else f"expert {row // w.N}, "
        return f"{expert}n {row % w.N}, k {column}"

    def cost(self, case: Case) -> int:
        return case.sizes["N"] * case.sizes["K"] * case.sizes.get("E", 1)

    # ---- Inference, bisection and the bench ----

    step_of_layer = True
    probe_bench: type[Bench] = OneOpBench
    last_stage: str = SCALE
    last_words = "what is left of reading a weight is named"

    def questions(self, stored: str) -> tuple[Family, ...]:
        return OF_READER

    def made_problem(self, case: Case, layer: MadeLayer, w: Int4Weight) -> Problem:
        return Problem(case, {"w": w}, exact=True)

    def made_rows(self, problem: Problem, layer: MadeLayer, out: torch.Tensor) -> torch.Tensor:
        """x times what was read."""
        weights = self.as_weights(layer.w13, out if "E" in problem.case.sizes else out[None])
        answers = [weights[layer.ids[t].clamp(min=0)] @ layer.x[t].double() for t in range(len(layer.x))]
        return torch.cat(answers)

    def as_weights(self, made: Weight, out: torch.Tensor) -> torch.Tensor:
        """Return what was read as weights [E, N, K], float64."""
        return out

    def flops(self, case: Case, rows: int) -> int:
        return 0


class OneGemm(FloatOp):
    """An op that is one matrix product."""

    # ---- Laws and diagnosis ----

    sums_products = True
    has_exact_data = True
    token_args = ("x",)

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        if contract.rounds_sums and problem.case.dtype == "fp16":
            return []  # what is rounded on the way may be subnormal, where rounding does not scale
        args = problem.args
        bias: dict[str, Any] = {} if args.get("bias") is None else {"bias": multiplied(args["bias"])}
        w = args.get("w")
        bias |= {"w": with_larger_bias(w)} if isinstance(w, Int4Weight) and w.bias is not None else {}
        return [("x", {"x": multiplied(args["x"]), **bias}), ("the scales", {**bias, **self.scaled_scales(problem)})]

    def scaled_scales(self, problem: Problem) -> dict[str, Any]:
        """Return the weight argument whose scales are FACTOR times as large."""
        return {"w": with_larger_scales(problem.args["w"])}

    # ---- Judging: shapes, bands, references, derivations ----

    sums: Mapping[str, str] = {"schedule": "K"}

    def errors(self, case: Case, rules: Contract, stage: str) -> Errors | None:
        return errors_of_gemm(case, case.K, rules)

    def operand_rows(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows [R, K] that weights are multiplied by, and the expert [R] of each."""
        x = problem.args["x"]
        return x, torch.zeros(len(x), dtype=torch.int64)

    # ---- Inference, bisection and the bench ----

    inferred: tuple[str, ...] = OF_GEMM
    probe_bench: type[Bench] = OneOpBench
    last_stage = GEMM1

    def predicted_sums(
        self, dots: Dots, x: torch.Tensor, q: torch.Tensor, s: torch.Tensor, rules: Contract
    ) -> torch.Tensor:
        return int4_sums(dots, x, q, s, rules)

    def questions(self, stored: str) -> tuple[Family, ...]:
        return OF_ONE_GEMM

    def stage_shown(self, stage: str, stores: bool) -> str:
        """What it returns is what it stores, and without experts nothing is routed."""
        unrouted = stage == ROUTING and "E" not in self.dims
        return GEMM1 if stores or unrouted or stage == GEMM2 else stage


class RoutedGemm(OneGemm):
    """A matrix product whose rows belong to experts."""

    # ---- Laws and diagnosis ----

    def take_tokens(self, problem: Problem, index: torch.Tensor) -> Problem:
        weights, ids = problem.args.get("topk_weights"), topk_ids_of(problem)[index]
        x = self.tokens_of(problem)[index]
        return self.route_again(problem, x, ids, None if weights is None else weights[index])

    def with_ids(self, problem: Problem, ids: torch.Tensor, weights: dict[str, Int4Weight]) -> Problem:
        changed = with_args(problem, **weights)
        return self.route_again(changed, self.tokens_of(problem), ids, problem.args.get("topk_weights"))

    def tokens_of(self, problem: Problem) -> torch.Tensor:
        """Return x [T, K] in token order."""
        raise NotImplementedError(f"{self.name}: tokens_of")

    def route_again(
        self, problem: Problem, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor | None, **sizes: int
    ) -> Problem:
        """Return the problem made again from tokens and their experts.

        Args:
            problem: gives the weights and what else stays.
            x: [T, K] in token order.  ids: int32 [T, k].  weights: [T, k], or None where the case multiplies none in.
            sizes: other dimensions to change: B for another block size.
        """
        raise NotImplementedError(f"{self.name}: route_again")

    # ---- Judging: shapes, bands, references, derivations ----

    def routed_bands(
        self,
        problem: Problem,
        spans: Iterable[tuple[int, torch.Tensor]],
        top_k: int,
        rules: Contract,
        exact: bool,
        weight: torch.Tensor | None = None,
    ) -> Iterator[tuple[torch.Tensor, Band]]:
        """Yield (output rows, their Band) where row r multiplies x[r // top_k] and its expert's weight.

        Args:
            spans: (expert, its rows).
            weight: float64 [R, 1], router weights that enter before the store, or None.
        """
        x, weights = problem.args["x"], ExpertWeights(problem.args["w"], rules, problem.args["x"].dtype)
        at_once = ROWS_AT_ONCE if x.device.type == "cpu" else ROWS_ON_A_GPU
        for batch in batches(list(spans), at_once):
            rows = torch.cat([of_e for _, of_e in batch])
            yield rows, weights.dots(batch, exactly(x[rows // top_k]), exact, None if weight is None else weight[rows])

    def errors(self, case: Case, rules: Contract, stage: str) -> Errors | None:
        if rules.router_weight == "gemm2_dtype" and "weight" in case.flags:
            return None  # the product of a value that was rounded to D
        return super().errors(case, rules, stage)

    def other_experts(self, problem: Problem, stage: str = "out") -> torch.Tensor | None:
        ids = problem.truth.get("topk_ids")
        return None if ids is None else slots_of_other_experts(ids, problem.truth.get("expert_map"))

    def operand_rows(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mapping = problem.truth["topk_ids"].long(), problem.truth.get("expert_map")
        experts = ids if mapping is None else torch.where(ids < 0, -1, mapping.long()[ids.clamp(min=0)])
        return problem.args["x"].repeat_interleave(ids.shape[1], 0), experts.flatten()

    # ---- Inference, bisection and the bench ----

    step_of_layer = True
    timed_as = ("gemm1", "gemm2")
    timed_by_default = True

    def probe_weights(self, dots: Dots, q: torch.Tensor, s: torch.Tensor) -> dict[str, Any]:
        return {"w": dots.pack(q[None], s[None])}


class Layer(FloatOp):
    """An op of two matrix products with an activation between them, whose stages a kernel may store."""

    layer = True

    def implied_size(self, letter: str, sizes: dict[str, int]) -> int | None:
        return {"K": sizes["H"], "N": 2 * sizes["I"]}.get(letter)

    # ---- Laws and diagnosis ----

    sums_products = True
    has_exact_data = True

    def exact_under(self, problem: Problem, rules: Contract) -> Problem:
        """Gates are multiples of 128: silu and gelu of them are exact, a limit or a square is not."""
        return problem if rules.activation.exact_on_whole_gates else replace(problem, exact=False)

    # ---- Judging: shapes, bands, references, derivations ----

    def by_name(self, output: Any) -> dict[str, Any] | None:
        return output if isinstance(output, dict) else super().by_name(output)

    def as_output(self, results: Tensors) -> Any:
        return dict(results)

    def errors(self, case: Case, rules: Contract, stage: str) -> Errors | None:
        if stage == "a":
            return errors_of_silu(rules)
        if stage == "y":
            return None if rules.router_weight == "gemm2_dtype" else errors_of_gemm(case, case.I, rules)
        return errors_of_gemm(case, case.K, rules)

    def open_zero_sign(self, case: Case, stage: str) -> bool:
        return stage == "a"

    def cost(self, case: Case) -> int:
        return max(1, case.R) * 3 * case.sizes["H"] * case.sizes["I"]

    # ---- Inference, bisection and the bench ----

    def probe_weights(self, dots: Dots, q: torch.Tensor, s: torch.Tensor) -> dict[str, Any]:
        H, I = dots.site.case.H, dots.site.case.I
        groups = 1 if dots.site.case.G == -1 else I // dots.G
        return self.layer_weights(dots, q, s, torch.zeros(H, I), torch.ones(H, groups))

    def predicted_sums(
        self, dots: Dots, x: torch.Tensor, q: torch.Tensor, s: torch.Tensor, rules: Contract
    ) -> torch.Tensor:
        return int4_sums(dots, x, q, s, rules)


def stored_before(given: Tensors) -> Tensors:
    """Return the stages of a layer that are the input of a later one."""
    return {name: given[name] for name in JUDGED[:-1] if name in given}
