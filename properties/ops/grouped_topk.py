"""grouped_topk: the router with groups of experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.ops.grouped_topk import SCORING, grouped_topk
from moeracle.ref.weights.weight import Int4Weight

from ..cases.case import Case, Problem
from ..cases.changes import with_args
from ..cases.optable import Argument, Result
from ..cases.record import Tensors
from ..common.generator import FORMATS, Stream, integer_bits, to_tensor
from ..common.verdict import Verdict
from ..compare.grouped_topk import Choice, choice_of, clear_rows, wrong_ids
from ..compare.index_parts import tally_mask
from ..compare.topk import chosen_weights, tally_weights
from ..golden.derive import to_fp32
from ..golden.literal_data import Literal, fp32, int32
from ..golden.rational import as_tensor
from ..golden.transcendental import sigmoid_fp32, softmax_fp32
from ..laws.batch import law_permuting_tokens, law_splitting_batches
from ..laws.bench import Bench, law
from ..laws.experts import law_relabelling_experts
from .families import LOGITS, RENORMALIZE, Router
from .topk_softmax import router_logits

FACTOR = 2.5  # DeepSeek-V3's
GROUPS, KEPT = 4, 2  # the plainest numbers of groups, and of groups kept


@law
def law_scaling_weights(bench: Bench, case: Case) -> None:
    """Twice the routed scaling factor doubles every weight and changes no id.

    Every kernel, bit for bit: a power of two is exact, away from numbers that flush to zero.
    """
    problem, results = bench.start()
    on = "twice the routed scaling factor"
    twice = with_args(problem, routed_scaling_factor=2 * problem.args["routed_scaling_factor"])
    got, axes = bench.run(twice, on), ("token", "slot")
    bench.equal("ids", got["ids"], results["ids"], axes, None, on)
    weights = results["weights"]
    bench.equal("weights", got["weights"], weights * 2, axes, (weights == 0) | (weights.abs() > 2.0**-120), on)


class GroupedTopk(Router):
    """What the harness knows of grouped_topk."""

    name = "grouped_topk"
    summary = (
        "s = softmax or sigmoid of each row in fp32, c = s + bias; of the topk_group best groups (by their largest c, "
        "or under a bias the sum of their two largest) the k largest c, ties to the lowest id, in descending order; "
        "weights s, divided by their sum under renormalize, times the routed scaling factor."
    )
    arguments = (
        LOGITS,
        Argument(
            "correction_bias", "float32 [E]", "Finite; added for the choice alone, or None.", optional=True, flag="bias"
        ),
        Argument("num_groups", "int", "Groups of equally many consecutive experts; divides E.", size="g"),
        Argument("topk_group", "int", "Groups kept, 1..num_groups.", size="m"),
        Argument("top_k", "int", "Experts a token, at most those of the groups kept.", size="k"),
        Argument("scoring", "str", '"softmax" over all experts, or "sigmoid".', flag="sigmoid", plain="softmax"),
        RENORMALIZE,
        Argument(
            "routed_scaling_factor", "float", "Finite; multiplies the weights once, last.", flag="scaled", plain=1.0
        ),
    )
    results = (
        Result("weights", "float32 [T, k]", "Router weights, in the order of the choice.", ("token", "slot")),
        Result("ids", "int32 [T, k]", "The chosen experts, c descending.", ("token", "slot")),
    )
    dims = ("T", "E", "k", "g", "m")
    plain_sizes: Mapping[str, int] = {"E": 12, "g": GROUPS, "m": KEPT}
    also_run = (
        {"E": 64, "k": 6, "g": 8, "m": 3, "T": 33, "flags": ("renorm", "sigmoid", "bias", "scaled")},
        {"E": 64, "k": 6, "g": 8, "m": 3, "T": 33, "flags": ("bias",), "data": "outliers"},
        {"k": 6, "flags": ("bias",)},  # every kept expert, some of negative choice score
        {"k": 6, "flags": ("bias", "sigmoid"), "data": "nonfinite"},
        {"k": 4, "T": 33, "flags": ("bias",), "data": "ties"},
    )
    routing_flags = ("renorm", "sigmoid", "bias", "scaled")
    starter = (
        "return ref.grouped_topk(\n"
        "        logits, top_k, num_expert_group=num_groups, topk_group=topk_group, renormalize=renormalize,\n"
        "        scoring=scoring, bias=correction_bias, routed_scaling_factor=routed_scaling_factor,\n"
        "    )"
    )

    def sizes_of(self, letter: str, sizes: dict[str, int]) -> tuple[int, ...]:
        """g, the groups, divides E; m, the groups kept, leaves k experts."""
        E, k = sizes["E"], sizes["k"]
        if letter == "g":
            return tuple(sorted((g for g in range(1, E + 1) if E % g == 0), key=lambda g: abs(g - GROUPS)))
        if letter == "m":
            least = -(-k * sizes["g"] // E)
            return tuple(sorted(range(least, sizes["g"] + 1), key=lambda m: abs(m - KEPT)))
        return ()

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """grouped_topk: logits [T, E]; a bias of multiples of 2^-9 within ±1/16, of four values where logits tie."""
        bias = None
        if "bias" in case.flags:
            below, exponent = (4, -2) if case.data == "ties" else (65, -9)
            values = Stream(case.seed, "bias").below((case.E,), below) - below // 2
            bias = to_tensor(integer_bits(values, exponent, FORMATS["fp32"]), FORMATS["fp32"])
        args = {
            "logits": router_logits(case),
            "correction_bias": bias,
            "num_groups": case.g,
            "topk_group": case.m,
            "top_k": case.k,
            "scoring": SCORING["sigmoid" in case.flags],
            "renormalize": "renorm" in case.flags,
            "routed_scaling_factor": FACTOR if "scaled" in case.flags else 1.0,
        }
        return Problem(case, args)

    # ---- Judging: shapes, bands, references, derivations ----

    def choice(self, problem: Problem) -> Choice:
        """Return what is known of the problem's choice scores."""
        a = problem.args
        return choice_of(a["logits"], a["correction_bias"], a["num_groups"], a["scoring"])

    def weights_of(self, problem: Problem, choice: Choice, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights of the experts that a kernel chose, and how far a legal kernel may be from them."""
        safe = ids.long().clamp(0, problem.args["logits"].shape[1] - 1)
        expected, spread = chosen_weights(choice.scores, safe, problem.args["renormalize"])
        factor = problem.args["routed_scaling_factor"]
        expected, spread = expected * factor, spread * abs(factor)
        return expected, spread + expected.abs() * 2.0**-23 + 2.0**-149  # the factor, and its product

    def judge_parts(self, problem: Problem, parts: list[torch.Tensor], verdict: Verdict) -> None:
        """k distinct experts of at most topk_group groups, none surely better left behind, and the weights of those."""
        weights, ids = parts[0].double(), parts[1].long()
        choice = self.choice(problem)
        wrong = wrong_ids(choice, ids, problem.args["topk_group"])

        def tell(t: int, j: int) -> str:
            legal = self.reference(problem, torch.float32)["ids"]
            return f"got {int(ids[t, j])}, legal {int(legal[t, j])}; all of the token's: {legal[t].tolist()}"

        tally_mask(verdict, self.result("ids"), wrong, "bits", tell)
        tally_weights(verdict, self.result("weights"), weights, *self.weights_of(problem, choice, ids))

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        logits, bias, num_groups, topk_group, k, scoring, renormalize, factor = problem.args.values()
        parts = grouped_topk(
            logits,
            k,
            num_expert_group=num_groups,
            topk_group=topk_group,
            renormalize=renormalize,
            scoring=scoring,
            bias=bias,
            routed_scaling_factor=factor,
        )
        return self.named(parts)

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Scores correctly rounded to fp32, and so are sums with the bias; one more rounding of the weights."""
        logits, bias, num_groups, topk_group, k, scoring, renormalize, factor = problem.args.values()
        weights, ids = [], []
        for row in logits.double().tolist():
            scores = softmax_fp32(row) if scoring == "softmax" else [_sigmoid(l) for l in row]
            c = scores
            if bias is not None:
                c = [to_fp32(Fraction(s) + Fraction(b)) for s, b in zip(scores, bias.tolist(), strict=True)]
            size = len(row) // num_groups
            groups = [sorted(c[start : start + size], reverse=True) for start in range(0, len(row), size)]
            best = [group[: 1 if bias is None else 2] for group in groups]
            of_group = [to_fp32(sum(map(Fraction, b), Fraction(0))) for b in best]
            kept = sorted(range(num_groups), key=lambda g: (-of_group[g], g))[:topk_group]
            able = [e for e in range(len(row)) if e // size in kept]
            chosen = sorted(able, key=lambda e: (-c[e], e))[:k]
            total = sum((Fraction(scores[e]) for e in chosen), Fraction(0)) if renormalize else Fraction(1)
            weights.append([to_fp32(Fraction(scores[e]) / (total or 1) * Fraction(factor)) for e in chosen])
            ids.append(chosen)
        return {"weights": as_tensor(weights, k, torch.float32), "ids": torch.tensor(ids).reshape(-1, k).int()}

    @property
    def golden_literals(self) -> tuple[Literal, ...]:
        """A row of equal logits: every score is 1/4 or 1/2, and the bias alone decides."""
        return (
            # Softmax 1/4 each; c = 1/4, 3/4, 1/2, 3/8: group 0 has 1, group 1 has 7/8. The weight is 1/4 all the same.
            Literal(
                "grouped_topk.two_best",
                "grouped_topk/T1-E4-k1-g2-m1/fp32/-/-+bias/ties/s0",
                lambda: self._by_hand([0.0] * 4, [0.0, 0.5, 0.25, 0.125], 2, 1, 1, "softmax", False, 1.0),
                lambda: {"weights": fp32([[0.25]]), "ids": int32([[1]])},
                "gave the weight of the biased score",
            ),
            # Sigmoid 1/2 each; the best expert, 3, is in group 1: 1/2 + 3/4. Group 0 has 1 + 1 = 2 and wins by its two.
            Literal(
                "grouped_topk.sum_of_two",
                "grouped_topk/T1-E4-k2-g2-m1/fp32/-/-+renorm+sigmoid+bias+scaled/ties/s0",
                lambda: self._by_hand([0.0] * 4, [0.5, 0.5, -0.5, 0.75], 2, 1, 2, "sigmoid", True, FACTOR),
                lambda: {"weights": fp32([[1.25, 1.25]]), "ids": int32([[0, 1]])},
                "scored a group by its best expert alone, or scaled twice",
            ),
        )

    def _by_hand(self, row: list[float], bias: list[float], *rest: Any) -> dict[str, Any]:
        values = (fp32([row]), fp32(bias), *rest)
        return dict(zip((argument.name for argument in self.arguments), values, strict=True))

    def golden_cases(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        kinds = (("bf16", ""), ("fp16", "+renorm+sigmoid+bias+scaled"), ("fp32", "+bias"), ("fp32", "+renorm+sigmoid"))
        for seed, (dtype, flags, recipe) in enumerate((d, f, r) for r in self.data for d, f in kinds):
            yield f"grouped_topk/T7-E16-k4-g4-m2/{dtype}/-/-{flags}/{recipe}/s{seed}", (), f"{recipe} logits"
        yield "grouped_topk/T0-E8-k2-g4-m2/bf16/-/-/normal/s1", (), "no tokens"

    # ---- Laws and diagnosis ----

    laws = (law_permuting_tokens, law_splitting_batches, law_relabelling_experts, law_scaling_weights)

    def rename_experts(
        self, problem: Problem, expected: Tensors, name: torch.Tensor, weights: dict[str, Int4Weight]
    ) -> tuple[Problem, Tensors]:
        """Experts change their names within their groups, in the order in which `name` has them."""
        groups = problem.case.g
        rank = name.reshape(groups, -1).argsort(1).argsort(1)
        name = (rank + torch.arange(groups)[:, None] * rank.shape[1]).flatten()
        logits = torch.empty_like(problem.args["logits"])
        logits[:, name] = problem.args["logits"]
        bias = problem.args["correction_bias"]
        if bias is not None:
            bias = bias[name.argsort()]
        ids = name[expected["ids"].long().clamp(0, problem.case.E - 1)]
        return with_args(problem, logits=logits, correction_bias=bias), {**expected, "ids": ids}

    def clear(self, problem: Problem, expected: Tensors, ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
        choice = self.choice(problem)
        return clear_rows(choice, ties=ties), 2 * self.weights_of(problem, choice, expected["ids"])[1]


def _sigmoid(logit: float) -> float:
    """Return the sigmoid, correctly rounded to fp32; 0 of NaN and -inf, 1 of +inf."""
    if logit != logit or logit == -torch.inf:
        return 0.0
    return 1.0 if logit == torch.inf else sigmoid_fp32(logit)
