"""The int8 lm_head against values worked out by hand and fp64."""

import pytest
import torch

from moeracle.ref.ops import int8_lm_head as lm_head
from moeracle.ref.ops.int8_lm_head import int8_lm_head
from moeracle.ref.weights.quantize import quantize_int8

torch.set_num_threads(1)


def test_per_channel_by_hand():
    x = torch.tensor([[1.0, 2.0, 0.0, -1.0]])
    codes = torch.tensor([[1, 1, 1, 1], [-128, 127, 5, 0]], dtype=torch.int8)
    scale = torch.tensor([0.5, 2.0])
    assert int8_lm_head(x, codes, scale).tolist() == [[1.0, 252.0]]
    assert int8_lm_head(x, codes, scale, torch.tensor([1.0, -2.0])).tolist() == [[2.0, 250.0]]


def test_per_group_by_hand():
    x = torch.tensor([[1.0, 2.0, 3.0, -1.0]])
    codes = torch.tensor([[1, 1, 1, 1], [-128, 127, 5, 0]], dtype=torch.int8)
    scale = torch.tensor([[0.5, 4.0], [2.0, 0.25]])
    # row 0: 3 * 0.5 + 2 * 4; row 1: 126 * 2 + 15 * 0.25
    assert int8_lm_head(x, codes, scale).tolist() == [[9.5, 255.75]]


def problem(T=3, V=40, K=64, group_size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes, scale = quantize_int8(torch.randn(V, K, generator=generator), group_size)
    return (
        torch.randn(T, K, generator=generator).bfloat16(),
        codes,
        scale,
        torch.randn(V, generator=generator).bfloat16(),
    )


def fp64_answer(x, codes, scale, bias):
    G = codes.shape[1] // (1 if scale.ndim == 1 else scale.shape[1])
    w = codes.double() * scale.double().view(len(scale), -1).repeat_interleave(G, 1)
    right, magnitude = x.double() @ w.mT, x.double().abs() @ w.abs().mT
    return right + bias.double(), magnitude + bias.double().abs()


@pytest.mark.parametrize("group_size", [-1, 16, 32, 64])
def test_within_the_stated_error(group_size):
    x, codes, scale, bias = problem(group_size=group_size)
    right, magnitude = fp64_answer(x, codes, scale, bias)
    got = int8_lm_head(x, codes, scale, bias)
    assert got.dtype == torch.float32
    assert ((got.double() - right).abs() <= ((1 + 2.0**-24) ** 66 - 1) * magnitude).all()
    double = int8_lm_head(x, codes, scale, bias, dtype=torch.float64)
    assert double.dtype == torch.float64
    assert ((double - right).abs() <= ((1 + 2.0**-53) ** 66 - 1) * 2 * magnitude).all()


def test_one_hot_rows_read_the_weights():
    _, codes, scale, _ = problem(K=64)
    w = codes.float() * scale.repeat_interleave(32, 1)
    assert torch.equal(int8_lm_head(torch.eye(64), codes, scale), w.mT)


@pytest.mark.parametrize("group_size", [-1, 32])
def test_row_blocks_do_not_show(monkeypatch, group_size):
    _, codes, _, _ = problem(V=50, group_size=group_size)
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-9, 10, (3, 64), generator=generator).float()  # integers: exact in any order
    scale = 2.0 ** torch.randint(-3, 4, (50,) if group_size == -1 else (50, 2), generator=generator)
    whole = int8_lm_head(x, codes, scale)
    monkeypatch.setattr(lm_head, "_CHUNK_BYTES", 7 * 64 * 4)
    assert torch.equal(int8_lm_head(x, codes, scale), whole)
    monkeypatch.setattr(lm_head, "_CHUNK_BYTES", 1)
    assert torch.equal(int8_lm_head(x, codes, scale), whole)


def test_strided_inputs_and_no_tokens():
    x, codes, scale, bias = problem()
    wide = torch.zeros(3, 100).bfloat16()
    wide[:, :64] = x
    got = int8_lm_head(wide[:, :64], codes.mT.contiguous().mT, scale.mT.contiguous().mT, bias)
    torch.testing.assert_close(got, int8_lm_head(x, codes, scale, bias), rtol=1e-5, atol=1e-5)
    assert int8_lm_head(x[:0], codes, scale, bias).shape == (0, 40)


def test_inputs_are_not_written():
    tensors = problem()
    kept = [tensor.clone() for tensor in tensors]
    int8_lm_head(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, kept, strict=True))
    x, codes, scale, bias = problem(group_size=-1)
    int8_lm_head(x.float(), codes, scale, bias)
    assert torch.equal(x, kept[0])


X, C, S = torch.ones(2, 8), torch.ones(4, 8, dtype=torch.int8), torch.ones(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: int8_lm_head(X[0], C, S), r"x: got shape \(8,\), must be \[T, K\]"),
        (lambda: int8_lm_head(X.int(), C, S), r"x: got torch\.int32"),
        (lambda: int8_lm_head(X, C.int(), S), r"codes: got torch\.int32, must be torch\.int8"),
        (lambda: int8_lm_head(X, C[:, :4], S), r"codes: got shape \(4, 4\), must be \[V, K\] with K = 8"),
        (lambda: int8_lm_head(X, C[0], S), r"codes: got shape \(8,\)"),
        (lambda: int8_lm_head(X, C, S[:3]), r"scale: got shape \(3,\), must be \[4\] or \[4, K/G\]"),
        (lambda: int8_lm_head(X, C, torch.ones(4, 3)), r"scale: got shape \(4, 3\)"),
        (lambda: int8_lm_head(X, C, torch.ones(4, 0)), r"scale: got shape \(4, 0\)"),
        (lambda: int8_lm_head(X, C, torch.tensor(1.0)), r"scale: got shape \(\)"),
        (lambda: int8_lm_head(X, C, S.int()), r"scale: got torch\.int32"),
        (lambda: int8_lm_head(X, C, S, S[:1]), r"bias: got shape \(1,\), must be \[4\]"),
        (lambda: int8_lm_head(X, C, S, dtype=torch.float16), r"dtype: got torch\.float16"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
