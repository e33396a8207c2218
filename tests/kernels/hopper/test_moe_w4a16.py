"""The Hopper GEMMs and layer against the portable ones, bit for bit; needs a GPU of compute capability 9.0."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moeracle.kernels.hopper.cases import hopper_case, on_hopper
from moeracle.kernels.hopper.device.fragments import silu_times
from moeracle.kernels.hopper.gluon_import import gl, gluon
from moeracle.kernels.hopper.moe_w4a16 import hopper_grouped_gemm, hopper_padded_gemm, moe_w4a16_hopper
from moeracle.kernels.hopper.prepared_weight import prepare_weight, prepared
from moeracle.kernels.hopper.tiles.layers import Direct, Duo, Few, Layer, Ring, Stream
from moeracle.kernels.triton.grouped_gemm import grouped_gemm
from moeracle.kernels.triton.moe_permute_torch import moe_align_block_size, moe_permute
from moeracle.kernels.triton.moe_w4a16 import moe_w4a16_padded
from moeracle.kernels.triton.padded_gemm import padded_gemm
from moeracle.kernels.triton.silu_and_mul import silu_and_mul

needs_hopper = pytest.mark.skipif(not on_hopper(), reason="needs a GPU of compute capability 9.0")
TILES = [
    Ring(8, 64, 64, 3, 4),
    Ring(32, 128, 128, 3, 8),
    Ring(128, 128, 64, 4, 4),
    Few(8, 64, 1, 4),
    Few(16, 128, 1, 8),
    Few(8, 64, 1, 16),
    Ring(64, 256, 64, 3, 8, 16, 128),
    Direct(16, 128, 256, 3, 8, 8, 64),
    Direct(64, 64, 128, 2, 4, 32),
    Stream(8, 64, 4, 1),
    Stream(32, 128, 2, 2),
    Duo(16, 128, 128, 3, 8),
    Duo(64, 256, 128, 4, 16),
    Duo(128, 256, 64, 8, 32),
]
# T, E, k, H, I, G, padding of rows: K tails, odd T, one group, no tokens
SIZES = [(7, 4, 2, 256, 128, 32, 0), (33, 8, 3, 320, 192, 64, 32), (5, 3, 2, 96, 48, 16, 0), (40, 3, 1, 72, 40, -1, 0)]
SIZES += [(130, 4, 2, 256, 256, 128, 0), (0, 3, 2, 128, 64, 32, 0)]
STAGES = ("a", "y", "out")


@pytest.fixture
def layer(make_weight, device):
    def make(T, E, k, H, I, G, pad, dtype=torch.bfloat16, zero="rdna"):
        g = torch.Generator().manual_seed(T)
        w13, _ = make_weight(E, 2 * I, H, G=G, dtype=dtype, zero=zero, pad=pad, seed=1)
        w2, _ = make_weight(E, H, I, G=G, dtype=dtype, zero=zero, pad=pad, seed=2)
        x = torch.randn(T, H + 16, generator=g).to(dtype).to(device)[:, 8 : H + 8]
        ids = torch.randint(-1, E, (T, k), generator=g, dtype=torch.int32).to(device)
        return x, w13, w2, torch.rand(T, k, generator=g).to(device), ids

    return make


@needs_hopper
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "zero"), [(torch.bfloat16, "sym"), (torch.float16, "rdna"), (torch.bfloat16, "rdna")]
)
def test_the_fused_layer_is_the_composition_bit_for_bit(layer, size, dtype, zero):
    args = layer(*size, dtype=dtype, zero=zero)
    want = moe_w4a16_padded(*args, return_stages=True)
    for tile in TILES:
        for programmatic in (True, False):
            config = Layer(tile, tile)
            got = moe_w4a16_hopper(*args, config=config, programmatic=programmatic, return_stages=True)
            for stage in STAGES:
                assert torch.equal(got[stage], want[stage]), (tile, programmatic, stage)
            assert torch.equal(moe_w4a16_hopper(*args, config=config, programmatic=programmatic), want["out"])


@needs_hopper
@pytest.mark.parametrize("split", [2, 4])
def test_split_k_adds_its_parts_pairwise(layer, split):
    """Against the portable GEMM of each part's columns, with the other columns of x zeroed, added in fp32."""
    x, w13, _, _, ids = layer(9, 4, 2, 512, 128, 32, 0)
    blocks = moe_align_block_size(ids, 8, 4)
    got = hopper_padded_gemm(x, w13, *blocks, None, 2, config=Few(8, 64, split, 4))
    alone = hopper_padded_gemm(x, w13, *blocks, None, 2, config=Few(8, 64, 1, 4))
    assert (got != alone).float().mean() < 0.02
    part = torch.arange(512, device=x.device) // (512 // split)
    for p in range(split):
        kept = torch.where(part == p, x, 0)
        one = hopper_padded_gemm(kept, w13, *blocks, None, 2, config=Few(8, 64, split, 4))
        assert torch.equal(one, hopper_padded_gemm(kept, w13, *blocks, None, 2, config=Few(8, 64, 1, 4)))


