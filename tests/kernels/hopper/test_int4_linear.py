"""The dense Hopper kernels: tiles anywhere; on a GPU of compute capability 9.0 the portable kernels' bits."""

from __future__ import annotations

import itertools

import pytest
import torch

from moeracle.kernels.hopper.cases import hopper_case, on_hopper
from moeracle.kernels.hopper.int4_linear import int4_linear_hopper, shared_expert_hopper
from moeracle.kernels.hopper.prepared_weight import prepare_weight
from moeracle.kernels.hopper.tiles.kinds import WHOLE_X, Few
from moeracle.kernels.hopper.tiles.linear import MOST_SHARED, Wide, linear_tile, ranked

needs_hopper = pytest.mark.skipif(not on_hopper(), reason="needs a GPU of compute capability 9.0")


@pytest.mark.parametrize("N", [16, 64, 100, 1024, 2048, 4096, 5120, 65536])
def test_a_tile_divides_the_prepared_weight(N):
    seen = 0
    for T in (1, 8, 9, 16, 17, 32, 64, 65, 200, 1024, 5000):
        for K in (16, 64, 128, 512, 704, 2048, 2880, 4096, 16384):
            divides(linear_tile(T, N, K), N, K)
            seen += 1
    assert seen == 99


def divides(tile, N, K):
    rows, columns = -(-N // 64) * 64, -(-K // 128) * 128
    assert rows % tile.block_n == 0
    assert tile.num_warps % 4 == 0
    if isinstance(tile, Wide):
        assert columns % (64 * tile.depth) == 0
        assert (64 * tile.depth) % tile.block_k == 0
        assert columns % (64 * tile.depth * tile.split_k) == 0
        assert tile.split_k == 1 or columns == K  # the schedule names parts of K itself
        assert tile.num_stages >= 2
        kept = (tile.split_k - 1) * tile.block_n * tile.block_m * 4
        assert tile.split_k * tile.num_stages * tile.block_k * tile.block_m * 2 + kept <= MOST_SHARED
    else:
        assert columns % (64 * tile.split_k * tile.depth) == 0
        assert tile.split_k == 1 or columns == K  # the schedule names parts of K itself
        assert tile.block_m * columns * 2 <= WHOLE_X
        assert tile.block_m * tile.split_k <= 64


def test_twice_the_rows_take_at_most_twice_the_time_and_never_less():
    """As the model has it, there is no cliff."""
    for N, K in ((4096, 2048), (2048, 4096), (9216, 4096), (5120, 5120)):
        took = [ranked(T, N, K)[0][0] for T in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)]
        assert all(0.97 * t <= after <= 2.1 * t for t, after in itertools.pairwise(took)), took


