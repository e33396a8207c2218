"""What a fault is: one step of a correct simulation done wrongly, with the public thread where it happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.contracts.contract import contract as named_contract
from moeracle.ref.errors import unknown

from ..cases.optable import OPS
from ..simulate import ALL_ZEROS, SimulatedKernel, Simulation, simulation_of

# Ops by what they have in common, so that a fault can say which of them it may befall.
ROUTED = ("grouped_gemm", "padded_gemm", "moe_w4a16")
GEMMS = ("int4_linear", *ROUTED)
SCALED = ("dequantize_int4", *GEMMS)
PACKED = ("unpack_int4", *SCALED)
WEIGHED = ("padded_gemm", "moe_unpermute", "moe_w4a16")
SUMMED = ("moe_unpermute", "moe_w4a16")
DISPATCHED = ("moe_align_block_size", "moe_permute", "moe_w4a16")
ASYMMETRIC = ("asym", "v1", "v2", "rdna", "unpacked")
STORING = (*GEMMS, "silu_and_mul", "moe_unpermute", "int8_lm_head", "shared_expert", "tiny_dot")

Step = Callable[..., Any]
NotUnder = Callable[[Contract], "str | None"]


@dataclass(frozen=True)
class Fault:
    """One known bug as a change to a correct simulation.

    Args:
        id: stable, "F29".
        title: what is wrong, in one line.
        ops: where it may be planted.
        stage: where it first shows in moe_w4a16 (h, a, y, out), else the name of the result.
        source: the public thread, or what it follows from.
        steps: step's name to `fn(simulation, correct_step, *args)`, which stands in for it.
        zeros, dtypes, layout, weights: what the kernel must read for the fault to exist.
        contract: the contract it is planted in unless another is asked for; None: the op's default.
        not_under: says why a contract makes it no fault, or returns None.
    """

    id: str
    title: str
    ops: tuple[str, ...]
    stage: str
    source: str
    steps: dict[str, Step] = field(hash=False)
    zeros: tuple[str, ...] = ALL_ZEROS
    dtypes: tuple[str, ...] = ("bf16", "fp16", "fp32")
    layout: str | None = None
    weights: tuple[str, ...] = ()
    contract: str | None = None
    not_under: NotUnder | None = field(default=None, hash=False)

    def why_not(self, op: str, contract: Contract | str | None = None) -> str | None:
        """Say in one line why the fault cannot be planted in an op under a contract, or return None.

        Raises:
            ValueError: an unknown op or contract.
        """
        if op not in OPS:
            raise unknown("op", op, OPS)
        if op not in self.ops:
            return f"{self.id} does not apply to {op}; it applies to {', '.join(self.ops)}"
        rules = self.rules(op, contract)
        reason = self.not_under(rules) if self.not_under else None
        return f"{self.id} is no fault under contract {rules.name!r}: {reason}" if reason else None

    def rules(self, op: str, contract: Contract | str | None = None) -> Contract:
        """Return the contract that the fault is planted in."""
        return named_contract(contract if contract is not None else self.contract or OPS[op].default_contract)

    def plant(self, simulation: Simulation) -> Simulation:
        """Put the fault into a simulation; return it."""
        for step, fn in self.steps.items():
            simulation.replace_step(step, fn)
        return simulation

    def kernel(self, op: str, contract: Contract | str | None = None, *, order: str = "matmul") -> SimulatedKernel:
        """Return a kernel for an op that has this fault and no other.

        Args:
            op: one of `ops`.
            contract: what it keeps otherwise and is judged under; None takes the fault's, or the op's default.
            order: its order of accumulation.
        Raises:
            ValueError: the fault cannot be planted there, and why; an unknown op, contract or order.
        """
        reason = self.why_not(op, contract)
        if reason:
            raise ValueError(f"fault: {reason}")
        rules = self.rules(op, contract)
        simulation = self.plant(simulation_of(op, rules, order))
        fn = getattr(simulation, op)
        fields: dict[str, Any] = {"zeros": self.zeros, "dtypes": self.dtypes, "weights": self.weights}
        return SimulatedKernel(op, f"{self.id}", fn, rules, layout=self.layout, **fields)


REGISTERED: dict[str, Fault] = {}


def fault(
    id: str,
    title: str,
    *,
    ops: tuple[str, ...],
    stage: str,
    source: str,
    step: str,
    also: dict[str, Step] | None = None,
    **fields: Any,
) -> Callable[[Step], Step]:
    """Register `fn(simulation, correct_step, *args)` as the fault that stands in for `step`.

    Args:
        id, title, ops, stage, source: as Fault's.
        step: the step's name.
        also: further steps that the same bug changes.
        fields: other fields of Fault.
    """

    def register(fn: Step) -> Step:
        assert id not in REGISTERED, f"{id} is registered twice"
        REGISTERED[id] = Fault(id, title, ops, stage, source, {step: fn, **(also or {})}, **fields)
        return fn

    return register


def pull(repository: str, number: int) -> str:
    """Return a pull request's address."""
    return f"https://github.com/{repository}/pull/{number}"


def issue(repository: str, number: int) -> str:
    """Return an issue's address."""
    return f"https://github.com/{repository}/issues/{number}"


ARITHMETIC = "https://arxiv.org/abs/2210.17323"  # follows from the arithmetic of group-wise int4 itself


def only_fp32_sums(contract: Contract) -> str | None:
    """Faults of narrow accumulators are none where the contract itself accumulates in D."""
    return "it accumulates in the activation dtype" if contract.adder.in_dtype else None


def only_cast_rne(contract: Contract) -> str | None:
    """Faults of the weights' rounding need weights that are rounded, to nearest."""
    if contract.weight != "cast":
        return "its weights are not rounded before the dot product"
    return "it rounds weights toward zero itself" if contract.weight_rounding == "rtz" else None


def only_stored_rne(contract: Contract) -> str | None:
    """Truncated stores are none where the contract truncates."""
    return "it rounds its stores toward zero itself" if "rtz" in contract.store_rounding else None


def only_before_dot(contract: Contract) -> str | None:
    """Faults of formed weights need weights formed before the dot product."""
    return None if contract.weight in ("cast", "exact") else "it scales after the dot product"


def only_after_dot(contract: Contract) -> str | None:
    """Faults of scaled partial sums need a scale after the dot product."""
    return "it scales before the dot product" if contract.weight in ("cast", "exact") else None
