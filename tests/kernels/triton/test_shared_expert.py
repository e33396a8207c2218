"""The shared expert, its gate, and the dense W4A16 linear for few rows."""

from __future__ import annotations

import pytest
import torch

from moeracle.kernels.triton.int4_linear import int4_linear, int4_linear_dot, int4_linear_rows
from moeracle.kernels.triton.shared_expert import shared_expert
from moeracle.kernels.triton.tiny_dot import tiny_dot

SIZES = [(1, 64, 32, 32), (9, 96, 40, 8), (4, 72, 24, 24), (20, 64, 96, 32), (3, 40, 24, -1)]


@pytest.fixture
def layer(make_weight, device):
    """Return f(T, H, I, G, zero, dtype) → x, both weights, a gate weight, and the weights' exact values."""

    def make(T, H, I, G, zero="sym", dtype=torch.bfloat16):
        g = torch.Generator().manual_seed(T)
        x = torch.randn(T, H + 8, generator=g).to(dtype)[:, :H]
        up, W13 = make_weight(2 * I, H, G=G, zero=zero, dtype=dtype, pad=3, seed=1)
        down, W2 = make_weight(H, I, G=G, zero=zero, dtype=dtype, seed=2)
        return x.to(device), up, down, (torch.randn(H, generator=g) / 8).to(dtype).to(device), W13, W2

    return make


def rounded(x, dtype):
    return x.float().to(dtype).double()


def near(got, want, share=0.02):
    """All within two ulp, and all but a few equal: fp32 sums and exp may cross a tie."""
    got, want = got.cpu().double(), want.cpu()
    eps = 2.0**-7 if got.numel() and want.dtype == torch.float64 else 0.0
    assert got.shape == want.shape
    assert ((got - want).abs() <= 2 * eps * want.abs() + 1e-6).all()
    assert got.numel() == 0 or (got != want).double().mean() < share


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zero", ["sym", "unpacked", "rdna"])
@pytest.mark.parametrize(("T", "H", "I", "G"), SIZES)
def test_rounds_where_it_says(layer, T, H, I, G, zero, dtype):
    x, up, down, gate, W13, W2 = layer(T, H, I, G, zero, dtype)
    h = rounded(x.cpu().double() @ W13.T, dtype)
    a = rounded(rounded(h[:, :I] * torch.sigmoid(h[:, :I]), dtype) * h[:, I:], dtype)
    stages = shared_expert(x, up, down, gate, return_stages=True)
    near(stages["a"], a, 0.05)
    y = rounded(stages["a"].cpu().double() @ W2.T, dtype)
    s = rounded(torch.sigmoid(x.cpu().double() @ gate.cpu().double()), dtype)
    near(stages["out"], rounded(y * s[:, None], dtype))
    near(shared_expert(x, up, down), y)
    assert torch.equal(shared_expert(x, up, down, gate[None, :]), stages["out"])


def test_product_with_the_gate_is_not_taken_in_fp32(layer):
    x, up, down, gate, _, W2 = layer(20, 64, 96, 32)
    stages = shared_expert(x, up, down, gate, return_stages=True)
    y = stages["a"].cpu().double() @ W2.T
    in_fp32 = rounded(y * torch.sigmoid(x.cpu().double() @ gate.cpu().double())[:, None], torch.bfloat16)
    assert (stages["out"].cpu().double() != in_fp32).double().mean() > 0.1


def test_gates_far_out(layer):
    x, up, down, gate, _, _ = layer(4, 64, 32, 32)
    plain = shared_expert(x, up, down)
    far = torch.zeros_like(gate)
    far[0] = 2.0**100
    x[:, 0] = torch.tensor([2.0**20, -(2.0**20), 0.0, 1.0], dtype=x.dtype)
    out = shared_expert(x, up, down, far)
    plain = shared_expert(x, up, down)
    assert torch.equal(out[[0, 3]], plain[[0, 3]])  # sigmoid 1
    assert not out[1].any()  # 0, not NaN
    assert torch.equal(out[2].float() * 2, plain[2].float())  # 1/2


def test_no_tokens_and_mistakes(layer, make_weight, device):
    x, up, down, gate, _, _ = layer(3, 64, 32, 32)
    assert shared_expert(x[:0], up, down, gate).shape == (0, 64)
    odd, _ = make_weight(33, 64)
    other, _ = make_weight(48, 32)
    for call, message in (
        (lambda: shared_expert(x, odd, down), "w_gate_up: got 33 rows, must be an even number"),
        (lambda: shared_expert(x, up, other), "w_down: got 48 rows, must be x's H = 64"),
        (lambda: shared_expert(x, up, down, gate[:5]), "gate_weight: got"),
        (lambda: shared_expert(x, up, down, gate.float()), "gate_weight: got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("T", "K"), [(1, 7), (9, 700), (130, 96), (0, 8)])
def test_tiny_dot(device, dtype, T, K):
    g = torch.Generator().manual_seed(K)
    x = torch.randn(T, K + 3, generator=g).to(dtype)[:, :K]
    w = (torch.randn(K, generator=g) / 8).to(dtype)
    dot = (x.double() @ w.double())[:, None]
    slack = x.double().abs() @ w.double().abs() * K * 2.0**-24
    for sigmoid, want in ((False, dot), (True, torch.sigmoid(dot))):
        for shape in ((K,), (1, K)):
            got = tiny_dot(x.to(device), w.reshape(shape).to(device), sigmoid).cpu()
            assert got.dtype == dtype
            assert got.shape == (T, 1)
            low, high = ((want + sign * (slack[:, None] + 2.0**-20)).float().to(dtype) for sign in (-1, 1))
            assert ((low <= got) & (got <= high)).all()
    with pytest.raises(ValueError, match="w: got"):
        tiny_dot(x.to(device), w[:-1].to(device))


@pytest.mark.parametrize("kernel", [int4_linear, int4_linear_dot, int4_linear_rows])
@pytest.mark.parametrize("zero", ["sym", "unpacked", "rdna"])
@pytest.mark.parametrize(("T", "N", "K", "G"), [(1, 40, 96, 32), (2, 24, 72, 24), (5, 48, 40, 8), (0, 8, 16, -1)])
def test_linear(make_weight, assert_close, device, T, N, K, G, zero, kernel):
    w, W = make_weight(N, K, G=G, zero=zero, pad=5)
    x, bias = torch.randn(T, K + 4).to(torch.bfloat16)[:, :K], torch.randn(N).to(torch.bfloat16)
    y = x.double() @ W.T
    assert_close(kernel(x.to(device), w, bias.to(device)), y + bias.double(), x.double().abs() @ W.abs().T + 4)
    assert_close(kernel(x.to(device), w), y, x.double().abs() @ W.abs().T)
