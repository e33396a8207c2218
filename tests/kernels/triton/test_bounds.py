"""No kernel reads or writes one element outside the tensors that it was given, tails of every kind included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from moeracle.kernels.choose import int8_lm_head
from moeracle.kernels.triton import moe_permute
from moeracle.kernels.triton.decode_gemm import decode_gemm
from moeracle.kernels.triton.dequantize_int4 import dequantize_int4, unpack_int4
from moeracle.kernels.triton.int4_linear import int4_linear
from moeracle.kernels.triton.interpreter import enable as interpreter
from moeracle.kernels.triton.moe_permute_torch import moe_align_block_size
from moeracle.kernels.triton.moe_unpermute import moe_unpermute
from moeracle.kernels.triton.moe_w4a16 import moe_w4a16_grouped, moe_w4a16_padded
from moeracle.kernels.triton.padded_gemm import padded_gemm
from moeracle.kernels.triton.route import route
from moeracle.kernels.triton.shared_expert import shared_expert
from moeracle.kernels.triton.silu_and_mul import silu_and_mul
from moeracle.kernels.triton.tiles import Tile
from moeracle.kernels.triton.tiny_dot import tiny_dot
from moeracle.kernels.triton.topk_softmax import topk_softmax

pytestmark = pytest.mark.skipif(not interpreter.is_interpreting(), reason="watches the interpreter's memory accesses")
SMALL = Tile(16, 32, 32)


@pytest.fixture
def watched(monkeypatch):
    """Watch every launch: an address outside all of its tensors is an error. Yields a list of accesses."""
    from triton.runtime import interpreter as ti

    spans: list[tuple[int, int]] = []
    accesses: list[str] = []
    run = ti.GridExecutor.__call__

    def launch(self, *args, **kwargs):
        spans[:] = [reach(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        return run(self, *args, **kwargs)

    def watch(name, mask_at):
        original = getattr(ti.InterpreterBuilder, name)

        def access(self, ptrs, *args):
            address = np.broadcast_to(ptrs.data, args[mask_at].data.shape)[args[mask_at].data].astype(np.int64)
            inside = np.zeros(address.shape, bool)
            for first, last in spans:
                inside |= (first <= address) & (address < last)
            assert inside.all(), f"{name} outside of every tensor: {(~inside).sum()} elements"
            accesses.append(name)
            return original(self, ptrs, *args)

        monkeypatch.setattr(ti.InterpreterBuilder, name, access)

    monkeypatch.setattr(ti.GridExecutor, "__call__", launch)
    watch("create_masked_load", 0)
    watch("create_masked_store", 1)
    return accesses


def reach(t: torch.Tensor) -> tuple[int, int]:
    """Return the first address of a tensor and the one after its last element."""
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) + 1 if t.numel() else 0
    return t.data_ptr(), t.data_ptr() + last * t.element_size()


@pytest.mark.parametrize("zero", ["sym", "unpacked", "rdna"])
@pytest.mark.parametrize("G", [8, 12, -1])
def test_gemms(make_weight, watched, zero, G):
    T, E, k, H, I = 5, 3, 2, 72, 24
    w13, _ = make_weight(E, 2 * I, H, G=G, zero=zero)
    w2, _ = make_weight(E, H, I, G=G, zero=zero)
    x, weights = torch.randn(T, H).to(torch.bfloat16), torch.rand(T, k)
    ids = torch.tensor([[0, 2], [2, 0], [-1, 2], [2, 0], [0, -1]], dtype=torch.int32)
    moe_w4a16_grouped(x, w13, w2, weights, ids)
    moe_w4a16_padded(x, w13, w2, weights, ids)
    decode_gemm(x, w13, ids, config=SMALL)
    sorted_ids, experts, end = moe_align_block_size(ids, 16, E)
    padded = padded_gemm(x, w13, sorted_ids, experts, end, None, k)
    negative = torch.where(sorted_ids < T * k, sorted_ids, -7)  # padding that is below the ids, not above
    assert torch.equal(padded_gemm(x, w13, negative, experts, end, None, k), padded)
    one, _ = make_weight(40, 72, G=G, zero=zero)
    int4_linear(x, one, torch.randn(40).to(torch.bfloat16), config=SMALL)
    dequantize_int4(w13)
    assert {"create_masked_load", "create_masked_store"} <= set(watched)


def test_elementwise(make_weight, watched):
    silu_and_mul(torch.randn(5, 14).to(torch.bfloat16))
    moe_unpermute(torch.randn(6, 7).to(torch.float16), torch.rand(3, 2), torch.randperm(6).int())
    topk_softmax(torch.randn(3, 5), 3, True)
    unpack_int4(make_weight(3, 5, 24, G=8)[0])
    assert len(watched) > 8


@pytest.mark.parametrize("T", [1, 3, 21])
def test_routing(watched, T):
    logits = torch.randn(T, 5)
    somewhere = torch.tensor([1, -1, 0, 2, -1])
    for launches in ({}, {"one_launch": 0, "tokens": 4}):
        for expert_map in (None, somewhere):
            got = route(logits, 3, block_size=4, block_m=5, expert_map=expert_map, **launches)
    ids = torch.where(got.ids == 3, -1, got.ids)
    moe_permute.moe_align_block_size(ids, 7, 5, somewhere, run=10, alone=0)
    moe_permute.moe_permute(torch.randn(T, 11)[:, 2:9], ids, 5, run=10, alone=0)
    assert len(watched) > 20


@pytest.mark.parametrize(("T", "V", "K", "G"), [(1, 37, 70, 7), (3, 70, 160, 16), (9, 37, 96, 0), (19, 37, 96, 48)])
def test_lm_head(watched, T, V, K, G):
    codes, scale = torch.randint(-128, 128, (V, K), dtype=torch.int8), torch.rand(V, *((K // G,) if G else ()))
    int8_lm_head(torch.randn(T, K).to(torch.bfloat16), codes, scale, torch.randn(V).to(torch.bfloat16))
    assert len(watched) > 3


@pytest.mark.parametrize("T", [1, 5])
def test_shared_expert(make_weight, watched, T):
    x, gate = torch.randn(T, 40).to(torch.bfloat16), torch.randn(40).to(torch.bfloat16)
    up, down = make_weight(2 * 24, 40, G=8, zero="rdna")[0], make_weight(40, 24, G=8, zero="unpacked")[0]
    shared_expert(x, up, down, gate)
    tiny_dot(x, gate, True)
    assert len(watched) > 5
