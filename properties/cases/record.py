"""OpRecord: everything that the harness knows of one op; its facts are inherited from `Op`, its functions stand here.

Each op subclasses a family of `ops/families.py` in `properties/ops/X.py` and fills in what is its own. Whoever needs
something of an op asks `record_of(op)`; nobody compares an op's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from moeracle.ref.contract import PRESETS, Contract
from moeracle.ref.weight import Int4Weight

from ..case import Case
from ..optable import OPS, Op
from ..problem import Problem

if TYPE_CHECKING:
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


def record_of(op: str) -> OpRecord:
    """Return the record of an op by its name."""
    return cast(OpRecord, OPS[op])