@needs_hopper
@pytest.mark.parametrize("B", [1, 5, 16, 48])
def test_padded_and_grouped_are_the_portable_ones(layer, B):
    x, w13, _, weights, ids = layer(33, 8, 3, 320, 192, 64, 32)
    blocks = moe_align_block_size(ids, B, 8)
    for scale in (None, weights):
        want = padded_gemm(x, w13, *blocks, scale, 3)
        for tile in (None, *TILES):
            assert torch.equal(hopper_padded_gemm(x, w13, *blocks, scale, 3, config=tile), want), tile
    permuted, offsets, _ = moe_permute(x, ids, 8)
    for tile in (None, *TILES):
        got = hopper_grouped_gemm(permuted, w13, offsets, config=tile)
        assert torch.equal(got, grouped_gemm(permuted, w13, offsets)), tile


@needs_hopper
@pytest.mark.parametrize("lead", [0, 3])
def test_rows_of_no_expert_are_zero_in_what_grouped_allocates(layer, lead):
    """Nothing clears the output ahead: rows before the first offset and after the last one are zeroed on the way."""
    x, w, _, _, ids = layer(33, 8, 3, 320, 192, 64, 32)
    rows, offsets, _ = moe_permute(x, torch.where(ids == 2, -1, ids), 8)
    padded = torch.cat([rows.new_ones(lead, rows.shape[1]), rows])
    want = grouped_gemm(rows, w, offsets)
    for tile in (None, *TILES):
        for _ in range(2):  # launched early, with the call before it still under way
            dirt = torch.full((padded.shape[0], w.packed.shape[1]), float("nan"), dtype=x.dtype, device=x.device)
            del dirt  # what torch.empty is likely to be given
            got = hopper_grouped_gemm(padded, w, offsets + lead, config=tile)
        assert torch.equal(got[lead:], want), tile
        assert not got[:lead].any()
        assert not got[lead + int(offsets[-1]) :].any()


@needs_hopper
@pytest.mark.parametrize(("factor", "fold"), [(1.0, 2), (5.0, 1), (64.0, 0), (1e-37, 2), (3e-39, 2)])
def test_folded_scales_leave_every_bit(layer, factor, fold):
    """Scales of either sign, down to subnormal ones: one fused multiply-add rounds as the product does."""
    x, w, _, _, ids = layer(70, 4, 2, 512, 256, 128, 0, zero="sym")
    sign = torch.where(torch.arange(w.scale.numel(), device=x.device).reshape(w.scale.shape) % 3 == 0, -1.0, 1.0)
    w.scale.copy_(w.scale.float() / w.scale.float().abs().max() * 0.03 * factor * sign)
    assert prepared(w, fold=True).fold == fold
    blocks = moe_align_block_size(ids, 16, 4)
    want = padded_gemm(x, w, *blocks, None, 2)
    for tile in TILES:
        assert torch.equal(hopper_padded_gemm(x, w, *blocks, None, 2, config=tile), want), tile


@gluon.jit
def _silu_kernel(gate_ptr, up_ptr, out_ptr, N: gl.constexpr):
    i = gl.program_id(0) * N + gl.arange(0, N, layout=gl.BlockedLayout([4], [32], [4], [0]))
    out = silu_times(gl.load(gate_ptr + i).to(gl.float32), gl.load(up_ptr + i).to(gl.float32), out_ptr.dtype.element_ty)
    gl.store(out_ptr + i, out)


@needs_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_epilogue_is_silu_and_mul_for_every_gate(device, dtype):
    gate = torch.arange(65536, device=device).to(torch.int16).view(dtype)
    for value in (1.0, -3.7, 0.013):
        up, out = torch.full_like(gate, value), torch.empty_like(gate)
        _silu_kernel[(128,)](gate, up, out, 512)
        want = silu_and_mul(torch.stack([gate, up], 1))[:, 0]
        same = (out.view(torch.int16) == want.view(torch.int16)) | (out.isnan() & want.isnan())
        assert same.all(), gate[~same][:5]


@needs_hopper
@pytest.mark.parametrize("rows", [1, 8, 9, 16, 17, 32, 33, 64])
def test_a_block_of_few_real_rows_has_the_same_bits(make_weight, device, rows):
    """A block of 64 is multiplied by 16, 32 or 64 columns; real rows may also lie after padding."""
    w, _ = make_weight(2, 128, 256, G=64)
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(rows)).bfloat16().to(device)
    slots = torch.full((64,), 64, dtype=torch.int32, device=device)
    slots[:rows] = torch.arange(rows, device=device)
    end, expert = torch.tensor([64], dtype=torch.int32, device=device), torch.ones(1, dtype=torch.int32, device=device)
    for order in (slots, slots.flip(0)):
        want = padded_gemm(x, w, order, expert, end, None, 1, block_size=64)
        tiles = (Ring(64, 128, 64, 4, 4, 16), Direct(64, 128, 256, 2, 8, 16), Ring(64, 128, 64, 4, 8, 32))
        for tile in (*tiles, Duo(64, 128, 128, 4, 16)):
            got = hopper_padded_gemm(x, w, order, expert, end, None, 1, block_size=64, config=tile)
            assert torch.equal(got, want), tile


