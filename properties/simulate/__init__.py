"""Simulated kernels: every op done correctly in plain torch, under any contract, in any order of accumulation.

A Simulation answers two questions. Legal ones must never raise an alarm (LEGAL lists them). And a fault is a Simulation
with one step replaced, so that it differs from a correct kernel in exactly one thing; see faults.py.

No reference op computes anything here: a simulation and the reference could otherwise be wrong together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.contracts.contract import contract as named_contract
from moeracle.ref.errors import require, unknown

from ..cases.case import Case
from ..cases.kernel_like import not_declared
from ..cases.optable import OPS
from .gemm import GemmOps
from .moe import LayerOps
from .orders import CORES, ORDERS
from .routing import Int8Ops, RoutingOps
from .shared import SharedOps

__all__ = ["LEGAL", "SimulatedKernel", "Simulation", "simulated_kernel"]

ALL_ZEROS = ("sym", "v1", "v2", "asym", "rdna", "unpacked")
HALF = ("bf16", "fp16")


class Simulation(LayerOps, GemmOps, RoutingOps, Int8Ops, SharedOps):
    """A correct kernel for every op; each numerical step is a method.

    Args:
        contract: the roundings it makes: a Contract, or a preset's name with overrides.
        order: in which order it accumulates, one of ORDERS.
        block_m: rows of a tile.
    Raises:
        ValueError: an unknown contract or order.
    """

    def __init__(self, contract: Contract | str = "grouped", order: str = "matmul", *, block_m: int = 16) -> None:
        if order not in ORDERS:
            raise unknown("order", order, ORDERS)
        require(block_m >= 1, f"block_m: got {block_m}, must be at least 1")
        self.contract, self.order, self.block_m = named_contract(contract), order, block_m

    def replace_step(self, step: str, fn: Callable[..., Any]) -> Simulation:
        """Let `fn(simulation, correct_step, *args)` stand in for a step of this simulation; return it.

        Raises:
            ValueError: there is no such step.
        """
        if not hasattr(self, step):
            raise unknown("step", step, [name for name in dir(self) if not name.startswith("_")])
        setattr(self, step, functools.partial(fn, self, getattr(self, step)))
        return self

    def stage_of(self, op: str, stage: str, args: dict[str, Any], before: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute one stage of a layer, op, from the stage before it; Args and Returns: as `stage`."""
        compute = self.stage if op == "moe_w4a16" else self.shared_stage
        return compute(stage, args, before)


@dataclass(frozen=True)
class SimulatedKernel:
    """A kernel record, as run_trial and hunt ask for, around one op of a Simulation.

    Args:
        op, name: what is simulated, and what reports call it.
        fn: the op, called with a Problem's arguments.
        contract: what it is judged under.
        layout: the only int4 layout it reads, or None for all.
        zeros, dtypes: the zero-point forms and activation dtypes it takes.
        device: where it runs.
    """

    op: str
    name: str
    fn: Callable[..., Any]
    contract: Contract
    layout: str | None = None
    zeros: tuple[str, ...] = ALL_ZEROS
    dtypes: tuple[str, ...] = (*HALF, "fp32")
    device: str = "cpu"

    def why_not(self, case: Case) -> str | None:
        """Say why this kernel does not take the case, or None if it does."""
        return not_declared(self, case)

    def contract_for(self, case: Case) -> Contract:
        """Return the contract: one for every case."""
        return self.contract


def simulated_kernel(
    op: str, contract: Contract | str | None = None, order: str = "matmul", **fields: Any
) -> SimulatedKernel:
    """Return a correct kernel for an op.

    Args:
        op: one of OPS.
        contract: what it keeps; None takes the op's default.
        order: its order of accumulation.
        fields: other fields of SimulatedKernel.
    Returns:
        SimulatedKernel, judged under the contract that it keeps.
    Raises:
        ValueError: an unknown op, contract or order.
    """
    if op not in OPS:
        raise unknown("op", op, OPS)
    rules = named_contract(contract if contract is not None else OPS[op].default_contract)
    simulation = Simulation(rules, order, block_m=128)
    return SimulatedKernel(op, f"{rules.name}/{order}", getattr(simulation, op), rules, **fields)


# Contract and order of the kernels that must never raise an alarm.
LEGAL: tuple[tuple[str, str], ...] = (
    ("grouped,accumulator=fp32", "sequential"),
    ("grouped,accumulator=fp32", "reversed"),
    ("grouped,accumulator=fp32,depth=13", "pairwise"),
    ("grouped,accumulator=fp32", "tiles32"),
    ("grouped", "tiles64"),
    ("hybrid", "tiles128"),
    ("grouped,accumulator=fp32", "split_k"),
    ("grouped,accumulator=fp32", "random1"),
    ("grouped", "random2"),
    ("grouped,accumulator=fp32", "lanes"),
    *((f"grouped,accumulator={name}", name) for name in CORES),
    ("grouped", "hopper"),
    ("grouped,accumulator=fp32,ftz=true", "ftz"),
    ("grouped,accumulator=truncating", "truncating"),
    ("grouped,weight_rounding=rtz,store_rounding=rtz", "sequential"),
    ("grouped,router_weight=input", "matmul"),
    ("gptq_awq", "tiles32"),
    ("marlin", "hopper"),
    ("wvsplitk,accumulator=fp32", "lanes"),
    ("megakernel,accumulator=fp32", "lanes"),
    ("megakernel_sum", "sequential"),
    ("wmma", "tiles32"),
    ("wmma,accumulator=fp32,zero_offset=0", "sequential"),
    ("moe_wna16", "eights"),
    ("et_vecmat", "sequential"),
    ("et_batched", "tiles64"),
)
