"""What a kernel must return: how many tensors, their shape, dtype and device."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.ref.contract import STAGES, Contract

from ..optable import OPS
from ..problem import Problem

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
            if name not in STAGES or not isinstance(value, torch.Tensor):
                return f"returned stage {name!r} as {type(value).__name__}, must be a tensor named h, a, y or out"
        return output if "out" in output else f"returned stages {', '.join(output) or 'none'}, must include 'out'"
    return f"returned {type(output).__name__}, must return {wanted}"


def holds_values(value: Any) -> bool:
    """Say whether something returned is a tensor whose elements can be read: strided, on a device."""
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type != "meta"


def wrong_shape(problem: Problem, outputs: Output, rules: Contract) -> str:
    """Return the first complaint about shape, dtype, device or an undeclared stage, or ""."""
    op, shapes = problem.case.op, expected_shapes(problem)
    dtype = torch.uint8 if op == "unpack_int4" else problem.case.torch_dtype
    assert dtype is not None
    for name, value in outputs.items():
        complaint = wrong_tensor(name, value, shapes[name], dtype, problem.device)
        if complaint:
            return complaint
        if OPS[op].layer and name not in rules.stores:
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


def expected_shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    """Return the shape of each stage that a kernel of a float op may return."""
    args, op = problem.args, problem.case.op
    if op == "moe_w4a16":
        T, k = args["topk_ids"].shape
        H, I = args["w2"].N, args["w2"].K
        return {"h": (T * k, 2 * I), "a": (T * k, I), "y": (T * k, H), "out": (T, H)}
    if op == "shared_expert":
        T, I, H = args["x"].shape[0], args["w_down"].K, args["w_down"].N
        return {"h": (T, 2 * I), "a": (T, I), "y": (T, H), "out": (T, H)}
    if op == "tiny_dot":
        return {"out": (args["x"].shape[0], 1)}
    if op in ("unpack_int4", "dequantize_int4"):
        return {"out": tuple(args["w"].shape)}
    if op == "silu_and_mul":
        return {"out": (args["h"].shape[0], args["h"].shape[1] // 2)}
    if op == "moe_unpermute":
        return {"out": (args["topk_weights"].shape[0], args["y"].shape[1])}
    if op == "int8_lm_head":
        return {"out": (args["x"].shape[0], args["codes"].shape[0])}
    rows = args["x"].shape[0] * (args["top_k"] if op == "padded_gemm" else 1)
    return {"out": (rows, args["w"].N)}
