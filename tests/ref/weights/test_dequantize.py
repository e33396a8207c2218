"""Exact dequantization against values worked out by hand and against fp64."""

import pytest
import torch

from moeracle.ref.weights.dequantize import dequantize_int4

torch.set_num_threads(1)


def codes_of(*rows):
    return torch.tensor(rows, dtype=torch.uint8)


def test_symmetric_by_hand():
    codes = codes_of([0, 7, 8, 15], [1, 9, 12, 4])
    scale = torch.tensor([[0.5, 2.0], [1.0, 0.25]], dtype=torch.bfloat16)
    expected = [[-4.0, -0.5, 0.0, 14.0], [-7.0, 1.0, 1.0, -1.0]]
    assert dequantize_int4(codes, scale).tolist() == expected


def test_asymmetric_by_hand():
    codes = codes_of([0, 7, 8, 15])
    scale = torch.tensor([[0.5, 2.0]], dtype=torch.float16)
    zero = codes_of([3, 15])
    assert dequantize_int4(codes, scale, zero).tolist() == [[-1.5, 2.0, -14.0, 0.0]]


def test_zero_eight_is_the_symmetric_zero():
    codes = torch.arange(16, dtype=torch.uint8).view(1, 16)
    scale = torch.tensor([[0.1, 0.3]], dtype=torch.bfloat16)
    assert torch.equal(dequantize_int4(codes, scale, codes_of([8, 8])), dequantize_int4(codes, scale))


def every_scale(dtype):
    """Every finite scale of a 16-bit dtype, subnormals and both zeros included."""
    bits = torch.arange(65536).to(torch.int16).view(dtype)
    return bits[bits.isfinite()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp32_is_exact_for_every_scale_and_code(dtype):
    scale = every_scale(dtype).view(-1, 1)
    codes = torch.arange(16, dtype=torch.uint8).expand(len(scale), 16)
    got = dequantize_int4(codes, scale)
    exact = (codes.double() - 8) * scale.double()
    fits = exact.abs() <= torch.finfo(torch.float32).max
    assert torch.equal(got.double()[fits], exact[fits])
    assert got[~fits].isinf().all()


def test_no_overflow_where_the_weight_is_finite():
    scale = torch.tensor([[torch.finfo(torch.bfloat16).max]], dtype=torch.bfloat16)
    assert dequantize_int4(codes_of([9]), scale).item() == scale.item()  # u*s - z*s would be inf - inf


def test_fp64_is_exact_for_fp32_scales():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (8, 64), dtype=torch.uint8, generator=generator)
    scale = torch.rand(8, 4, generator=generator)
    got = dequantize_int4(codes, scale, dtype=torch.float64)
    assert got.dtype == torch.float64
    assert torch.equal(got, (codes.double() - 8) * scale.double().repeat_interleave(16, 1))
    assert torch.equal(dequantize_int4(codes, scale).double(), got.float().double())


@pytest.mark.parametrize("groups", [1, 2, 6, 48])
def test_group_size_comes_from_the_scale(groups):
    generator = torch.Generator().manual_seed(groups)
    codes = torch.randint(0, 16, (3, 5, 48), dtype=torch.uint8, generator=generator)
    scale = torch.rand(3, 5, groups, generator=generator).bfloat16()
    zero = torch.randint(0, 16, (3, 5, groups), dtype=torch.uint8, generator=generator)
    got = dequantize_int4(codes, scale, zero)
    for e, n, k in ((0, 0, 0), (1, 2, 47), (2, 4, 23), (0, 3, 24)):
        g = k // (48 // groups)
        assert got[e, n, k] == (int(codes[e, n, k]) - int(zero[e, n, g])) * float(scale[e, n, g])


def test_strided_inputs():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (6, 32), dtype=torch.uint8, generator=generator)
    scale = torch.rand(6, 4, generator=generator).bfloat16()
    expected = dequantize_int4(codes, scale)
    assert torch.equal(dequantize_int4(codes.mT.contiguous().mT, scale.mT.contiguous().mT), expected)
    assert dequantize_int4(codes.mT.contiguous().mT, scale).is_contiguous()


def test_no_rows():
    assert dequantize_int4(torch.zeros(0, 32, dtype=torch.uint8), torch.zeros(0, 1)).shape == (0, 32)


ONES = torch.ones(2, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dequantize_int4(ONES, torch.ones(2, 3)), r"scale: got shape \(2, 3\), must be \[2, K/G\].*K = 8"),
        (lambda: dequantize_int4(ONES, torch.ones(3, 2)), r"scale: got shape \(3, 2\)"),
        (lambda: dequantize_int4(ONES, torch.ones(2)), r"scale: got shape \(2,\)"),
        (lambda: dequantize_int4(ONES, torch.ones(1, 2, 2)), r"scale: got shape \(1, 2, 2\)"),
        (lambda: dequantize_int4(ONES, torch.ones(2, 0)), r"scale: got shape \(2, 0\)"),
        (lambda: dequantize_int4(ONES, torch.ones(2, 2).double()), r"scale: got torch\.float64"),
        (lambda: dequantize_int4(ONES.int(), torch.ones(2, 2)), r"codes: got torch\.int32, must be torch\.uint8"),
        (
            lambda: dequantize_int4(ONES, torch.ones(2, 2), ONES),
            r"zero: got shape \(2, 8\), must be scale's shape \(2, 2\)",
        ),
        (lambda: dequantize_int4(ONES, torch.ones(2, 2), torch.ones(2, 2)), r"zero: got torch\.float32"),
        (lambda: dequantize_int4(ONES, torch.ones(2, 2), dtype=torch.bfloat16), r"dtype: got torch\.bfloat16"),
        (lambda: dequantize_int4(ONES[0], torch.ones(2)), r"codes: got shape \(8,\)"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
