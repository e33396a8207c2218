"""The three compositions of a whole layer: each stage against fp64 on the stage before, and against each other."""

from __future__ import annotations

import pytest
import torch

from moeracle.kernels.triton.moe_w4a16 import (
    moe_w4a16_decode,
    moe_w4a16_fused,
    moe_w4a16_grouped,
    moe_w4a16_padded,
)
from moeracle.kernels.triton.tiles import Tile

ALL = {"grouped": moe_w4a16_grouped, "padded": moe_w4a16_padded, "decode": moe_w4a16_decode}


@pytest.fixture(scope="module")
def layer(make_weight, device):
    """Return f(T, E, k, H, I, **weight options) → arguments on the device, and the two exact weights."""

    def make(T, E, k, H, I, dtype=torch.bfloat16, **options):
        g = torch.Generator().manual_seed(T)
        w13, W13 = make_weight(E, 2 * I, H, dtype=dtype, seed=1, **options)
        w2, W2 = make_weight(E, H, I, dtype=dtype, seed=2, **options)
        x = torch.randn(T, H, generator=g).to(dtype).to(device)
        ids = torch.randint(-1, E, (T, k), generator=g, dtype=torch.int32).to(device)
        return (x, w13, w2, torch.rand(T, k, generator=g).to(device), ids), W13, W2

    return make


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_stage(layer, assert_close, path, dtype):
    T, E, k, H, I = 7, 4, 2, 40, 24
    (x, w13, w2, weights, ids), W13, W2 = layer(T, E, k, H, I, dtype, G=8, zero="rdna")
    s = {name: value.cpu() for name, value in ALL[path](x, w13, w2, weights, ids, return_stages=True).items()}
    expert, xs = ids.cpu().flatten().long(), x.cpu().double().repeat_interleave(k, 0)
    used = (expert >= 0)[:, None]
    apply = lambda rows, W: torch.einsum("rk,rnk->rn", rows, W[expert.clamp(min=0)]) * used
    assert_close(s["h"], apply(xs, W13), apply(xs.abs(), W13.abs()))
    assert_close(s["y"], apply(s["a"].double(), W2), apply(s["a"].double().abs(), W2.abs()))
    gate, up = s["h"].double().chunk(2, 1)
    a = gate * torch.sigmoid(gate) * up
    assert_close(s["a"], a, 4e3 * a.abs())  # two roundings
    terms = s["y"].double().reshape(T, k, H) * weights.cpu().double()[:, :, None]
    assert_close(s["out"], terms.sum(1), terms.abs().sum(1))
    assert not s["out"][(ids.cpu() < 0).all(1)].any()


@pytest.mark.parametrize("config", [Tile(16, 32, 32), Tile(64, 64, 64)])
def test_grouped_is_padded_bit_for_bit(layer, config):
    args, _, _ = layer(19, 5, 3, 72, 40, G=8, zero="unpacked")
    grouped = moe_w4a16_grouped(*args, config=config, return_stages=True)
    for B in (config.block_m, 24):
        padded = moe_w4a16_padded(*args, config=config, block_size=B, return_stages=True)
        assert list(grouped) == ["h", "a", "y", "out"]
        for name in grouped:
            assert torch.equal(grouped[name], padded[name]), (name, B)


@pytest.mark.parametrize("config", [Tile(16, 32, 32), Tile(64, 64, 64)])
def test_fused_is_padded_bit_for_bit_without_h(layer, config):
    args, _, _ = layer(19, 5, 3, 72, 40, G=8, zero="rdna")
    padded = moe_w4a16_padded(*args, config=config, return_stages=True)
    for B in (None, 24):
        fused = moe_w4a16_fused(*args, config=config, block_size=B, return_stages=True)
        assert list(fused) == ["a", "y", "out"]
        for name, stage in fused.items():
            assert torch.equal(stage, padded[name]), (name, B)


def test_out_alone_is_out_of_the_stages(layer):
    args, _, _ = layer(5, 4, 2, 32, 32)
    for layer in (moe_w4a16_grouped, moe_w4a16_padded, moe_w4a16_fused):
        assert torch.equal(layer(*args), layer(*args, return_stages=True)["out"])


@pytest.mark.parametrize("path", ALL)
def test_no_tokens_and_no_expert(layer, path):
    args, _, _ = layer(0, 3, 2, 32, 32)
    stages = ALL[path](*args, return_stages=True)
    assert {name: tuple(s.shape) for name, s in stages.items()} == {
        "h": (0, 64),
        "a": (0, 32),
        "y": (0, 32),
        "out": (0, 32),
    }
    args, _, _ = layer(2, 3, 2, 32, 32)
    args[4].fill_(-1)
    assert not any(s.any() for s in ALL[path](*args, return_stages=True).values())
