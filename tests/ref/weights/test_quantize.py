"""Quantizers against values worked out by hand, their error bounds, and the known defects of the named variant."""

import pytest
import torch

from moeracle.ref.weights.dequantize import dequantize_int4
from moeracle.ref.weights.quantize import (
    check_lm_head_shape,
    parse_lm_head_option,
    quantize_int4,
    quantize_int8,
    quantize_int8_weight_dtype,
)

torch.set_num_threads(1)

UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_int4_symmetric_by_hand():
    w = torch.tensor([[7.5, -7.5, 1.0, 0.5, 1.5, 2.5, -0.5, 0.0]])  # amax 7.5: scale 1; halves go to even
    codes, scale, zero = quantize_int4(w, -1, scale_dtype=torch.float32)
    assert scale.tolist() == [[1.0]]
    assert codes.tolist() == [[15, 0, 9, 8, 10, 10, 8, 8]]  # 7.5 rounds to 8 and is clamped to 7; -7.5 reaches code 0
    assert codes.dtype == torch.uint8
    assert zero is None


def test_int4_asymmetric_by_hand():
    w = torch.tensor([[-2.0, 13.0, 0.0, 5.5, 3.0, 4.0, 8.0, 9.0]])  # width 15 over [-2, 13], then 9 over [0, 9]
    codes, scale, zero = quantize_int4(w, 4, symmetric=False, scale_dtype=torch.float32)
    assert scale.tolist() == [[1.0, torch.tensor(0.6).item()]]
    assert zero.tolist() == [[2, 0]]
    assert codes.tolist() == [[0, 15, 2, 8, 5, 7, 13, 15]]  # 5.5 goes to even 6; 3, 4, 8, 9 over 0.6: 5, 6.7, 13.3, 15
    assert zero.dtype == torch.uint8


