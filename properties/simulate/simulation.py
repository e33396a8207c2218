"""Simulation: the ops of all families under one contract and in one order of accumulation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.contracts.contract import contract as named_contract
from moeracle.ref.errors import require, unknown

from .gemm import GemmOps
from .moe import LayerOps
from .orders import ORDERS
from .routing import Int8Ops, RoutingOps
from .shared import SharedOps


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
