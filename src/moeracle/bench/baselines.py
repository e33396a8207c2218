"""Baselines of the benchmark: torch and cuBLAS on the same ops, judged and timed as any second implementation.

    moeracle kernels bench --op int4_linear --kernel int4_linear.hopper --against moeracle.bench.baselines

Int4 and int8 weights are dequantized once, on first use, and kept as dense weights in the activations' dtype: what is
timed is a dense matrix product, with four times (two times) the bytes. cuBLAS adds in fp32 here, as contracts demand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import linear, silu
from torch.utils.weak import WeakTensorKeyDictionary

from moeracle.kernels.entry import EXLLAMA_ZEROS
from moeracle.ref.weights.weight import Int4Weight
from moeracle.target.declaration import kernel

CAST_INT8 = "int8_lm_head,weight=cast,accumulator=tensor_core"
_DENSE = WeakTensorKeyDictionary()


def _dense(stored: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return the dense weight of a stored one, made on first use and kept as long as the stored one lives."""
    if stored not in _DENSE:
        _DENSE[stored] = make()
    found: torch.Tensor = _DENSE[stored]
    return found


def _int4(w: Int4Weight, dtype: torch.dtype) -> torch.Tensor:
    return _dense(w.packed, lambda: w.dequantize().to(dtype))


def _int8(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    groups = scale.reshape(codes.shape[0], -1, 1)
    return _dense(codes, lambda: (codes.unflatten(1, (groups.shape[1], -1)) * groups).flatten(1).to(dtype))


@contextmanager
def _sums_in_fp32() -> Iterator[None]:
    """Keep cuBLAS from adding the parts of a product in bf16 or fp16."""
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    before = {name: getattr(torch.backends.cuda.matmul, name) for name in names}
    try:
        for name in names:
            setattr(torch.backends.cuda.matmul, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cuda.matmul, name, value)


@kernel("int4_linear", name="torch.linear", layout="exllama", zeros=EXLLAMA_ZEROS, device="cuda", contract="grouped")
def torch_linear(x: torch.Tensor, w: Int4Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """y = x W^T + bias, W dense in x's dtype."""
    with _sums_in_fp32():
        return linear(x, _int4(w, x.dtype), bias)


@kernel("int8_lm_head", name="torch.lm_head", device="cuda", contract=CAST_INT8)
def torch_lm_head(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """y = x W^T + bias, W = codes * scale rounded to x's dtype."""
    with _sums_in_fp32():
        return linear(x, _int8(codes, scale, x.dtype), bias)


@kernel(
    "shared_expert",
    name="torch.shared_expert",
    layout="exllama",
    zeros=EXLLAMA_ZEROS,
    device="cuda",
    contract="grouped,gate=unfused",
)
def torch_shared_expert(
    x: torch.Tensor, w_gate_up: Int4Weight, w_down: Int4Weight, gate_weight: torch.Tensor | None
) -> torch.Tensor:
    """y = (silu(x W_gate^T) * x W_up^T) W_down^T * sigmoid(x g), every step rounded to x's dtype."""
    with _sums_in_fp32():
        gate, up = linear(x, _int4(w_gate_up, x.dtype)).chunk(2, dim=1)
        y = linear(silu(gate) * up, _int4(w_down, x.dtype))
        return y if gate_weight is None else y * torch.sigmoid(linear(x, gate_weight.reshape(1, -1)))


@kernel("topk_softmax", name="torch.topk_softmax", device="cuda", dtypes=("bf16", "fp16", "fp32"))
def torch_topk_softmax(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax and top-k by a stable sort: of equal logits torch.topk may take any, the op takes the first."""
    ids = logits.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    weights = torch.softmax(logits.float(), 1).gather(1, ids)
    return (weights / weights.sum(1, keepdim=True) if renormalize else weights), ids.to(torch.int32)


@kernel("topk_softmax", name="torch.route", device="cuda", dtypes=("bf16", "fp16", "fp32"))
def torch_route(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Do all that route_triton.route does in one or two launches: choose, align to 16, order, cut into blocks."""
    from moeracle.kernels.triton import moe_permute_torch
    from moeracle.kernels.triton.grouped_gemm import block_table

    weights, ids = torch_topk_softmax(logits, top_k, renormalize)
    moe_permute_torch.moe_align_block_size(ids, 16, logits.shape[1])
    _, offsets, _ = moe_permute_torch.moe_permute(logits[:, :1], ids, logits.shape[1])
    block_table(offsets, ids.numel(), 16)
    return weights, ids
