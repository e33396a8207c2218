"""OpRecord: everything that the harness knows of one op; its facts are inherited from `Op`, its functions stand here.

Each op subclasses a family of `ops/families.py` in `properties/ops/X.py` and fills in what is its own. Whoever needs
something of an op asks `record_of(op)`; nobody compares an op's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import torch

from moeracle.ref.bounds.band import Band
from moeracle.ref.bounds.deferred import Deferred
from moeracle.ref.contracts.contract import PRESETS, Contract
from moeracle.ref.weights.layouts import pack_codes
from moeracle.ref.weights.weight import Int4Weight

from ..common.drift import Errors
from ..common.verdict import Verdict
from .case import Case, Problem
from .changes import FACTOR, like, scalable, topk_ids_of, with_args
from .inputs import strided
from .optable import OPS, Op, Result

__all__ = ["OpRecord", "record_of"]

Tensors = dict[str, torch.Tensor]
# A stage, which of its rows, the first of the columns, and what is legal there before the store rounding.
Piece = tuple[str, torch.Tensor, int, Band]
JudgedPiece = tuple[str, torch.Tensor, int, Band | Deferred]


class Law(Protocol):
    """A law of an op, asked of (kernel, case): a verdict, or None where it says nothing.

    Args:
        promise: the contract's promise without which the law says nothing of a kernel; None for a law of every kernel.
    """

    __name__: str
    promise: str | None

    def __call__(self, kernel: Any, case: Case, /) -> Verdict | None: ...


class Comparison(NamedTuple):
    """What a law expects of one result: its values, what its dimensions are called, and which elements are meant."""

    name: str
    expected: torch.Tensor
    axes: tuple[str, ...]
    where: torch.Tensor | None = None


class Agreement(NamedTuple):
    """Where two answers agree in one result: bool `right`, both answers, axis names, and which elements are meant."""

    name: str
    right: torch.Tensor
    got: torch.Tensor
    expected: torch.Tensor
    axes: tuple[str, ...]
    where: torch.Tensor | None = None


# What every op has, or says in `without` why it has none.
PARTS = ("shapes", "bands", "judge_parts", "reference", "compared", "derive")


class Rows(NamedTuple):
    """What a report calls the rows of a stage.

    Args:
        name: of one row: "row" or "token".
        experts: int [rows] on the CPU, each row's expert, -1 for none; None where rows have no expert.
        group: columns a group, where whole groups of columns may be wrong; else 0.
        line: what a line of the error map is called, and
        slots: how many rows share one.
    """

    name: str
    experts: torch.Tensor | None = None
    group: int = 0
    line: str = ""
    slots: int = 1


# Types of packages above this one, inference and bisection, whose objects a record only passes on.
Calls: TypeAlias = Any
Dots: TypeAlias = Any
Inference: TypeAlias = Any
Bench: TypeAlias = Any
Family: TypeAlias = Any
Layer: TypeAlias = Any


class OpRecord(Op):
    """The facts and the functions of one op.

    Attributes:
        without: parts of PARTS that the op does not have, and why.
        sums: of the op's sums, a contract's schedule to the dimension that the sum runs over.
        no_rounding_to_choose: whether no contract changes what is right, so that the reference gives it on any data.
        laws: what every right kernel of the op obeys.
        sums_products: whether it has dot products, so that the accumulator's width matters.
        elementwise: whether each result comes from a few inputs, with no sum over many.
        has_exact_data: whether it adds or rounds, and recipes exist on which every legal kernel gives the same bits.
        token_args: the arguments whose first dimension is the token.
        token_letter: the dimension that counts the tokens.
        over_ranks: whether its experts may lie on several ranks, each a process.
    """

    without: Mapping[str, str] = {}
    sums: Mapping[str, str] = {}
    no_rounding_to_choose: bool = False
    laws: tuple[Law, ...] = ()
    sums_products: bool = False
    over_ranks: bool = False
    elementwise: bool = False
    has_exact_data: bool = False
    token_args: tuple[str, ...] = ()
    token_letter: str = "T"

    def has(self, part: str) -> bool:
        """Say whether the op has a part of PARTS."""
        return getattr(type(self), part) is not getattr(OpRecord, part)

    def missing(self, part: str) -> NotImplementedError:
        """Return the error of asking for a part that the op does not have."""
        return NotImplementedError(f"{self.name} has no {part}: {self.without.get(part, 'nobody wrote it')}")

    # ---- What a case is built into ----

    # ---- Judging: shapes, bands, references, derivations ----

    def result(self, name: str) -> Result:
        """Return the facts of a result, or of a stage."""
        return next(result for result in self.results if result.name == name)

    def result_dtype(self, name: str, case: Case) -> torch.dtype:
        """Return the dtype of a result, which is the first word of its form; D is the case's."""
        word = self.result(name).form.partition(" ")[0]
        dtype = case.torch_dtype if word == "D" else getattr(torch, word)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def by_name(self, output: Any) -> dict[str, Any] | None:
        """Return what a kernel returned by the names of the op's results, or None if it does not have their form."""
        raise NotImplementedError(f"{self.name}: by_name")

    def as_output(self, results: Tensors) -> Any:
        """Return results in the form in which a kernel returns them: a tensor, a tuple, or a dict of stages."""
        raise NotImplementedError(f"{self.name}: as_output")

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        """Return the shape of each result, or stage, that a kernel may return."""
        raise self.missing("shapes")

    def known_from(self, args: dict[str, Any], sizes: dict[str, int]) -> tuple[dict[str, int], dict[str, Any]]:
        """Return sizes that no shape of the arguments shows, and a Problem's truth, of tensors that were given.

        Args:
            args: by name, in order; their shapes and ranges fit.
            sizes: known ones, by letter.
        Raises:
            ValueError: what is missing, and how it can be said.
        """
        return {}, {}

    def as_judged(self, rules: Contract) -> Contract:
        """Return the contract by whose roundings the op's result is judged."""
        return rules

    def bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[Piece]:
        """Walk the op's result in pieces and yield what is legal there, before the store rounding.

        A result of more than two dimensions is walked as a matrix of its last one; rows that are not yielded may hold
        anything.

        Args:
            problem: on any device.
            rules: what as_judged returned.
            given: what the kernel stored; of a layer, a stage is judged from the one stored before it.
            exact: the data promise exact sums; each element is still checked.
        """
        raise self.missing("bands")

    def judged_bands(self, problem: Problem, rules: Contract, given: Tensors, *, exact: bool) -> Iterator[JudgedPiece]:
        """Walk the result as `bands` does; a piece may leave its ends open, and holds until the next is asked for."""
        yield from self.bands(problem, rules, given, exact=exact)

    def judge_parts(self, problem: Problem, parts: list[torch.Tensor], verdict: Verdict) -> None:
        """Judge the tensors of a tuple, whose shapes and dtypes are right, and fill in the verdict."""
        raise self.missing("judge_parts")

    def settled(self, problem: Problem, output: Any) -> Any:
        """Return a legal-shaped output with what the op leaves open made equal: what two runs must agree on."""
        return output

    def other_experts(self, problem: Problem, stage: str = "out") -> torch.Tensor | None:
        """Return int64 [R], for each row of a routed stage the row that holds another expert's answer to its token.

        -1 where there is none; None where rows are not routed, or nobody says which token they belong to.
        """
        return None

    def errors(self, case: Case, rules: Contract, stage: str) -> Errors | None:
        """Return what errors a stage of a random case may have; None where no statistical test applies."""
        return None

    def operand_rows(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows [R, K] that a GEMM's (first) weight is multiplied by, and the expert [R] of each."""
        raise self.missing("operand_rows")

    def largest_code(self, rules: Contract, dtype: torch.dtype, top: int = 15) -> int:
        """Return a bound on a code, zero point included, in a dot product that is scaled only afterwards.

        top: the largest code.
        """
        return 2 * (top + rules.code_offset(dtype))

    def rows(self, problem: Problem, stage: str) -> Rows:
        """Return what a report calls the rows of a stage."""
        return Rows(self.result(stage).axes[0])

    def place(self, problem: Problem, stage: str, row: int, column: int) -> str:
        """Return one element's place in words."""
        axes = self.result(stage).axes
        return f"{axes[0]} {row}, {axes[-1]} {column}"

    def saturates(self, case: Case, stage: str) -> bool:
        """Say whether a stage is a sigmoid, which is 1 for every large sum: a constant might then pass for it."""
        return False

    def open_zero_sign(self, case: Case, stage: str) -> bool:
        """Say whether silu or a sigmoid made a stage, so that a Band does not know the sign of its zeros."""
        return False

    def reference(self, problem: Problem, dtype: torch.dtype) -> Tensors:
        """Return the reference op's results by name, computed in a dtype and then rounded once.

        Args:
            problem: on any device.
            dtype: torch.float32 or torch.float64.
        """
        raise self.missing("reference")

    def compared(self, output: Any) -> torch.Tensor:
        """Return the float tensor of an output that a tolerance can be put on."""
        raise self.missing("compared")

    def derive(self, problem: Problem, contract: Contract) -> Tensors:
        """Return the correctly rounded results by name; see golden/derive.py."""
        raise self.missing("derive")

    @property
    def golden_literals(self) -> tuple[Any, ...]:
        """The op's golden cases worked by hand (golden/literal_data.py) beside those of golden/literals.py."""
        return ()

    def golden_cases(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        """Yield (case, contracts or () for the op's default, why) of the shipped golden set beside the catalogue's."""
        yield from ()

    def cost(self, case: Case) -> int:
        """Return about how many products, or elements where there are none, a derivation works out one by one."""
        sizes = case.sizes
        wide = sizes.get("N", 1) * sizes.get("V", 1) * sizes.get("I", 1)
        return max(1, case.R) * wide * sizes.get("K", 1)

    # ---- Laws and diagnosis ----

    def take_tokens(self, problem: Problem, index: torch.Tensor) -> Problem:
        """Return the problem of some of its tokens (rows, for the quantizer), in the order given."""
        smaller = problem.case.replace(**{self.token_letter: len(index)})
        new = {name: problem.args[name][index] for name in self.token_args}
        new |= {name: strided(new[name], smaller) for name in ("x", "h") if name in new}
        return Problem(smaller, {**problem.args, **new}, problem.truth, problem.exact)

    def by_token(self, problem: Problem, results: Tensors) -> Tensors:
        """Return results whose first dimension is the token, whatever order the op stores them in.

        Rows of slots become [T, k, ...]; what means nothing is 0.
        """
        return results

    def token_axes(self, value: torch.Tensor) -> tuple[str, ...]:
        """Return what the dimensions of a result in token order are called."""
        return (("token", "n") if value.ndim == 2 else ("token", "slot", "n"))[: value.ndim]

    def rename_experts(
        self, problem: Problem, expected: Tensors, name: torch.Tensor, weights: dict[str, Int4Weight]
    ) -> tuple[Problem, Tensors]:
        """Return the problem in which expert e is called name[e], and what is then expected in token order.

        Args:
            problem: with experts.
            expected: its results in token order.
            name: int64 [E], a permutation.
            weights: the weight arguments with their experts already in the new order.
        """
        ids = topk_ids_of(problem)
        new = torch.where(ids < 0, ids, name[ids.long().clamp(min=0)].to(ids.dtype))
        return self.with_ids(problem, new, weights), expected

    def with_ids(self, problem: Problem, ids: torch.Tensor, weights: dict[str, Int4Weight]) -> Problem:
        """Return the problem with other topk_ids [T, k] and int4 weights."""
        return with_args(problem, topk_ids=ids, **weights)

    def experts_kept(self, problem: Problem, experts: torch.Tensor) -> list[torch.Tensor]:
        """Return bool [E] masks of experts that keep their weights while the others' change, for a law.

        Args:
            experts: int64, 0..E-1 of this rank.
        """
        return [experts % 2 == parity for parity in (0, 1)]

    def exact_under(self, problem: Problem, rules: Contract) -> Problem:
        """Return a problem with exact data as one whose sums are exact under this contract, too."""
        return problem

    def silent_slot(self, problem: Problem, silent: torch.Tensor) -> Problem | None:
        """Return the problem with another row in slots whose router weight is 0; None: their own rows are 0.

        A slot keeps its row where its token has every expert already and none may repeat.

        Args:
            silent: bool [T, k].
        """
        ids, E = problem.args["topk_ids"], problem.case.E
        new, open_ = ids.clone(), silent & (ids >= 0)
        for step in range(1, E):  # the next expert that the token does not have, unless its experts may repeat
            other = (ids + step) % E
            free = open_ & ~(other[:, :, None] == ids[:, None, :]).any(2) if problem.case.routing != "repeat" else open_
            new, open_ = torch.where(free, other, new), open_ & ~free
            if not bool(open_.any()):
                break
        return with_args(problem, topk_ids=new)

    def with_block_size(self, problem: Problem, block: int) -> Problem:
        """Return the problem with another block size of the alignment."""
        raise NotImplementedError(f"{self.name} has no block size")

    def scalings(self, problem: Problem, contract: Contract) -> list[tuple[str, dict[str, Any]]]:
        """Return (what is multiplied by FACTOR, the changed arguments) for each way in which the op is homogeneous."""
        return []

    def scaled_results(self, problem: Problem, results: Tensors) -> Iterator[Comparison]:
        """Yield what a problem with a factor FACTOR more must give: expected values, and where they are."""
        out = results["out"]
        where = scalable(out)
        used = self.rows_with_meaning(problem)
        if used is not None:
            where &= used[:, None]
        yield Comparison("out", out.double() * FACTOR, self.token_axes(out), where)

    def rows_with_meaning(self, problem: Problem) -> torch.Tensor | None:
        """Return bool [rows] of the result that are somebody's; None: all of them."""
        return None

    def change_columns(self, problem: Problem, columns: torch.Tensor) -> Problem:
        """Return the problem with other values in what some output columns, bool [N], are made of."""
        w: Int4Weight = problem.args["w"]
        codes = torch.where(columns[:, None], w.packing.top - w.codes(), w.codes())
        packed = like(w.packed, pack_codes(codes, w.layout, w.bits).view(w.packed.dtype))
        return with_args(problem, w=replace(w, packed=packed))

    def agreement(self, problem: Problem, got: Tensors, expected: Tensors, *, ties: bool) -> Iterator[Agreement]:
        """Yield where two legal answers to a problem must agree: equal bits, unless the op approximates.

        Args:
            problem: what both answer.
            got, expected: results in token order.
            ties: equal scores may be compared; False where experts have changed their names.
        """
        for name, value in expected.items():
            yield Agreement(name, got[name] == value, got[name], value, self.token_axes(value))

    # ---- Inference, bisection and the bench ----

    # Of inference: the contract fields that outputs show, () where nothing can be inferred, and why; the presets that a
    # kernel may be near to; E and k of a probe; flags that bring in parts which a plain case leaves out; whether the
    # scale and the bias may enter a sum in one operation.
    inferred: tuple[str, ...] = ()
    nothing_inferred: str = "it rounds nothing, so that any contract is its contract; `moeracle check` demands equality"
    presets: tuple[str, ...] = tuple(name for name in PRESETS if name != "int8_lm_head")
    probe_experts: int = 1
    probe_slots: int = 1
    probe_flags: tuple[str, ...] = ()
    bias_may_be_fused: bool = False

    def probe_arguments(self, case: Case, x: torch.Tensor, weights: dict[str, Any]) -> dict[str, Any]:
        """Return the op's arguments for rows x that one expert multiplies, once.

        Args:
            case: where it is probed.
            x: [T, K] of D.
            weights: the arguments that probe_weights returned.
        """
        raise NotImplementedError(f"{self.name}: probe_arguments")

    def probe_weights(self, dots: Dots, q: torch.Tensor, s: torch.Tensor) -> dict[str, Any]:
        """Return the arguments that hold the weight q * s; of a layer its first weight, the second being 0.

        Args:
            dots: the GEMM that is probed.
            q: [N, K], integers.
            s: [N, K/G], values of D.
        """
        raise NotImplementedError(f"{self.name}: probe_weights")

    def layer_weights(
        self, dots: Dots, q13: torch.Tensor, s13: torch.Tensor, q2: torch.Tensor, s2: torch.Tensor
    ) -> dict[str, Int4Weight]:
        """Return a layer's two weights by name, every expert's the same."""
        raise NotImplementedError(f"{self.name}: layer_weights")

    def predicted_sums(
        self, dots: Dots, x: torch.Tensor, q: torch.Tensor, s: torch.Tensor, rules: Contract
    ) -> torch.Tensor:
        """Return the fp32 sums x @ (q * s)^T [P, N] that a contract's schedule predicts, as float64."""
        raise NotImplementedError(f"{self.name}: predicted_sums")

    def find_around_gemm(self, dots: Dots, rules: Contract, opaque: bool, result: Inference) -> Contract:
        """Return the rules with the fields that the op shows beside those of its GEMMs.

        Args:
            dots: how the kernel is driven.
            rules: with the GEMMs' fields; the weight path is found here if `opaque`.
            opaque: no stage shows a GEMM's sums as they are.
            result: findings are put in.
        """
        return rules

    def find_rules(self, calls: Calls, case: Case, result: Inference) -> Contract:
        """Return the fields that an op without a GEMM shows; findings are put into the result."""
        raise NotImplementedError(f"{self.name}: find_rules")

    # Of bisection: the stage that the whole op is, "" where probes tell its stages apart; the stage that is named where
    # every probe is answered rightly, and in which words; whether it is a layer that is bisected stage by stage, and
    # whether a kernel of the op takes a step of one; whether it returns codes, which nothing scales or rounds.
    one_stage: str = ""
    last_stage: str = ""
    last_words: str = "the stage that stores the wrong elements is named"
    bisected_by_stages: bool = False
    step_of_layer: bool = False
    returns_codes: bool = False
    probe_bench: type[Bench]

    def questions(self, stored: str) -> tuple[Family, ...]:
        """Return the families of probes to ask, in order.

        Args:
            stored: of a layer, the stored stage that is illegal; "" where only the output is stored.
        """
        raise NotImplementedError(f"{self.name}: questions")

    def made_problem(self, case: Case, layer: Layer, w: Int4Weight) -> Problem:
        """Return the first half of a made layer as a problem of this op.

        Args:
            case: with the layer's T and k.
            layer: x in D, ids int32.
            w: its first weight, packed, with experts if the case has E.
        """
        raise NotImplementedError(f"{self.name}: made_problem")

    def made_rows(self, problem: Problem, layer: Layer, out: torch.Tensor) -> torch.Tensor:
        """Return what a kernel answered to made_problem as rows in slot order, float64."""
        return out

    def stage_shown(self, stage: str, stores: bool) -> str:
        """Return the stage that a bisection of this op names for a layer's stage.

        Args:
            stage: which a fault belongs to.
            stores: whether the fault is in storing the result.
        """
        return stage

    def step_case(self, layer: Case, sizes: dict[str, int]) -> Case:
        """Return the case of this op as a step of a layer: its data come from the steps before."""
        return self.case_of(sizes, dtype=layer.dtype, layout=layer.layout, zero=layer.zero, routing=layer.routing)

    def case_of(
        self,
        sizes: dict[str, int],
        *,
        dtype: str,
        layout: str = "",
        zero: str,
        routing: str,
        seed: int = 0,
        flags: Iterable[str] = (),
    ) -> Case:
        """Return a case of these sizes and names; what the op does not have is left out, or is the plainest it has.

        Args:
            sizes: by dimension letter, at least all that the op has.
            dtype, layout, zero, routing, seed, flags: as Case.of's.
        """
        dims: dict[str, Any] = {letter: sizes[letter] for letter in self.dims}
        return Case.of(
            self.name,
            dtype=dtype if dtype in self.dtypes else "",
            layout=layout if self.weight else "",
            zero=zero if self.weight else "",
            routing=routing if routing in self.routings else "",
            seed=seed,
            flags=flags,
            **dims,
        )

    # Of the benchmark: arguments that are the op's weight without being an Int4Weight; the GEMMs of a layer as which it
    # is timed, () for itself; whether it is timed where no op is named.
    weight_arguments: tuple[str, ...] = ()
    timed_as: tuple[str, ...] = ()
    timed_by_default: bool = False

    def flops(self, case: Case, rows: int) -> int:
        """Return the useful operations on so many routed rows: a product and a sum for each weight and row."""
        return sum(2 * rows * N * K for N, K in case.weight_shapes().values())


def record_of(op: str) -> OpRecord:
    """Return the record of an op by its name.

    Args:
        op: one of OPS.
    Returns:
        The record, which is one object for all who ask.
    """
    return cast(OpRecord, OPS[op])
