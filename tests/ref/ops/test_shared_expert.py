"""Shared expert: the formula, each known rounding by literals, quantized weights."""

from __future__ import annotations

import math

import pytest
import torch

from moeracle.ref.ops.shared_expert import (
    add_shared,
    fused_gate_mul,
    fused_silu_mul,
    shared_expert,
    sigmoid_gate,
    unfused_gate_mul,
)
from moeracle.ref.ops.tiny_dot import tiny_dot
from moeracle.ref.weights.layouts import pack_int4
from moeracle.ref.weights.weight import Int4Weight

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def weights(I=4, H=6, dtype=BF16):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)
    return draw(5, H), draw(2 * I, H), draw(H, I), draw(H)


def test_by_hand():
    # h = (gate 128, -128, up 2, 3): silu is exactly (128, -0) in fp32; a = (256, -0)
    x = torch.tensor([[128.0, 1.0]])
    w_gate_up = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, 3.0]])
    w_down = torch.tensor([[1.0, 5.0], [0.5, 7.0]])
    assert shared_expert(x, w_gate_up, w_down).tolist() == [[256.0, 128.0]]
    # x·g = 0 opens the gate by half
    assert shared_expert(x, w_gate_up, w_down, torch.tensor([1.0, -128.0])).tolist() == [[128.0, 64.0]]


def test_formula_in_fp64():
    x, w_gate_up, w_down, gate = weights()
    out = shared_expert(x, w_gate_up, w_down, gate, dtype=FP64)
    for t in range(5):
        row = x[t].tolist()
        h = [sum(a * b for a, b in zip(row, w, strict=True)) for w in w_gate_up.tolist()]
        a = [g * sigmoid(g) * u for g, u in zip(h[:4], h[4:], strict=True)]
        opened = sigmoid(sum(p * q for p, q in zip(row, gate.tolist(), strict=True)))
        for n, w in enumerate(w_down.tolist()):
            assert math.isclose(out[t, n].item(), opened * sum(p * q for p, q in zip(a, w, strict=True)), rel_tol=1e-12,
                                abs_tol=1e-13)  # fmt: skip
    torch.testing.assert_close(shared_expert(x, w_gate_up, w_down, gate).double(), out, rtol=1e-5, atol=1e-6)


def test_silu_is_rounded_before_the_product():
    gate, up = torch.tensor([1.0, 1.5, -1.0, -0.0]), torch.tensor([1.125, 3.0, 7.0, 2.0])
    # D(silu) = 0.73046875, 1.2265625, -0.26953125; an fp32 product would give 0.82421875, 3.671875, -1.8828125
    got = fused_silu_mul(gate.to(BF16), up.to(BF16))
    assert got.dtype == BF16
    assert got.tolist() == [0.8203125, 3.6875, -1.890625, 0.0]
    assert math.copysign(1, got[3].item()) == -1
    # fp16: D(silu(1)) = 0.73095703125; an fp32 product with 1.25 would give 0.9140625
    got = fused_silu_mul(torch.tensor([1.0], dtype=FP16), torch.tensor([1.25], dtype=FP16))
    assert got.tolist() == [0.91357421875]


def test_the_two_gates_round_differently():
    # sigmoid(2.003) = 0.88111 is 0.8828125 in bf16; a stored dot is 2.0 first, and sigmoid(2) is 0.87890625
    dot = torch.tensor([[2.003]])
    total = torch.tensor([[1.003, 1.5, 3.0]])
    assert fused_gate_mul(total, dot, BF16).tolist() == [[0.8828125, 1.328125, 2.65625]]
    assert unfused_gate_mul(total, dot, BF16).tolist() == [[0.87890625, 1.3203125, 2.640625]]
    # fp16: 0.7 is stored as 0.7001953125
    dot, total = torch.tensor([[0.7]]), torch.tensor([[1.5]])
    assert fused_gate_mul(total, dot, FP16).tolist() == [[1.001953125]]
    assert unfused_gate_mul(total, dot, FP16).tolist() == [[1.0029296875]]


def test_bias_is_added_before_the_first_rounding():
    # 1 + 2^-9 alone rounds to 1; with a bias of 2^-9 it is 1 + 2^-8, a tie that goes to 1; with 2^-8 it goes up
    total = torch.tensor([[1 + 2.0**-9] * 3])
    bias = torch.tensor([0.0, 2.0**-9, 2.0**-8]).to(BF16)
    wide_open = torch.tensor([[100.0]])
    assert fused_gate_mul(total, wide_open, BF16, bias).tolist() == [[1.0, 1.0, 1 + 2.0**-7]]


def test_fp64_sums_are_rounded_once():
    total = torch.tensor([[1 + 2.0**-8 + 2.0**-40]], dtype=FP64)  # through fp32 it would be a tie, and become 1
    wide_open = torch.tensor([[100.0]], dtype=FP64)
    assert fused_gate_mul(total, wide_open, BF16).tolist() == [[1 + 2.0**-7]]
    assert unfused_gate_mul(total, wide_open, BF16).tolist() == [[1 + 2.0**-7]]


