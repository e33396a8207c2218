"""Each primitive of the emulation against numpy, one by one and bit for bit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

BITS = np.arange(1 << 16, dtype=np.uint16)


def mapped(kernel, values: np.ndarray, out: type) -> np.ndarray:
    """Run a MAP kernel over an array of any length."""
    x = torch.from_numpy(values.view({2: np.int16, 4: np.int32}[values.itemsize]))
    y = torch.zeros(len(x), dtype={2: torch.int16, 4: torch.int32}[np.dtype(out).itemsize])
    kernel.launch((-(-len(x) // 256),), (256,), x, y, len(x))
    return y.numpy().view(out)


def mapped3(kernel, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    x, y, z = (torch.from_numpy(np.ascontiguousarray(v).view(np.int32)) for v in (a, b, c))
    out = torch.zeros_like(z)
    kernel.launch((-(-len(x) // 256),), (256,), x, y, z, out, len(x))
    return out.numpy().view(c.dtype)


def floats_near_rounding(shift: int) -> np.ndarray:
    """Return fp32 whose low `shift` bits are just below, at and above every boundary, with both parities above them."""
    rng = np.random.default_rng(3)
    top = (rng.integers(0, 1 << 32, 3000, dtype=np.uint64) >> shift << shift).astype(np.uint32)
    ties = [0, 1, (1 << (shift - 1)) - 1, 1 << (shift - 1), (1 << (shift - 1)) + 1, (1 << shift) - 1]
    special = np.array([0, 0x80000000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x7FC00001, 0xFF800001, 1], np.uint32)
    edges = np.array([0x477FEFFF, 0x477FF000, 0x38800000, 0x387FFFFF, 0x33000000, 0x33000001, 0x32FFFFFF], np.uint32)
    return np.concatenate([*(top | np.uint32(t) for t in ties), special, edges]).view(np.float32)


def same(got: np.ndarray, want: np.ndarray) -> None:
    """Assert equal bits; a NaN equals a NaN."""
    kind = {2: np.uint16, 4: np.uint32}[got.itemsize]
    if np.issubdtype(got.dtype, np.floating):
        got, want = np.where(np.isnan(got), np.float32(np.nan), got), np.where(np.isnan(want), np.float32(np.nan), want)
    differ = np.flatnonzero(got.view(kind) != want.view(kind))
    assert not len(differ), (
        f"{len(differ)} differ, first at {differ[0]}: got {got[differ[0]]!r}, want {want[differ[0]]!r}"
    )


def test_bf16_narrows_as_torch_does(primitive):
    x = floats_near_rounding(16)
    want = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    quiet, finite = mapped(primitive("bf16_quiet"), x, np.uint16), mapped(primitive("bf16_finite"), x, np.uint16)
    nan = np.isnan(x)
    same(quiet[~nan], want[~nan])
    same(finite[~nan], want[~nan])
    assert np.isnan((quiet[nan].astype(np.uint32) << 16).view(np.float32)).all()
    assert not np.isnan(
        (
            mapped(primitive("bf16_finite"), np.array([0x7FFFFFFF], np.uint32).view(np.float32), np.uint16).astype(
                np.uint32
            )
            << 16
        ).view(np.float32)
    ).any()  # what the name says: not for NaN
    same(mapped(primitive("bf16_truncate"), x, np.uint16), (x.view(np.uint32) >> 16).astype(np.uint16))
    same(mapped(primitive("rounded_bf16"), x, np.float32), torch.from_numpy(x).bfloat16().float().numpy())


def test_every_16_bit_number_widens_exactly(primitive):
    same(mapped(primitive("bf16_widen"), BITS, np.float32), (BITS.astype(np.uint32) << 16).view(np.float32))
    same(mapped(primitive("fp16_widen"), BITS, np.float32), BITS.view(np.float16).astype(np.float32))


def test_fp16_narrows_as_numpy_does(primitive):
    halves = BITS.view(np.float16).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        between = (halves[:-1] + halves[1:]) / 2  # every tie
        x = np.concatenate([halves, between, np.nextafter(between, np.float32(9e9)), floats_near_rounding(13)])
        want = x.astype(np.float16)
    got = mapped(primitive("fp16_narrow"), x.astype(np.float32), np.uint16).view(np.float16)
    same(got, want)


def pairs(rng: np.random.Generator, n: int, dtype: str) -> np.ndarray:
    """Return n words of two finite 16-bit numbers each; bf16 in the range where products are normal fp32."""
    if dtype == "bf16":
        bits = rng.integers(0x2F00, 0x4F00, (n, 2)) | rng.integers(0, 2, (n, 2)) << 15
    else:
        bits = rng.integers(0, 0x7C00, (n, 2)) | rng.integers(0, 2, (n, 2)) << 15
    return (bits[:, 0] | bits[:, 1] << 16).astype(np.uint32)


def widened(words: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    low, high = (words & 0xFFFF).astype(np.uint16), (words >> 16).astype(np.uint16)
    if dtype == "bf16":
        return tuple((h.astype(np.uint32) << 16).view(np.float32) for h in (low, high))
    return tuple(h.view(np.float16).astype(np.float32) for h in (low, high))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_dot2_adds_low_then_high_with_one_rounding_each(primitive, dtype):
    rng = np.random.default_rng(1)
    a, b = pairs(rng, 4000, dtype), pairs(rng, 4000, dtype)
    low_a, high_a = widened(a, dtype)
    low_b, high_b = widened(b, dtype)
    acc = (low_a * low_b * np.float32(-1.5) + rng.standard_normal(4000).astype(np.float32)).astype(np.float32)
    got = mapped3(primitive(f"dot_{dtype}"), a, b, acc)
    same(got, (acc + low_a * low_b) + high_a * high_b)  # products are exact, so numpy rounds as fma does
    other = (acc + high_a * high_b) + low_a * low_b
    assert (got != other).mean() > 0.05, "the order of the two products must be visible in this data"


def exactly(a: np.ndarray, b: np.ndarray, c: np.ndarray, dtype: type) -> np.ndarray:
    """Round a*b + c once: through Fraction, by choosing the nearest of the neighbours of a guess."""
    out = []
    for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
        value = Fraction(x) * Fraction(y) + Fraction(z)
        with np.errstate(over="ignore"):
            guess = dtype(float(value))
            near = [guess, np.nextafter(guess, dtype(-np.inf)), np.nextafter(guess, dtype(np.inf))]
        finite = [v for v in near if np.isfinite(v)]
        unsigned = {np.float16: np.uint16, np.float32: np.uint32}[dtype]
        best = min(finite, key=lambda v: (abs(Fraction(float(v)) - value), int(v.view(unsigned)) & 1))
        out.append(best if value or guess else guess)
    return np.array(out, dtype)


def test_fused_multiply_add_rounds_once_and_the_plain_one_twice(primitive):
    rng = np.random.default_rng(2)
    a, b = (rng.standard_normal(1500).astype(np.float32) for _ in range(2))
    c = (-(a * b) * (1 + rng.choice([0, 2.0**-23, 2.0**-20, 1], 1500))).astype(np.float32)
    got = mapped3(primitive("fused"), a, b, c)
    same(got, exactly(a, b, c, np.float32))
    plain = mapped3(primitive("unfused"), a, b, c)
    same(plain, a * b + c)
    assert (plain != got).mean() > 0.2


def test_packed_fp16_rounds_each_half_once(primitive):
    rng = np.random.default_rng(4)
    finite = [
        (rng.integers(0, 0x6400, (3000, 2)) | rng.integers(0, 2, (3000, 2)) << 15).astype(np.uint16) for _ in "abc"
    ]
    # Sums that are nearly ties: c is so small against a*b that only its sign decides.
    finite[2][:1500] = rng.integers(0, 0x0400, (1500, 2))
    a, b, c = (np.ascontiguousarray(f).view(np.uint32)[:, 0] for f in finite)
    halves = [np.ascontiguousarray(f).view(np.float16) for f in finite]
    got = mapped3(primitive("fp16_pair_fma"), a, b, c).view(np.float16).reshape(-1, 2)
    for half in (0, 1):
        x, y, z = (h[:, half] for h in halves)
        with np.errstate(over="ignore"):
            fits = np.abs(x.astype(np.float64) * y + z) < 65504
        same(got[fits, half], exactly(x[fits], y[fits], z[fits], np.float16))
    difference = mapped3(primitive("fp16_pair_sub"), a, b, c).view(np.float16).reshape(-1, 2)
    same(difference, halves[0] - halves[1])


def test_elementary_functions_are_rounded_from_fp64(primitive):
    rng = np.random.default_rng(5)
    x = np.concatenate(
        [rng.standard_normal(5000) * 20, [0, -0.0, 128, -128, 1e-30, 88.8, -104, np.inf, -np.inf, np.nan]]
    )
    x = x.astype(np.float32)
    one = np.float32(1)
    with np.errstate(all="ignore"):
        e = lambda v: np.exp(v.astype(np.float64)).astype(np.float32)
        same(mapped(primitive("rcp"), x, np.float32), one / x)
        same(mapped(primitive("exponential"), x, np.float32), e(x))
        same(mapped(primitive("sigmoid"), x, np.float32), one / (one + e(-x)))
        same(mapped(primitive("silu"), x, np.float32), x * (one / (one + e(-x))))


def test_lanes(primitive):
    v = torch.randn(64, generator=torch.Generator().manual_seed(6))
    out = torch.zeros(18, 64)
    primitive("lanes").launch((1,), (64,), v, out, 5)
    got = out.numpy().reshape(18, 2, 32)
    lane = np.arange(32)
    row, at = lane // 16 * 16, lane % 16
    for w in (0, 1):
        x = v.numpy()[32 * w : 32 * w + 32]
        shr = lambda y, n: np.where(at >= n, y[np.maximum(lane - n, 0)], np.float32(0))
        ror = lambda y, n: y[row + (at - n) % 16]
        want = [
            x[lane ^ 1], x[lane ^ 16], x[lane ^ 21], x[(lane * 7 + 5) % 32], np.full(32, x[0]),
            shr(x, 1), shr(x, 8), ror(x, 1), ror(x, 12),
            shr(x, 4) + x, ror(x, 2) + x, x[lane ^ 16] + x,
        ]  # fmt: skip
        for i, expected in enumerate(want):
            same(got[i, w], expected.astype(np.float32))
        a = x.reshape(2, 16)
        tree = [
            (((r[15] + r[7]) + (r[11] + r[3])) + ((r[13] + r[5]) + (r[9] + r[1])))
            + (((r[14] + r[6]) + (r[10] + r[2])) + ((r[12] + r[4]) + (r[8] + r[0])))
            for r in a
        ]
        for i in (12, 13):
            assert got[i, w, 31] == tree[1] + tree[0]
            assert got[i, w, 15] == tree[0] + tree[1]
        assert (got[14, w].view(np.uint32) == sum(1 << l for l in range(32) if x[l] > 0)).all()
        assert (got[15, w].view(np.int32) == (lane ^ 2) * 3 - 50).all()
        assert (got[16, w] == lane).all()
        assert (got[17, w] == w).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wmma_is_a_chain_of_fused_multiply_adds_over_k(primitive, dtype):
    g = torch.Generator().manual_seed(7)
    a, b = (torch.randn(16, 16, generator=g).to(dtype) for _ in "ab")
    c = torch.randn(16, 16, generator=g)
    d = torch.zeros(16, 16)
    name = "wmma_bf16" if dtype == torch.bfloat16 else "wmma_fp16"
    primitive(name).launch((1,), (32,), a.view(torch.int16), b.view(torch.int16), c, d)
    want = c.clone()
    for k in range(16):  # products are exact in fp32
        want += a.float()[:, k, None] * b.float()[None, :, k]
    assert torch.equal(d, want)
    assert not torch.equal(d, c + a.float() @ b.float().T)


def test_matrix_operations_follow_each_other(primitive):
    a, b = (torch.randint(-9, 9, (16, 16), generator=torch.Generator().manual_seed(s)).bfloat16() for s in (1, 2))
    d = torch.zeros(16, 16)
    primitive("wmma_chain").launch((1,), (32,), a.view(torch.int16), b.view(torch.int16), d)
    assert torch.equal(d, 2 * a.float() @ b.float().T + b.float() @ a.float().T)  # small integers: exact


def test_wide_loads_and_stores(primitive):
    x = torch.randint(-(2**31), 2**31 - 1, (448,), generator=torch.Generator().manual_seed(8)).to(torch.int32)
    out = torch.zeros_like(x)
    traffic = primitive("wide").launch((1,), (64,), x, out)
    assert torch.equal(out, x)
    assert traffic.read_bytes == traffic.write_bytes == 448 * 4


def test_atomics(primitive):
    x = torch.arange(192.0)
    total, most, count = torch.zeros(1), torch.full((1,), -5, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    for backward in (False, True):
        last, first = (torch.zeros(1, dtype=torch.int32) for _ in range(2))
        primitive("atomics").launch((3,), (64,), count, total, most, last, first, x, backward=backward)
        assert (last.item(), first.item()) == ((0, 192) if backward else (191, 1))
    assert count.item() == 384
    assert total.item() == 2 * x.sum().item()
    assert most.item() == max(i ^ 37 for i in range(192))


@pytest.mark.parametrize(("grid", "block"), [((2, 3, 2), (8, 4, 2)), ((5,), (32,)), ((1, 2), (1024,))])
def test_places_and_dynamic_shared_memory(primitive, grid, block):
    threads, blocks = int(np.prod(block)), int(np.prod(grid))
    out = torch.zeros(blocks, threads, 6, dtype=torch.int32)
    traffic = primitive("places").launch(grid, block, out, 6, shared=4 * threads)
    t = torch.arange(threads)
    bx, by = block[0], (*block, 1)[1]
    want = torch.stack([t % bx, t // bx % by, t // bx // by], 1)
    assert torch.equal(out[:, :, :3], want.int().expand(blocks, -1, -1))
    assert torch.equal(out[:, :, 3], torch.arange(blocks).int()[:, None].expand(-1, threads))
    gx, gy, gz = (*grid, 1, 1)[:3]
    assert (out[:, :, 4] == gx * 100 + gy * 10 + gz).all()
    assert (out[:, :, 5] == threads * (threads + 1) // 2).all()
    assert traffic.barriers == 2 * blocks
