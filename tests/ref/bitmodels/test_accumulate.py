"""Schedules: tiles, splits, permuted inputs, scales after the dot, matrix units, coverage, bounds, and mistakes."""

import pytest
import torch

from moeracle.ref.bitmodels.accumulate import INSTRUCTIONS, Schedule, accumulate
from moeracle.ref.bitmodels.tensor_core import AMPERE, HOPPER, fused_dot
from moeracle.ref.bounds.dot import dot_radius
from moeracle.ref.contracts.contract import Contract
from support.sums import of_terms

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TREES = [
    Schedule("fma"),
    Schedule("mul_add", order="reversed"),
    Schedule("mul_add", order="pairwise"),
    Schedule("mul_add", order="halves", tile=24, combine="pairwise"),
    Schedule("fma", tile=32, combine="sequential", tile_order="descending"),
    Schedule("fma", tile=16, split_k=3, split_combine="reversed"),
    Schedule("fma", order="lanes", lanes=32, chunk=8),
]
CORES = [
    Schedule("wgmma.k16.sm90", tile=64),
    Schedule("mma.m16n8k16.sm90", tile=32, split_k=2),
    Schedule("mma.m16n8k16.sm80", tile=32, combine="sequential"),
]


def draw(seed, M, K, N, dtype=BF16, outlier=1.0, cancel=False):
    g = torch.Generator().manual_seed(seed)
    a, w = torch.randn(M, K, generator=g), torch.randn(N, K, generator=g)
    a[:, ::17] *= outlier
    if cancel:
        a[:, K // 2 : K // 2 * 2], w[:, K // 2 : K // 2 * 2] = a[:, : K // 2], -w[:, : K // 2]
    return a.to(dtype), w.to(dtype)


BIG = 2.0**24  # swallows a 1 (a tie, to even) but not a 2


def test_tiles_and_splits():
    terms = [BIG, 1.0, 1.0, 1.0]
    assert of_terms(terms, Schedule("mul_add", tile=2)) == 0x4B800000  # chained: tiles change nothing
    assert of_terms(terms, Schedule("mul_add", tile=2, combine="sequential")) == 0x4B800001
    assert of_terms(terms, Schedule("mul_add", tile=2, tile_order="descending")) == 0x4B800002  # 2+2^24, then a tie
    assert of_terms(terms, Schedule("mul_add", split_k=2)) == 0x4B800001
    six = [1.0, 1.0, BIG, 0.0, -BIG, 1.0]
    assert of_terms(six, Schedule("mul_add", split_k=3)) == 0x40400000  # (2 + 2^24) + (1 - 2^24): 3
    assert of_terms(six, Schedule("mul_add", split_k=3, split_combine="reversed")) == 0x40400000


def test_k_order_permutes_every_period():
    terms = [BIG, 1.0, 1.0, 1.0, -BIG, 0.0, 0.0, 0.0]
    assert of_terms(terms, Schedule("mul_add", tile=4)) == 0
    assert of_terms(terms, Schedule("mul_add", tile=4, k_order=(1, 2, 3, 0))) == 0x40800000


# Scales and zeros after the dot.


def test_post_scaled_groups_and_hoisted_zero():
    a, u = draw(5, 3, 64, 5)
    g = torch.Generator().manual_seed(9)
    u = torch.randint(0, 16, u.shape, generator=g).float()
    s, z = torch.rand(5, 2, generator=g).to(BF16), torch.full((5, 2), 8.0)
    want = torch.zeros(3, 5)
    for g in (0, 1):
        raw, total = torch.zeros(3, 5), torch.zeros(3, 1)
        for k in range(32 * g, 32 * g + 32):
            raw, total = raw + a[:, k, None].float() * u[:, k], total + a[:, k, None].float()
        want = want + (raw - total * z[:, g]) * s[:, g].float()
    got = accumulate(a.float(), u, Schedule("mul_add", tile=32), scale=s, zero=z)
    assert torch.equal(got, want)
    fused = accumulate(a.float(), u, Schedule("mul_add", tile=32, scale_fused=True), scale=s, zero=z)
    assert not torch.equal(got, fused)
    exact = a.double() @ ((u - 8) * s.float().repeat_interleave(32, 1)).double().T
    assert torch.allclose(got.double(), exact, atol=1e-3)
    lanes = accumulate(a.float(), u - 8, Schedule("fma", order="lanes", lanes=16, chunk=2), scale=s)
    assert torch.allclose(lanes.double(), exact, atol=1e-4)
    tensor = accumulate(a, u.to(BF16), Schedule("wgmma.k16.sm90", tile=32), scale=s, zero=z)
    assert torch.allclose(tensor.double(), exact, atol=1e-3)


# Matrix units in schedules.


def test_tiles_of_a_chained_matrix_unit_change_nothing_and_parts_do():
    a, w = draw(6, 5, 200, 7)
    whole = fused_dot(a, w, HOPPER)
    assert torch.equal(accumulate(a, w, Schedule("wgmma.k16.sm90")), whole)
    assert torch.equal(accumulate(a, w, Schedule("wgmma.k16.sm90", tile=64)), whole)
    assert torch.equal(accumulate(a, w, Schedule("mma.m16n8k16.sm80", tile=64)), fused_dot(a, w, AMPERE))
    assert torch.equal(accumulate(a, w, Schedule("mma.m16n8k8.sm90")), fused_dot(a, w, HOPPER, step=8))
    assert not torch.equal(accumulate(a, w, Schedule("mma.m16n8k8.sm90")), whole)
    halves = fused_dot(a[:, :128], w[:, :128], HOPPER) + fused_dot(a[:, 128:], w[:, 128:], HOPPER)
    assert torch.equal(accumulate(a, w, Schedule("wgmma.k16.sm90", tile=64, split_k=2)), halves)
    flipped = torch.arange(208).unflatten(0, (13, 16)).flip(0).flatten()
    padded = [torch.nn.functional.pad(x, (0, 8))[:, flipped] for x in (a, w)]
    assert torch.equal(accumulate(a, w, Schedule("wgmma.k16.sm90", order="reversed")), fused_dot(*padded, HOPPER))


@pytest.mark.parametrize(
    "schedule", ["wgmma.k16.sm90/t64", "mma.m16n8k8.sm80/s2/join=pairwise", "mfma.k16.cdna3/t32/fused"]
)
def test_problems_side_by_side_are_each_alone(schedule):
    schedule, generator = Schedule.parse(schedule), torch.Generator().manual_seed(5)
    a, w = (torch.randn(5, n, 128, generator=generator).bfloat16() for n in (3, 700))
    scale = torch.rand(5, 700, 2, generator=generator) if schedule.tile else None
    each = [None] * 5 if scale is None else scale
    alone = [accumulate(x, y, schedule, scale=s) for x, y, s in zip(a, w, each, strict=True)]
    assert torch.equal(accumulate(a, w, schedule, scale=scale).view(torch.int32), torch.stack(alone).view(torch.int32))
    with pytest.raises(ValueError, match=r"^w: got shape \(4, 700, 128\), must be \[5, N, K=128\]$"):
        accumulate(a, w[1:], schedule)
    with pytest.raises(ValueError, match=r"^a: got shape \(5, 3, 128\), must be \[M, K\] with schedule fma$"):
        accumulate(a, w, Schedule.parse("fma"))


def test_parts_of_a_large_problem_are_the_whole():
    a, w = draw(7, 150, 48, 300)
    for schedule in (Schedule("wgmma.k16.sm90"), Schedule("mul_add", order="pairwise"), Schedule("fma")):
        got = accumulate(a, w, schedule)
        assert torch.equal(got[140:, 290:], accumulate(a[140:], w[290:], schedule))
        assert torch.equal(got[:3, :5], accumulate(a[:3], w[:5], schedule))


# Bounds and mistakes.


@pytest.mark.parametrize("schedule", TREES + CORES, ids=lambda s: f"{s.instruction}-{s.order}-{s.combine}-{s.split_k}")
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_every_schedule_lies_within_the_any_order_bound(schedule, dtype):
    rules = Contract("c", accumulator="fp32" if schedule.how.core is None else "tensor_core")
    for seed, outlier, cancel in ((0, 1.0, False), (1, 500.0, False), (2, 1.0, True)):
        a, w = draw(seed, 8, 240, 8, dtype, outlier, cancel)
        y, t = a.double() @ w.double().T, a.double().abs() @ w.double().abs().T
        radius = dot_radius(y.clone(), t, 240, rules, dtype)
        assert bool(((accumulate(a, w, schedule).double() - y).abs() <= radius).all())


def test_declared_orders_give_different_bits():
    a, w = draw(8, 16, 240, 16)
    results = [accumulate(a, w, s) for s in TREES + CORES]
    for i, x in enumerate(results):
        for y in results[:i]:
            assert (x != y).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"instruction": "wgma.k16.sm90"}, "instruction: got 'wgma.k16.sm90', .* did you mean 'wgmma.k16.sm90'"),
        ({"instruction": "fma", "order": "pairwize"}, "order: .* did you mean 'pairwise'"),
        ({"instruction": "wgmma.k16.sm90", "order": "pairwise"}, "must be sequential or reversed for a matrix unit"),
        ({"instruction": "wgmma.k16.sm90", "tile": 24}, "tile: got 24, must be a multiple of wgmma.k16.sm90's K=16"),
        ({"instruction": "fma", "split_k": 0}, "split_k: got 0, must be 1 to 1048576"),
        (
            {"instruction": "fma", "tile": 8, "k_order": (0, 2)},
            r"k_order: got \(0, 2\), must be a permutation of range",
        ),
        ({"instruction": "fma", "tile": 8, "k_order": (0, 2, 1)}, "k_order: got 3 places, must divide tile=8"),
        ({"instruction": "fma", "order": "lanes"}, "lanes, chunk: go with order 'lanes'"),
        ({"instruction": "fma", "lanes": 32, "chunk": 8}, "lanes, chunk: go with order 'lanes'"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        Schedule(**fields)
    assert "\n" not in str(caught.value)


def test_a_schedule_must_cover_k_and_fit_the_scale():
    x = torch.ones(1, 256, dtype=BF16)
    with pytest.raises(ValueError, match=r"covers 128 inputs \(split_k=2, tiles=1, tile=64\), must cover K=256"):
        accumulate(x, x, Schedule("wgmma.k16.sm90", tile=64, tiles=1, split_k=2))
    with pytest.raises(ValueError, match="tile: got 64, must divide the scale's group of 32"):
        accumulate(x, x, Schedule("wgmma.k16.sm90", tile=64), scale=torch.ones(1, 8))
    with pytest.raises(ValueError, match=r"w: got shape \(1, 255\), must be \[N, K=256\]"):
        accumulate(x, x[:, 1:], Schedule("fma"))
    assert set(INSTRUCTIONS) >= {"wgmma.k16.sm90", "mma.m16n8k16.sm90", "mma.m16n8k16.sm80", "mfma.k16.cdna3", "fma"}