def test_add_shared_rounds_once():
    routed = torch.tensor([1.0, 1 + 2.0**-7, 3e38, math.inf]).to(BF16)
    shared = torch.tensor([2.0**-8, 2.0**-8, 3e38, -1.0]).to(BF16)
    assert add_shared(routed, shared).tolist() == [1.0, 1 + 2.0**-6, math.inf, math.inf]  # ties to even


@pytest.mark.parametrize("rounding", ["fused", "unfused"])
@pytest.mark.parametrize("gated", [False, True])
def test_roundings_compose(rounding, gated):
    x, w_gate_up, w_down, gate = weights()
    got = shared_expert(x, w_gate_up, w_down, gate if gated else None, rounding=rounding, dtype=FP64)
    assert got.dtype == BF16
    gate_half, up = (x.double() @ w_gate_up.double().T).float().to(BF16).float().split(4, dim=1)
    a = torch.nn.functional.silu(gate_half).to(BF16).float() * up
    y = a.to(BF16).double() @ w_down.double().T
    D = lambda v: v.float().to(BF16)
    if not gated:
        assert torch.equal(got, D(y))
        return
    dot = (x.double() @ gate.double())[:, None]
    opened = D(torch.sigmoid(dot if rounding == "fused" else D(dot).double()))
    assert torch.equal(got, D(D(y).float() * opened.float()))


def test_fused_and_unfused_disagree_somewhere():
    x, w_gate_up, w_down, gate = weights(I=32, H=64)
    fused, unfused = (shared_expert(x, w_gate_up, w_down, gate, rounding=r) for r in ("fused", "unfused"))
    assert not torch.equal(fused, unfused)
    torch.testing.assert_close(fused, unfused, rtol=2**-6, atol=0)


def test_int4_weights_equal_their_dense_values():
    generator = torch.Generator().manual_seed(3)

    def int4(N, K):
        codes = torch.randint(0, 16, (N, K), generator=generator, dtype=torch.uint8)
        scale = (torch.rand(N, K // 32, generator=generator) / 8).to(BF16)
        return Int4Weight(pack_int4(codes, "exllama"), scale, None, "exllama", 32), (codes.float() - 8) * (
            scale.float().repeat_interleave(32, 1)
        )

    x = torch.randn(3, 64, generator=generator).to(BF16)
    (q1, d1), (q2, d2) = int4(64, 64), int4(64, 32)
    for rounding in ("none", "fused", "unfused"):
        assert torch.equal(
            shared_expert(x, q1, q2, x[0], rounding=rounding), shared_expert(x, d1, d2, x[0], rounding=rounding)
        )


def test_tiny_dot():
    x = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])
    w = torch.tensor([4.0, 5.0, -6.0])
    assert tiny_dot(x, w).tolist() == [[-4.0], [8.0]]
    assert torch.equal(tiny_dot(x, w[None]), tiny_dot(x, w))
    got = sigmoid_gate(x, w, dtype=FP64)
    torch.testing.assert_close(got, torch.tensor([[sigmoid(-4)], [sigmoid(8)]], dtype=FP64), rtol=1e-15, atol=0)
    # products and sum are not rounded to bf16: 256 + 1 - 256
    exact = tiny_dot(torch.tensor([[256.0, 1.0, -256.0]]).to(BF16), torch.ones(3).to(BF16))
    assert exact.tolist() == [[1.0]]


def test_no_tokens():
    x, w_gate_up, w_down, gate = weights()
    for rounding, dtype in (("none", FP32), ("fused", BF16), ("unfused", BF16)):
        out = shared_expert(x[:0], w_gate_up, w_down, gate, rounding=rounding)
        assert (out.shape, out.dtype) == ((0, 6), dtype)


def test_refusals():
    x, w_gate_up, w_down, gate = weights()
    with pytest.raises(ValueError, match=r"x: got shape \(6,\)"):
        shared_expert(x[0], w_gate_up, w_down)
    with pytest.raises(ValueError, match=r"w_gate_up: got shape \(7, 6\), must be \[2I, 6\]"):
        shared_expert(x, w_gate_up[:7], w_down)
    with pytest.raises(ValueError, match=r"w_down: got shape \(4, 6\), must be \(6, 4\)"):
        shared_expert(x, w_gate_up, w_down.T)
    with pytest.raises(ValueError, match=r"w: got shape \(5,\), must be \(6,\) or \(1, 6\)"):
        shared_expert(x, w_gate_up, w_down, gate[:5])
    with pytest.raises(ValueError, match="did you mean 'fused'"):
        shared_expert(x, w_gate_up, w_down, rounding="fuse")
    with pytest.raises(ValueError, match=r"x: got torch\.float32, must be bf16 or fp16"):
        shared_expert(x.float(), w_gate_up, w_down, rounding="fused")
    with pytest.raises(ValueError, match="must be one of D"):
        fused_silu_mul(x, x.half())
    with pytest.raises(ValueError, match="up: got shape"):
        fused_silu_mul(x, x[:1])
    for gate_mul in (fused_gate_mul, unfused_gate_mul):
        with pytest.raises(ValueError, match=r"D: got torch\.float32"):
            gate_mul(torch.ones(1, 1), torch.ones(1, 1), FP32)
    with pytest.raises(ValueError, match="shared: got"):
        add_shared(x, x.half())
