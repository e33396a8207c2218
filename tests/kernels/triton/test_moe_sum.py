"""The sum over k in slot order: against fp64, against moe_unpermute bit for bit, and blind to rows nobody wrote."""

from __future__ import annotations

import pytest
import torch

from moeracle.kernels.triton.moe_sum import moe_sum
from moeracle.kernels.triton.moe_unpermute import moe_unpermute


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("T", "k", "H"), [(0, 2, 16), (1, 1, 8), (5, 3, 40), (3, 8, 300)])
def test_it_is_moe_unpermute_without_a_permutation(device, dtype, T, k, H):
    g = torch.Generator().manual_seed(T)
    wide = torch.randn(T * k, H + 8, generator=g).to(dtype).to(device)
    y, weights = wide[:, :H], torch.rand(T, k, generator=g).to(device)
    ids = torch.zeros(T, k, dtype=torch.int32, device=device)
    out = moe_sum(y, weights, ids)
    slot_to_row = torch.arange(T * k, dtype=torch.int32, device=device)
    assert torch.equal(out, moe_unpermute(y, weights, slot_to_row))
    exact = (y.double().reshape(T, k, H) * weights.double()[:, :, None]).sum(1)
    assert ((out.double() - exact).abs() <= exact.abs() * 2.0**-8 + 1e-6).all()


def test_rows_of_ignored_slots_are_not_read(device):
    y = torch.ones(4, 16, device=device).bfloat16()
    y[1] = float("nan")
    y[2:] = float("inf")
    ids = torch.tensor([[3, -1], [-1, -1]], dtype=torch.int32, device=device)
    out = moe_sum(y, torch.full((2, 2), 0.5, device=device), ids).cpu()
    assert (out[0] == 0.5).all()
    assert not out[1].any()


def test_bad_shapes_are_named(device):
    y, w = torch.zeros(4, 16, device=device).bfloat16(), torch.zeros(2, 2, device=device)
    with pytest.raises(ValueError, match="y: got shape"):
        moe_sum(y[:3], w, torch.zeros(2, 2, dtype=torch.int32, device=device))
    with pytest.raises(ValueError, match="topk_ids: got shape"):
        moe_sum(y, w, torch.zeros(1, 2, dtype=torch.int32, device=device))
