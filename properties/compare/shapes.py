"""What a kernel must return: how many tensors, their shape, dtype and device."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.ref.bounds.dot import needs_codes
from moeracle.ref.contracts.contract import JUDGED, Contract
from moeracle.ref.weights.dense import DenseWeight

from ..cases.case import Problem
from ..cases.optable import OPS
from ..cases.record import record_of

Output = dict[str, torch.Tensor]


def as_outputs(op: str, output: Any) -> Output | str:
    """Return the float results by stage name, or the complaint about what came instead.

    Args:
        op: any op with one float result, or a layer.
        output: what the kernel returned.
    """
    wanted = "a tensor or a dict of stages" if OPS[op].layer else "a tensor"
    if output is None:
        return f"returned None, must return {wanted}"
    if isinstance(output, torch.Tensor):
        return {"out": output}
    if isinstance(output, dict) and OPS[op].layer:
        for name, value in output.items():
            if name not in JUDGED or not isinstance(value, torch.Tensor):
                return f"returned stage {name!r} as {type(value).__name__}, must be a tensor named h, a, y or out"
        return output if "out" in output else f"returned stages {', '.join(output) or 'none'}, must include 'out'"
    return f"returned {type(output).__name__}, must return {wanted}"


def holds_values(value: Any) -> bool:
    """Say whether something returned is a tensor whose elements can be read: strided, on a device."""
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type != "meta"


def without_codes(problem: Problem, rules: Contract) -> str:
    """Return the name of a dequantized weight whose codes the contract or the op needs, or ""."""
    D, record = problem.case.torch_dtype, record_of(problem.case.op)
    for name, value in problem.args.items():
        if isinstance(value, DenseWeight):
            reads = not record.sums_products or D is None
            if reads or needs_codes(rules, D, value.values.dtype):  # type: ignore[arg-type]
                return name
    return ""


def wrong_shape(problem: Problem, outputs: Output, rules: Contract) -> str:
    """Return the first complaint about shape, dtype, device or an undeclared stage, or ""."""
    record = record_of(problem.case.op)
    shapes = record.shapes(problem)
    for name, value in outputs.items():
        dtype = record.result_dtype(name, problem.case)
        if name == "partial":
            ranks = rules.ranks
            if ranks is None or not ranks.partial:
                return f"partial: got a stored stage, but contract {rules.name!r} makes no partial sums of ranks"
            shapes = {**shapes, "partial": (ranks.count * shapes["out"][0], shapes["out"][1])}
            dtype = torch.float32 if ranks.kept == "fp32" else dtype
        complaint = wrong_tensor(name, value, shapes[name], dtype, problem.device)
        if complaint:
            return complaint
        if record.layer and name not in (*rules.stores, "partial"):
            return f"{name}: got a stored stage, but contract {rules.name!r} stores {', '.join(rules.stores)} only"
    return ""


def wrong_tensor(
    name: str, value: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> str:
    """Return the first complaint about one tensor's shape, dtype, device or memory layout, or ""."""
    if tuple(value.shape) != shape:
        return f"{name}: got shape {list(value.shape)}, must be {list(shape)}"
    if value.dtype != dtype:
        return f"{name}: got dtype {value.dtype}, must be {dtype}"
    elsewhere = None not in (value.device.index, device.index) and value.device.index != device.index
    if value.device.type != device.type or elsewhere:
        return f"{name}: got device {value.device}, must be {device}"
    if value.layout != torch.strided:
        return f"{name}: got layout {value.layout}, must be torch.strided"
    return ""
