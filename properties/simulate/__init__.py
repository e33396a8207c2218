"""Simulated kernels: every op done correctly in plain torch, under any contract, in any order of accumulation.

A Simulation answers two questions. Legal ones must never raise an alarm (LEGAL lists them). And a fault is a Simulation
with one step replaced, so that it differs from a correct kernel in exactly one thing; see faults. The steps of an op
stand in a family of ops (gemm, moe, routing, shared), or in a file of the op's own name, which `simulation_of` finds.

No reference op computes anything here: a simulation and the reference could otherwise be wrong together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.contracts.contract import contract as named_contract
from moeracle.ref.errors import unknown

from ..cases.case import Case
from ..cases.kernel_like import not_declared
from ..cases.optable import OPS
from .orders import CORES
from .simulation import Simulation as Simulation

__all__ = ["LEGAL", "SimulatedKernel", "Simulation", "simulated_kernel"]

ALL_ZEROS = ("sym", "v1", "v2", "asym", "rdna", "unpacked")
HALF = ("bf16", "fp16")


def simulation_of(
    op: str, contract: Contract | str = "grouped", order: str = "matmul", *, block_m: int = 16
) -> Simulation:
    """Return a correct simulation that has an op: the `Steps` of the file of the op's name, or a plain Simulation.

    Args:
        op: one of OPS.
        contract, order, block_m: as Simulation's.
    Raises:
        ValueError: an unknown contract or order.
    """
    return _steps_of(op)(contract, order, block_m=block_m)


@cache
def _steps_of(op: str) -> type[Simulation]:
    if not Path(__file__).with_name(f"{op}.py").exists():
        return Simulation
    steps: type[Simulation] = import_module(f".{op}", __name__).Steps
    return steps


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
        weights: the words of the layout field that it reads.
    """

    op: str
    name: str
    fn: Callable[..., Any]
    contract: Contract
    layout: str | None = None
    zeros: tuple[str, ...] = ALL_ZEROS
    dtypes: tuple[str, ...] = (*HALF, "fp32")
    device: str = "cpu"
    weights: tuple[str, ...] = ()

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
    simulation = simulation_of(op, rules, order, block_m=128)
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
    ("moe_wna16", "chains"),
    ("gptq_awq,accumulator=dtype,deterministic=false", "eights"),
    ("et_vecmat", "sequential"),
    ("et_batched", "tiles64"),
    ("grouped,router_weight=input_dtype", "matmul"),
    ("grouped,parts=k16/join=pairwise,bias=stored", "sequential"),
    ("gptq_awq,topk_sum=dtype,slot_order=any,deterministic=false", "matmul"),
    ("vllm@0.33:marlin", "hopper"),
    ("vllm@0.33:moe_wna16,parts=k16/dtype/add=dtype", "chains"),
    ("vllm@0.33:awq_gemm", "tiles32"),
    ("vllm@0.33:gptq_gemm,parts=k32/dtype/add=dtype", "chains"),
    ("vllm@0.32:emulation", "matmul"),
    ("vllm@0.33:cpu_fused_moe", "sequential"),
    ("transformers@5.24:eager", "matmul"),
)
