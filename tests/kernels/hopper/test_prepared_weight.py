"""The prepared order of a weight: every code where one thread of wgmma wants it, read back by its definition."""

from __future__ import annotations

import gc

import pytest
import torch

from moeracle.kernels.hopper.prepared_weight import _CACHE, PreparedWeight, prepare_weight, prepared

INTERLEAVED = {False: lambda n, N: n, True: lambda n, N: n // 16 * 8 + n % 8 + (N // 2 if n % 16 >= 8 else 0)}


def code_at(p: PreparedWeight, e: int, n: int, k: int) -> int:
    """The nibble that the module's text says holds row n, column k."""
    slab, half, g = n // 16, n % 16 // 8, n % 8
    block, step, column_half, t, b = k // 64, k % 64 // 16, k % 16 // 8, k % 8 // 2, k % 2
    word = int(p.words[e, slab, block, g * 4 + t, step])
    return (word >> (4 * (half + 2 * column_half) + 16 * b)) & 15


def pair_at(pairs: torch.Tensor, e: int, n: int, group: int, dtype: torch.dtype) -> float:
    word = int(pairs[e, n // 16, group, n % 8]) >> (16 * (n % 16 // 8)) & 0xFFFF
    bits = word - 65536 if word >= 32768 else word
    return float(torch.tensor([bits], dtype=torch.int16).view(dtype))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("zero", ["sym", "rdna", "unpacked"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_code_scale_and_zero_point(make_weight, gated, zero, dtype):
    E, N, K, G = 2, 32, 96, 32
    w, exact = make_weight(E, N, K, G=G, zero=zero, dtype=dtype, pad=4)
    p = prepare_weight(w, gated=gated)
    assert (p.slabs, p.padded_k, p.group) == (4, 128, 32)
    magic = {torch.bfloat16: 128, torch.float16: 1024}[dtype]
    for e, n, k in [(0, 0, 0), (1, 31, 95), (0, 9, 13), (1, 16, 64), (0, 23, 50), (1, 8, 7), (0, 1, 95)]:
        s = pair_at(p.scale, e, n, k // G, dtype)
        z = 8 if p.zero is None else pair_at(p.zero, e, n, k // G, dtype) - magic
        value = torch.tensor((code_at(p, e, n, k) - z) * s).to(dtype).item()
        assert value == exact[e, INTERLEAVED[gated](n, N), k].item(), (e, n, k)
    assert not p.scale[:, 2:].any()  # rows 32..63 are padding
    assert not p.scale[:, :, 3].any()  # and so are columns 96..127


@pytest.mark.parametrize(
    ("largest", "fold"), [(0.031, 2), (0.04, 1), (0.24, 1), (0.25, 0), (float("nan"), 0), (2e-39, 2)]
)
def test_folded_scales_give_the_weight_by_one_multiply_add(make_weight, largest, fold):
    """Every code and row half: fma(nibble as it lies, folded scale, -8 * scale), exact here, rounded once."""
    w, _ = make_weight(1, 16, 64, G=64)
    scale = torch.linspace(-1, 1, 16) * 0.5 * largest
    scale[3] = largest
    w.scale.copy_(scale[None, :, None])
    p = prepare_weight(w, fold=True)
    assert p.fold == fold
    assert prepare_weight(w).fold == 0
    if not fold:
        assert torch.equal(p.scale, prepare_weight(w).scale)
        return
    for n in range(16):
        s = w.scale[0, n, 0].double().item()
        at = 0 if fold == 2 and n < 8 else 4
        codes = (torch.arange(16, dtype=torch.int32) << at).to(torch.int16).view(torch.bfloat16).double()
        factor = pair_at(p.scale, 0, n, 0, torch.bfloat16)
        assert factor == s * 2.0 ** (133 - at)
        eight = factor * (-(2.0**-130) if at == 0 else -(2.0**-126))
        assert float(torch.tensor(eight).bfloat16()) == eight == -8 * s  # what the kernel computes in bf16, exactly
        got = (codes * factor + eight).to(torch.bfloat16)
        assert torch.equal(got, ((torch.arange(16) - 8).double() * s).to(torch.bfloat16)), n


def test_only_symmetric_bf16_is_folded(make_weight):
    for kind in ({"dtype": torch.float16}, {"zero": "rdna"}):
        w, _ = make_weight(1, 16, 64, G=64, **kind)
        assert prepare_weight(w, fold=True).fold == 0


def test_a_kernel_that_cannot_unfold_is_not_given_folded_scales(make_weight):
    w, _ = make_weight(1, 16, 64, G=64)
    w.scale.mul_(0.01)
    folded = prepared(w, fold=True)
    assert folded.fold == 2
    assert prepared(w).fold == 0
    assert prepared(folded, fold=True) is folded
    with pytest.raises(ValueError, match="fold=True, must be fold=False"):
        prepared(folded)


def test_a_word_by_hand():
    """Row 0 holds 1, 2, 3, … and row 8 holds 15 - those: the first word of lane 0 is (k 0, 1), then (8, 9)."""
    from moeracle.ref.weights.weight import Int4Weight

    codes = torch.zeros(16, 64, dtype=torch.uint8)
    codes[0] = torch.arange(64) % 8 + 1
    codes[8] = 15 - codes[0]
    w = Int4Weight.from_codes(codes, torch.ones(16, 1).bfloat16(), layout="exllama")
    word = int(prepare_weight(w).words[0, 0, 0, 0, 0])
    # low half, from bit 0: (row 0, k 0) = 1, (row 8, k 0) = 14, (row 0, k 8) = 1, (row 8, k 8) = 14; high half: k 1, 9
    assert word & 0xFFFF == 0xE1E1
    assert word >> 16 & 0xFFFF == 0xD2D2


def test_it_is_kept_beside_the_weight_until_that_changes():
    from moeracle.ref.weights.weight import Int4Weight

    codes = torch.zeros(1, 16, 64, dtype=torch.uint8)
    w = Int4Weight.from_codes(codes, torch.ones(1, 16, 1).bfloat16(), layout="exllama")
    first = prepared(w)
    assert prepared(w) is first
    assert prepared(w, gated=True) is not first
    w.packed.fill_(-1)
    assert code_at(prepared(w), 0, 3, 5) == 15
    with pytest.raises(ValueError, match="prepared with gated=False"):
        prepared(first, gated=True)


def test_it_goes_when_the_weight_goes(make_weight):
    w, _ = make_weight(1, 16, 64)  # of a class that cannot be hashed, as users' may be
    before = len(_CACHE)
    prepared(w)
    assert len(_CACHE) == before + 1
    del w
    gc.collect()
    assert len(_CACHE) == before


@pytest.mark.parametrize(("G", "gated"), [(12, False), (24, False), (48, False), (32, True)])
def test_what_has_no_prepared_order_is_said(make_weight, G, gated):
    w, _ = make_weight(1, 24, 96 if G != 32 else 32, G=G)
    with pytest.raises(ValueError, match="multiple of 16" if gated else "group size must be"):
        prepare_weight(w, gated=gated)


def test_one_group_may_have_any_size(make_weight):
    w, _ = make_weight(1, 16, 72, G=-1)
    p = prepare_weight(w)
    assert (p.group, p.padded_k, p.scale.shape[2]) == (128, 128, 1)
