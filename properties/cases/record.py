"""OpRecord: everything that the harness knows of one op; its facts are inherited from `Op`, its functions stand here.

Each op subclasses a family of `ops/families.py` in `properties/ops/X.py` and fills in what is its own. Whoever needs
something of an op asks `record_of(op)`; nobody compares an op's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import torch

from moeracle.ref.contract import PRESETS, Contract
from moeracle.ref.weight import Int4Weight

from ..case import Case
from ..optable import OPS, Op
from ..problem import Problem

if TYPE_CHECKING:
    from ..bisect.families import Family
    from ..bisect.isolate import Bench
    from ..bisect.made import Layer
    from ..infer.calls import Calls
    from ..infer.drive import Dots
    from ..infer.found import Inference


class OpRecord(Op):
    """The facts and the functions of one op."""

    # ---- What a case is built into ----

    def build(self, case: Case) -> Problem:
        """Return the tensors of a case, made on the CPU: the same bits on every machine."""
        raise NotImplementedError(f"{self.name}: build")

    # ---- Judging: shapes, bands, references, derivations ----

    # ---- Laws and diagnosis ----

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

    @property
    def order_is_inferred(self) -> bool:
        """Whether it has dot products whose order inference asks about."""
        return "accumulator" in self.inferred

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
    """Return the record of an op by its name."""
    return cast(OpRecord, OPS[op])