def test_int4_codes_follow_the_stored_scale():
    w = torch.tensor([[15.0625, 7.0]]) / 2  # amax/7.5 = 1 + 2^-8 * 1.0667: stored as 1.0078125 in bf16
    codes, scale, _ = quantize_int4(w, -1, scale_dtype=torch.bfloat16)
    assert scale.tolist() == [[1.0078125]]
    assert codes.tolist() == [[15, 11]]  # 3.5 / 1.0078 = 3.47 rounds to 3; over the unrounded 1.0042 as well
    w = torch.tensor([[7.5 * 1.003, 2.505]])  # stored scale 1.0: 2.505 rounds up to 3, over 1.003 it would be 2
    codes, scale, _ = quantize_int4(w, -1, scale_dtype=torch.bfloat16)
    assert scale.tolist() == [[1.0]]
    assert codes[0, 1] == 11


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale_dtype", list(UNIT))
@pytest.mark.parametrize("group_size", [8, 32, -1])
def test_int4_error_bound(group_size, scale_dtype, symmetric):
    w = normal(3, 16, 96) * torch.logspace(-2, 2, 16).unsqueeze(1) + 0.5
    codes, scale, zero = quantize_int4(w, group_size, symmetric=symmetric, scale_dtype=scale_dtype)
    G = 96 if group_size == -1 else group_size
    assert scale.shape == (3, 16, 96 // G)
    assert scale.dtype == scale_dtype
    assert codes.max() == 15
    error = (dequantize_int4(codes, scale, zero, dtype=torch.float64) - w.double()).abs()
    half = scale.double().repeat_interleave(G, -1) / 2
    assert (error <= half * (1 + 30 * UNIT[scale_dtype] + 2.0**-18)).all()
    assert (error > 0.9 * half).any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("tiny", [0.0, 1e-9])  # 1e-9 / 7.5 underflows fp16
def test_int4_zero_scale_is_stored_as_one(symmetric, tiny):
    w = torch.cat([torch.full((2, 8), tiny), torch.ones(2, 8)], dim=1)
    codes, scale, zero = quantize_int4(w, 8, symmetric=symmetric, scale_dtype=torch.float16)
    assert scale[:, 0].tolist() == [1.0, 1.0]
    assert torch.equal(dequantize_int4(codes, scale, zero)[:, :8], torch.zeros(2, 8))
    assert (codes[:, :8] == (8 if symmetric else 0)).all()


def test_int4_asymmetric_represents_zero_in_one_sided_groups():
    for sign in (1, -1):
        w = sign * torch.linspace(3, 9, 8).view(1, 8)
        codes, scale, zero = quantize_int4(w, -1, symmetric=False, scale_dtype=torch.float32)
        assert zero.item() == (0 if sign > 0 else 15)
        assert (dequantize_int4(codes, scale, zero) - w).abs().max() <= scale.item() / 2 * (1 + 1e-5)


def test_int4_recovers_an_int4_weight():
    codes = torch.randint(0, 16, (8, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    codes[:, ::16] = 0
    codes[:, 1::16] = 15
    scale = torch.full((8, 4), 0.75, dtype=torch.bfloat16)
    zero = torch.randint(0, 16, (8, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    w = dequantize_int4(codes, scale, zero)
    got = quantize_int4(w, 16, symmetric=False, scale_dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(got, (codes, scale, zero), strict=True))


def test_int4_fp64_weights_are_computed_in_fp64():
    w = torch.tensor([[7.5, 0.5 + 2.0**-40]], dtype=torch.float64)  # fp32 would round this down to the tie
    codes, _, _ = quantize_int4(w, -1, scale_dtype=torch.float32)
    assert codes.tolist() == [[15, 9]]


def test_int8_by_hand():
    w = torch.tensor([[127.0, -127.0, 0.5, 1.5], [0.0, 0.0, 0.0, 0.0], [254.0, 3.0, -254.0, 5.0]])
    codes, scale = quantize_int8(w, -1)
    assert scale.tolist() == [1.0, torch.tensor(1e-10).div(torch.tensor(127.0)).item(), 2.0]
    assert codes.tolist() == [[127, -127, 0, 2], [0, 0, 0, 0], [127, 2, -127, 2]]
    assert (codes.dtype, scale.dtype) == (torch.int8, torch.float32)
    assert quantize_int8(w, 4)[1].shape == (3, 1)  # one group over K, asked for by its size
    codes, scale = quantize_int8(w, 2)
    assert scale.shape == (3, 2)
    assert codes[0].tolist() == [127, -127, 42, 127]  # 0.5 / 1.5 * 127 = 42.33


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("group_size", [32, 128, -1])
def test_int8_error_bound(group_size, dtype):
    w = normal(64, 256).to(dtype)
    codes, scale = quantize_int8(w, group_size)
    assert scale.shape == ((64,) if group_size == -1 else (64, 256 // group_size))
    step = scale.view(64, -1, 1).double()
    error = (codes.double().view(64, step.shape[1], -1) * step - w.double().view(64, step.shape[1], -1)).abs()
    assert (error <= step / 2 * (1 + 2.0**-16)).all()
    assert codes.min() == -127
    assert codes.max() == 127


def test_int8_in_many_row_blocks_equals_row_by_row():
    w = normal(2100, 2048).bfloat16()  # more than one block of rows
    codes, scale = quantize_int8(w, 64)
    for v in (0, 2047, 2048, 2099):
        one = quantize_int8(w[v : v + 1], 64)
        assert torch.equal(codes[v : v + 1], one[0])
        assert torch.equal(scale[v : v + 1], one[1])


def test_weight_dtype_variant_in_bf16_is_off_by_one_and_reaches_minus_128():
    w = normal(512, 1024).bfloat16()
    codes, scale = quantize_int8(w, 128)
    rough, rough_scale = quantize_int8_weight_dtype(w, 128)
    assert torch.equal(rough_scale, rough_scale.bfloat16().float())
    assert not torch.equal(rough_scale, scale)
    difference = (codes.int() - rough.int()).abs()
    assert difference.max() == 1
    assert 0.08 < (difference > 0).float().mean() < 0.14
    assert rough.min() == -128
    assert codes.min() == -127


def test_weight_dtype_variant_in_fp16_divides_zero_by_zero():
    w = torch.zeros(1, 64, dtype=torch.float16)
    codes, scale = quantize_int8_weight_dtype(w, 32)
    assert scale.tolist() == [[0.0, 0.0]]  # 1e-10 underflows to 0
    assert (w.view(1, 2, 32) / scale.half().unsqueeze(-1)).isnan().all()
    assert (codes == 0).all()
    assert (quantize_int8(w, 32)[1] > 0).all()


def test_weight_dtype_variant_in_fp32_is_the_reference():
    w = normal(8, 64)
    for got, expected in zip(quantize_int8_weight_dtype(w, 32), quantize_int8(w, 32), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("option", "expected"),
    [(None, None), ("", None), ("int8", -1), ("int8:g32", 32), ("int8:g128", 128), ("int8:g7", 7)],
)
def test_parse_lm_head_option(option, expected):
    assert parse_lm_head_option(option) == expected


@pytest.mark.parametrize(
    "option",
    [
        "int8:",
        "int8:g",
        "int8:g0",
        "int8:g-1",
        "int8:32",
        "int8:g32 ",
        "int8:g032",
        "INT8",
        "int4",
        "int8:g٣",
        "int8:g3\n",
        8,
    ],
)
def test_parse_lm_head_option_refuses(option):
    with pytest.raises(
        ValueError, match=r"option: got .*, must be '' \(off\), 'int8' \(per channel\) or 'int8:gN'"
    ) as caught:
        parse_lm_head_option(option)
    assert repr(option) in str(caught.value)


@pytest.mark.parametrize(
    ("group_size", "K", "reason"),
    [
        (-1, 16, None),
        (32, 2048, None),
        (128, 2048, None),
        (-1, 24, "K is 24, must be a multiple of 16"),
        (64, 96, "K is 96, must be a multiple of the group size 64"),
        (16, 64, "group_size is 16, must be one of -1, 32, 64, 128"),
        (0, 64, "group_size is 0, must be one of -1, 32, 64, 128"),
    ],
)
def test_check_lm_head_shape(group_size, K, reason):
    assert check_lm_head_shape(group_size, K) == reason


W = torch.ones(2, 8)
BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: quantize_int4(W, 3, scale_dtype=BF16),
            r"group_size: got 3, must be -1 or a positive divisor of K = 8",
        ),
        (lambda: quantize_int4(W, 0, scale_dtype=BF16), r"group_size: got 0"),
        (lambda: quantize_int4(W.int(), 4, scale_dtype=BF16), r"w: got torch\.int32"),
        (lambda: quantize_int4(W[0], 4, scale_dtype=BF16), r"w: got shape \(8,\)"),
        (lambda: quantize_int4(W, 4, scale_dtype=torch.int8), r"scale_dtype: got torch\.int8"),
        (
            lambda: quantize_int4(W * 1e6, 4, scale_dtype=torch.float16),
            r"w: a group's scale is not finite in torch\.float16",
        ),
        (lambda: quantize_int4(W * float("nan"), 4, scale_dtype=BF16), r"w: a group's scale is not finite"),
        (lambda: quantize_int8(W, 5), r"group_size: got 5"),
        (lambda: quantize_int8(W.double(), -1), r"w: got torch\.float64"),
        (lambda: quantize_int8(W[None], -1), r"w: got shape \(1, 2, 8\), must be \[V, K\]"),
        (lambda: quantize_int8(W * float("inf"), -1), r"w: a group's scale is not finite"),
        (lambda: quantize_int8(W[:, :0], -1), r"w: K is 0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
