"""silu_and_mul, unpermute, top-k, unpack and dequantize against fp64 or exact integers."""

from __future__ import annotations

import pytest
import torch

from moeracle.kernels.triton.dequantize_int4 import dequantize_int4, unpack_int4
from moeracle.kernels.triton.moe_unpermute import moe_unpermute
from moeracle.kernels.triton.silu_and_mul import silu_and_mul
from moeracle.kernels.triton.topk_softmax import topk_softmax


def finite(dtype):
    """Return every finite value of a 16-bit dtype."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.isfinite()]


def rounds_to(got, low, high):
    """Say for each element whether it is the rounding of some value in [low, high] (fp64; D's rounding is monotone)."""
    D = got.dtype
    return (got >= low.float().to(D)) & (got <= high.float().to(D))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_silu_of_every_gate(device, dtype):
    gate = finite(dtype)
    ones = torch.ones_like(gate)
    a = silu_and_mul(torch.stack([gate, ones], 1).to(device)).cpu()[:, 0]
    g = gate.double()
    y = torch.where(g < -700, torch.zeros_like(g), g * torch.sigmoid(g))
    error = (8 + 1.2 * g.abs() * torch.sigmoid(-g)) * 2.0**-23 * y.abs() + 2.0**-149
    wrong = ~rounds_to(a, y - error, y + error)
    assert not wrong.any(), f"{int(wrong.sum())} wrong, first silu({gate[wrong][0]}) = {a[wrong][0]} for {y[wrong][0]}"
    assert a.signbit().equal(gate.signbit())


def test_silu_rounds_before_it_multiplies(device):
    g = torch.Generator().manual_seed(0)
    h = torch.randn(7, 2 * 50 + 6, generator=g).to(torch.bfloat16).to(device)[:, 3:103]
    gate, up = h.cpu().double().chunk(2, dim=1)
    rounded = (gate * torch.sigmoid(gate)).float().to(torch.bfloat16)
    want = (rounded.double() * up).float().to(torch.bfloat16)
    once = (gate * torch.sigmoid(gate) * up).float().to(torch.bfloat16)
    got = silu_and_mul(h).cpu()
    assert (got != want).float().mean() < 0.01  # ties within fp32's error of silu
    assert (got != once).float().mean() > 0.05


def test_silu_limits(device):
    inf = torch.tensor([[float("inf"), 1.0], [float("-inf"), 1.0], [float("nan"), 1.0]], dtype=torch.bfloat16)
    a = silu_and_mul(inf.to(device)).cpu().flatten()
    assert a[0] == float("inf")
    assert a[1] == 0
    assert a[2].isnan()
    assert silu_and_mul(torch.empty(0, 8, dtype=torch.float16, device=device)).shape == (0, 4)


@pytest.mark.parametrize(("T", "k", "H"), [(5, 3, 40), (1, 1, 7), (0, 2, 16)])
def test_unpermute_adds_in_slot_order(device, T, k, H):
    g = torch.Generator().manual_seed(0)
    y = torch.randn(T * k, H + 5, generator=g).to(torch.bfloat16)[:, 2 : H + 2]
    w, inv = torch.rand(T, k, generator=g), torch.randperm(T * k, generator=g)
    out = moe_unpermute(y.to(device), w.to(device), inv.int().to(device)).cpu()
    terms = y[inv].double().reshape(T, k, H) * w.double()[:, :, None]
    want, error = terms.sum(1), terms.abs().sum(1) * (2 * k * 2.0**-24)
    assert out.shape == (T, H)
    assert rounds_to(out, want - error, want + error).all()


def test_unpermute_order_shows_in_the_bits(device):
    y = torch.tensor([[2.0**24], [1.0], [-(2.0**24)]]).to(torch.bfloat16)
    ones = torch.ones(1, 3, device=device)
    order = torch.tensor([0, 2, 1], dtype=torch.int32, device=device)
    assert moe_unpermute(y.to(device), ones, order).item() == 1.0  # big, -big, then 1
    assert moe_unpermute(y.to(device), ones, order.sort().values).item() == 0.0  # 1 is lost beside 2**24


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("T", "E", "k"), [(9, 8, 2), (3, 5, 5), (70, 256, 8), (0, 4, 1), (2, 1, 1)])
def test_topk(device, T, E, k, renormalize):
    logits = torch.randn(T, E, generator=torch.Generator().manual_seed(2))
    wide = torch.nn.functional.pad(logits, (2, 3), value=99.0)  # rows of a wider tensor
    weights, ids = topk_softmax(wide.to(device)[:, 2 : E + 2], k, renormalize)
    want, order = torch.softmax(logits.double(), -1).sort(dim=-1, descending=True, stable=True)
    want = want[:, :k] / (want[:, :k].sum(-1, keepdim=True) if renormalize else 1)
    assert torch.equal(ids.cpu().long(), order[:, :k])
    assert torch.allclose(weights.cpu().double(), want, rtol=1e-6, atol=0)


def test_topk_ties_and_rows_that_are_not_finite(device):
    inf, nan = float("inf"), float("nan")
    rows = [[1, 3, 3, 3], [0, 0, 0, 0], [1, nan, 2, 3], [inf, 0, 1, 2], [-inf] * 4, [-inf, 5, -inf, 5]]
    weights, ids = topk_softmax(torch.tensor(rows, dtype=torch.float32, device=device), 3, True)
    assert ids.cpu().tolist() == [[1, 2, 3], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2], [1, 3, 0]]
    assert not weights[2:5].any()
    assert weights[5].cpu().tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("zero", ["sym", "unpacked", "rdna"])
@pytest.mark.parametrize(("shape", "G"), [((3, 24, 40), 8), ((16, 64), -1), ((8, 24), 12)])
def test_dequantize_is_exact(make_weight, device, shape, G, zero):
    w, W = make_weight(*shape, G=G, zero=zero, pad=5)
    assert torch.equal(dequantize_int4(w).cpu().double(), W)


@pytest.mark.parametrize("shape", [(3, 8, 40), (5, 24)])
def test_unpack_reads_all_sixteen_codes_and_the_sign_bit(make_weight, device, shape):
    w, W = make_weight(*shape, G=-1, integers=True, pad=32)
    codes = unpack_int4(w)
    assert codes.dtype == torch.uint8
    assert torch.equal(codes.cpu().double() - 8, W)
    assert codes.unique().numel() == 16