@needs_hopper
def test_experts_of_other_ranks_are_left_out(layer):
    x, w13, w2, weights, ids = layer(20, 4, 2, 128, 64, 32, 0)
    where = torch.tensor([-1, 0, 1, 2, 3, -1], dtype=torch.int32, device=x.device)
    theirs = torch.where(ids < 0, 5, ids + 1)  # an ignored slot's expert is on another rank
    tiles = Layer(Few(8, 64, 1, 4), Few(8, 64, 1, 4))
    got = moe_w4a16_hopper(x, w13, w2, weights, theirs, expert_map=where, config=tiles)
    assert torch.equal(got, moe_w4a16_hopper(x, w13, w2, weights, ids, config=tiles))
    theirs[:] = 0
    assert not moe_w4a16_hopper(x, w13, w2, weights, theirs, expert_map=where).any()


@needs_hopper
def test_blocks_of_other_ranks_experts_are_skipped(layer, monkeypatch):
    """With an expert map their blocks stay in place, with expert -1; their rows stay 0."""
    x, w, _, _, ids = layer(33, 8, 3, 320, 192, 64, 32)
    where = torch.tensor([-1, 1, 0, -1, 3, 2, -1, 4], dtype=torch.int32, device=x.device)
    blocks = moe_align_block_size(ids, 16, 8, where)
    assert (blocks[1][: int(blocks[2]) // 16] == -1).any()
    want = padded_gemm(x, w, *blocks, None, 3)
    for cleared in (None, 0):  # a small output is cleared whole, a large one where no block writes
        if cleared is not None:
            monkeypatch.setattr("moeracle.kernels.triton.device.unnamed_rows.CLEAR", cleared)
        for tile in (None, *TILES):
            dirt = torch.full_like(want, float("nan"))
            del dirt  # what torch.empty is likely to be given
            assert torch.equal(hopper_padded_gemm(x, w, *blocks, None, 3, config=tile), want), tile


@needs_hopper
@pytest.mark.parametrize("largest", [2**31, 2**40])
def test_offsets_beyond_2_to_the_31(make_weight, device, monkeypatch, largest):
    """560 experts of 8192 x 4096: the last one begins beyond 2^31 words of eight codes; its block is filled by hand."""
    E, N, K = 560, 8192, 4096
    last, _ = make_weight(1, N, K, G=128)
    one = prepare_weight(last, fold=True)
    words, scale = (torch.zeros(E, *t.shape[1:], dtype=t.dtype, device=device) for t in (one.words, one.scale))
    words[-1], scale[-1] = one.words[0], one.scale[0]
    assert words[:-1].numel() > 2**31
    w = replace(one, words=words, scale=scale)
    x = torch.randn(3, K, generator=torch.Generator().manual_seed(1)).bfloat16().to(device)
    ids = torch.full((3, 1), E - 1, dtype=torch.int32, device=device)
    want = padded_gemm(x, last, *moe_align_block_size(torch.zeros_like(ids), 16, 1), None, 1)
    monkeypatch.setattr("moeracle.kernels.hopper.tiles.layers.LARGEST", largest)  # the second time, gemm_duo itself
    tiles = (Ring(16, 128, 128, 4, 4), Few(8, 64, 1, 4), Direct(16, 128, 256, 3, 8, 8, 64), Stream(8, 64, 4, 4))
    for tile in (*tiles, Duo(16, 256, 128, 4)) if largest == 2**31 else (Duo(16, 256, 128, 4),):
        got = hopper_padded_gemm(x, w, *moe_align_block_size(ids, 16, E), None, 1, config=tile)
        assert torch.equal(got, want), tile


def test_cases_are_refused_with_a_reason(monkeypatch):
    case = lambda **sizes: type("Case", (), {"op": "padded_gemm", "N": 64, "K": 96, "G": 24, **sizes})()
    monkeypatch.setattr("moeracle.kernels.hopper.cases.on_hopper", lambda: False)
    assert "compute capability 9.0" in hopper_case(case())
    monkeypatch.setattr("moeracle.kernels.hopper.cases.on_hopper", lambda: True)
    assert "group size" in hopper_case(case())
    assert hopper_case(case(G=32)) is True
    assert hopper_case(case(G=-1)) is True
    assert "multiple of 16" in hopper_case(case(op="moe_w4a16", H=64, I=12, G=-1))
