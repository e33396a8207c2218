"""The lm_head of compute capability 9.0: its choice of launches anywhere, its results on such a GPU."""

from __future__ import annotations

import pytest
import torch

from moeracle.kernels.hopper.cases import on_hopper
from moeracle.kernels.hopper.int8_lm_head import LOCAL, MOST, RESERVED, STEP, lm_head_on_hopper, plan, why_not_hopper

needs_hopper = pytest.mark.skipif(not on_hopper(), reason="needs a GPU of compute capability 9.0")


@pytest.mark.parametrize("G", [0, 32, 64, 128])
@pytest.mark.parametrize("size", [2, 4])
def test_a_plan_covers_k_and_fits(G, size):
    for T in range(1, MOST + 1):
        for K in (16, 256, 2048, 2880, 4096, 7168, 16384):
            p = plan(T, K, G, size)
            assert p.columns >= max(T, 8)
            assert p.columns & (p.columns - 1) == 0
            assert p.passes * p.steps * STEP >= K > (p.passes - 1) * p.steps * STEP  # no pass has nothing to do
            ring = p.stages * 16 * p.warps * (STEP + (STEP // G * size if G else 0))
            assert (p.columns * p.steps * STEP * 2 + ring + RESERVED) * p.programs <= LOCAL
            assert p.programs * p.warps * 32 * 32 <= 65536


def test_one_pass_where_x_fits():
    assert plan(8, 2048, 32, 4).passes == plan(32, 2048, 32, 4).passes == 1
    assert plan(64, 2048, 32, 4).passes == 2


def test_sizes_are_refused_with_a_reason():
    codes = torch.zeros(8, 64, dtype=torch.int8)
    assert "group size" in why_not_hopper(64, 16, codes)
    assert "copy engine" in why_not_hopper(40, 0, torch.zeros(8, 40, dtype=torch.int8))
    assert "copy engine" in why_not_hopper(64, 32, codes.T.contiguous().T)
    assert "2\\^25".replace("\\", "") in why_not_hopper(
        16, 0, torch.empty(1 << 25, 16, dtype=torch.int8, device="meta")
    )
    assert why_not_hopper(64, 32, codes) is None


def problem(T, V, K, G, dtype, scale_dtype=torch.float32):
    g = torch.Generator().manual_seed(T + V)
    x = torch.randn(T, K + 8, generator=g).to(dtype)[:, :K]
    codes = torch.randint(-128, 128, (V, K + 16), generator=g, dtype=torch.int8)[:, :K]
    codes[:, 0], codes[0] = -128, 127
    scale = (torch.rand(V, *((K // G,) if G else ()), generator=g) + 0.1).to(scale_dtype)
    bias = torch.randn(V, generator=g).to(dtype)
    w = codes.double() * (scale.double().repeat_interleave(G, 1) if G else scale.double()[:, None])
    y, t = x.double() @ w.T + bias.double(), x.double().abs() @ w.abs().T + bias.double().abs()
    return [a.cuda() for a in (x, codes, scale, bias)], y, t


def run(x, codes, scale, bias):
    G = codes.shape[1] // scale.shape[1] if scale.ndim == 2 else 0
    y = torch.full((x.shape[0], codes.shape[0]), float("nan"), dtype=x.dtype, device=x.device)
    return lm_head_on_hopper(x, codes, scale, bias, y, G)


# T, V, K, G: every width of the product, tails of V and of K, two passes, more tokens than one launch takes
SIZES = [
    (1, 40, 96, 32), (4, 130, 192, 32), (8, 1000, 2048, 32), (9, 64, 256, 64), (16, 200, 640, 128), (17, 70, 336, 0),
    (32, 500, 2048, 32), (33, 129, 2048, 32), (64, 300, 1024, 128), (64, 128, 2880, 64), (130, 90, 512, 32),
    (3, 65, 16384, 128), (64, 40, 2048, 0), (5, 1, 16, 0),
]  # fmt: skip


@needs_hopper
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16), (torch.bfloat16, torch.float64)],
)
def test_against_fp64(assert_close, size, dtype, scale):
    arguments, y, t = problem(*size, dtype, scale)
    assert_close(run(*arguments), y, t)
    assert_close(run(*arguments[:3], None), y - arguments[3].cpu().double(), t)


@needs_hopper
@pytest.mark.parametrize("G", [0, 32, 64, 128])
def test_a_token_has_the_same_bits_in_any_company(G):
    """One order of sums, whatever the width of the product and in how many passes."""
    (x, codes, scale, bias), _, _ = problem(64, 300, 2048, G, torch.bfloat16)
    alone = torch.cat([run(x[t : t + 1], codes, scale, bias) for t in range(64)])
    for T in (2, 9, 20, 33, 64):
        assert torch.equal(run(x[:T], codes, scale, bias), alone[:T]), T


@needs_hopper
def test_each_code_is_exact():
    codes = torch.arange(-128, 128, dtype=torch.int8).repeat(16, 1).T.contiguous().cuda()  # row v holds v - 128 only
    for dtype in (torch.bfloat16, torch.float16):
        for T in (1, 12, 40):
            for k in range(16):
                x = torch.zeros(T, 16, dtype=dtype, device="cuda")
                x[:, k] = 1
                want = torch.arange(-128, 128).to(dtype).expand(T, 256).cuda()
                assert torch.equal(run(x, codes, torch.ones(256, device="cuda"), None), want)


@needs_hopper
def test_one_wrong_code_shows(assert_close):
    (x, codes, scale, bias), y, t = problem(4, 64, 256, 32, torch.bfloat16)
    codes[37, 77] ^= 64
    with pytest.raises(AssertionError, match="wrong, first at"):
        assert_close(run(x, codes, scale, bias), y, t)