def test_few_rows_of_a_small_matrix_still_make_a_program_a_multiprocessor():
    for T, N, K in ((1, 2048, 4096), (4, 4096, 2048), (16, 2048, 4096), (64, 4096, 2048)):
        tile = linear_tile(T, N, K)
        assert -(-T // tile.block_m) * N // tile.block_n >= 128


@pytest.fixture
def problem(make_weight, device):
    def make(T, N, K, G, dtype=torch.bfloat16, zero="sym"):
        w, exact = make_weight(N, K, G=G, dtype=dtype, zero=zero, seed=N)
        g = torch.Generator().manual_seed(T)
        x = torch.randn(T, K + 24, generator=g).to(dtype).to(device)[:, 8 : K + 8]
        return x, w, torch.randn(N, generator=g).to(dtype).to(device), exact

    return make


TILES = [
    Few(8, 64, 1, 1),
    Few(32, 128, 1, 1),
    Wide(16, 64, 64, 2, 2),
    Wide(64, 64, 128, 3, 2),
    Wide(128, 128, 64, 6),
]
SIZES = [
    (1, 64, 128, 32),
    (7, 100, 320, 64),
    (33, 200, 704, -1),
    (130, 320, 512, 128),
    (16, 48, 96, 16),
    (0, 64, 64, 32),
]


@needs_hopper
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "zero"), [(torch.bfloat16, "sym"), (torch.float16, "rdna"), (torch.bfloat16, "rdna")]
)
def test_in_one_part_it_is_the_portable_kernel_bit_for_bit(problem, size, dtype, zero):
    from moeracle.kernels.triton.int4_linear import int4_linear_dot

    x, w, bias, _ = problem(*size, dtype=dtype, zero=zero)
    for b in (bias, None):
        want = int4_linear_dot(x, w, b)
        for tile in TILES:
            rows, columns = -(-size[1] // 64) * 64, -(-size[2] // 128) * 128
            if rows % tile.block_n == 0 and columns % (64 * tile.depth) == 0:
                for early in (True, False):
                    assert torch.equal(int4_linear_hopper(x, w, b, config=tile, early=early), want), (tile, early)


@needs_hopper
@pytest.mark.parametrize(
    "tile",
    [
        Few(8, 16, 4, 2),
        Few(8, 16, 8, 1),
        Few(8, 32, 2, 4),
        Few(16, 32, 4, 2),
        Few(32, 64, 2, 4),
        Wide(32, 64, 256, 2, 4, 2),
        Wide(64, 64, 64, 3, 2, 2),
    ],
)
def test_parts_are_added_pairwise(problem, assert_close, tile):
    """Each part alone, the rest of x being zeros, is the unsplit kernel's; together they are close to fp64."""
    x, w, bias, exact = problem(30, 128, 512, 32)
    y = x.cpu().double() @ exact.T
    assert_close(
        int4_linear_hopper(x, w, bias, config=tile), y + bias.cpu().double(), x.cpu().double().abs() @ exact.abs().T
    )
    part = torch.arange(512, device=x.device) // (512 // tile.split_k)
    for p in range(tile.split_k):
        kept = torch.where(part == p, x, 0)
        assert torch.equal(
            int4_linear_hopper(kept, w, config=tile), int4_linear_hopper(kept, w, config=Few(8, 64, 1, 1))
        )


@needs_hopper
@pytest.mark.parametrize("size", [(33, 128, 512, 32), (130, 64, 1024, -1), (65, 192, 512, 64)], ids=str)
@pytest.mark.parametrize(("dtype", "zero"), [(torch.bfloat16, "sym"), (torch.float16, "rdna")])
def test_halves_of_k_are_the_same_bits_in_either_kernel(problem, size, dtype, zero):
    """One schedule: the diagonal of a product in few, warps of their own in ring."""
    x, w, bias, _ = problem(*size, dtype=dtype, zero=zero)
    want = int4_linear_hopper(x, w, bias, config=Few(32, 64, 2, 2))
    for tile in (Wide(32, 64, 64, 4, 4, 2), Wide(64, 64, 128, 2, 2, 2), Wide(16, 64, 256, 2, 4, 2)):
        assert tile.schedule() == Few(32, 64, 2, 2).schedule()
        for early in (True, False):
            assert torch.equal(int4_linear_hopper(x, w, bias, config=tile, early=early), want), (tile, early)


@needs_hopper
@pytest.mark.parametrize("T", [8, 64, 128, 256])
def test_a_chain_of_early_launches_waits_for_each_result(make_weight, device, T):
    """Each launch reads what the one before it writes, and may start before that has ended."""
    layers = [make_weight(2048, 2048, G=128, seed=seed)[0] for seed in range(2)] * 4
    x = torch.randn(T, 2048).to(torch.bfloat16).to(device)
    want = x
    for w in layers:
        want = int4_linear_hopper(want, w, early=False)
    assert torch.isfinite(want).all()
    for _ in range(5):
        got = x
        for w in layers:
            got = int4_linear_hopper(got, w)
        assert torch.equal(got, want)


@needs_hopper
@pytest.mark.parametrize("T", [1, 5, 16, 40, 64, 65, 100, 300])
@pytest.mark.parametrize("size", [(4096, 2048, 128), (2048, 4096, 32), (100, 704, 64)], ids=str)
def test_the_choice_against_fp64(problem, assert_close, T, size):
    x, w, bias, exact = problem(T, *size)
    y, t = x.cpu().double() @ exact.T + bias.cpu().double(), x.cpu().double().abs() @ exact.abs().T
    assert_close(int4_linear_hopper(x, w, bias), y, t)
    assert torch.equal(int4_linear_hopper(x, prepare_weight(w), bias), int4_linear_hopper(x, w, bias))


@needs_hopper
@pytest.mark.parametrize("T", [0, 1, 6, 40, 150])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_shared_expert_is_close_to_the_portable_one(make_weight, device, T, dtype):
    from moeracle.kernels.triton.shared_expert import shared_expert

    up, _ = make_weight(2 * 192, 512, G=64, dtype=dtype, zero="rdna", seed=1)
    down, _ = make_weight(512, 192, G=64, dtype=dtype, zero="rdna", seed=2)
    x, gate = torch.randn(T, 512).to(dtype).to(device), torch.randn(512).to(dtype).to(device) / 20
    for g in (gate, None):
        want, got = (f(x, up, down, g, return_stages=True) for f in (shared_expert, shared_expert_hopper))
        for stage in ("a", "out"):
            assert torch.allclose(got[stage].float(), want[stage].float(), rtol=0.02, atol=0.02), stage
        assert torch.equal(shared_expert_hopper(x, up, down, g), got["out"])


def test_mistakes_are_named(make_weight, device):
    w, _ = make_weight(64, 128, G=32)
    experts, _ = make_weight(2, 64, 128, G=32)
    x = torch.zeros(2, 128, dtype=torch.bfloat16, device=device)
    for call, message in [
        (lambda: int4_linear_hopper(x[:, :64], w), r"x: got shape .* must be \[rows, 128\]"),
        (lambda: int4_linear_hopper(x.half(), w), "x: got torch.float16"),
        (lambda: int4_linear_hopper(x, experts), "w: got 2 experts"),
        (lambda: int4_linear_hopper(x, w, x[0]), r"bias: got shape .* must be \[64\]"),
        (lambda: shared_expert_hopper(x, w, w), r"w_down: got \[64, 128\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_cases_are_refused_with_a_reason(monkeypatch):
    case = lambda **sizes: type("Case", (), {"op": "int4_linear", "N": 64, "K": 96, "G": 24, **sizes})()
    monkeypatch.setattr("moeracle.kernels.hopper.cases.on_hopper", lambda: False)
    assert "compute capability 9.0" in hopper_case(case())
    monkeypatch.setattr("moeracle.kernels.hopper.cases.on_hopper", lambda: True)
    assert "group size" in hopper_case(case())
    assert hopper_case(case(G=-1)) is True
    assert "multiple of 16" in hopper_case(case(op="shared_expert", H=64, I=12, G=-1))
