"""One launch that cuts expert-ordered rows into blocks, against the table that torch makes of the same offsets."""

from __future__ import annotations

import pytest
import torch

from moeracle.kernels.hopper.moe_w4a16 import most_blocks
from moeracle.kernels.triton.device import block_table as block_table_triton
from moeracle.kernels.triton.device.block_table import aligned_rows, table_of
from moeracle.kernels.triton.grouped_gemm import block_table, grouped_gemm

# Rows of each expert, rows before the first offset, rows after the last.
LAYOUTS = [
    ([0, 0, 0], 0, 5),
    ([3, 0, 18], 0, 0),
    ([3, 0, 18, 0], 2, 7),
    ([40], 0, 0),
    ([70], 3, 1),
    ([1] * 40, 0, 3),
    ([0] * 32 + [5, 300], 0, 20),
    ([0] * 20 + [5, 0, 9] * 5, 1, 2),
]


def laid_out(layout, device):
    counts, lead, trail = layout
    offsets = torch.tensor([0, *counts]).cumsum(0) + lead
    y = torch.full((int(offsets[-1]) + trail, 20), float("nan"), dtype=torch.bfloat16, device=device)
    return offsets.to(device), y, torch.arange(lead + 1), torch.arange(int(offsets[-1]), y.shape[0])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda l: f"E{len(l[0])}+{l[1]}+{l[2]}")
@pytest.mark.parametrize("block_m", [8, 24, 64])
def test_the_table_is_the_one_that_torch_makes(device, layout, block_m):
    offsets, y, lead, _ = laid_out(layout, device)
    assert torch.equal(table_of(offsets, y, block_m), block_table(offsets, y.shape[0], block_m))
    zeroed = (y == 0).all(1)
    assert zeroed[: len(lead) - 1].all()  # what is in no block of the table
    assert zeroed.sum() == len(lead) - 1
    assert torch.equal(table_of(offsets.int(), y, block_m), block_table(offsets, y.shape[0], block_m))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda l: f"E{len(l[0])}+{l[1]}+{l[2]}")
@pytest.mark.parametrize("block_m", [8, 64])
def test_aligned_rows_are_the_tables_rows(device, layout, block_m):
    offsets, y, lead, trail = laid_out(layout, device)
    R, E = y.shape[0], len(layout[0])
    num = most_blocks(R, E, block_m)
    ids, experts, end = (t.cpu() for t in aligned_rows(offsets, y, block_m, num))
    table = [row for row in block_table(offsets, R, block_m).tolist() if row[2] and row[0] >= 0]
    assert int(end) == len(table) * block_m <= ids.numel() == num * block_m
    assert experts.tolist() == [row[0] for row in table] + [-1] * (num - len(table))
    want = [[start + i if i < count else R for i in range(block_m)] for _, start, count in table]
    assert ids[: int(end)].tolist() == [slot for block in want for slot in block]
    nobody = torch.zeros(R, dtype=torch.bool)
    nobody[lead[:-1]] = nobody[trail] = True
    assert torch.equal((y == 0).all(1).cpu(), nobody)
    assert y[~nobody.to(device)].isnan().all()


def test_offsets_beyond_x_are_cut_off(device):
    """They break the contract; what is written stays inside all the same."""
    y = torch.ones(10, 4, dtype=torch.bfloat16, device=device)
    ids, experts, end = (t.cpu() for t in aligned_rows(torch.tensor([0, 4, 90], device=device), y, 8, 2))
    assert (experts.tolist(), int(end)) == ([0, 1], 16)
    assert ids.tolist() == [0, 1, 2, 3, 10, 10, 10, 10, 4, 5, 6, 7, 8, 9, 10, 10]
    table = table_of(torch.tensor([0, 4, 90], device=device), y, 8).tolist()
    assert [row for row in table if row[2]] == [[0, 0, 4], [1, 4, 6]]
    experts = aligned_rows(torch.tensor([0, 10, 0, 10], device=device), y, 8, 2)[1]  # which decrease
    assert experts.shape == (2,)
    assert y.eq(1).all()


@pytest.mark.parametrize("bins", [8, 32])
def test_more_experts_than_are_read_at_once(device, monkeypatch, bins):
    monkeypatch.setattr(block_table_triton, "MOST_BINS", bins)
    test_the_table_is_the_one_that_torch_makes(device, LAYOUTS[-1], 8)
    test_aligned_rows_are_the_tables_rows(device, LAYOUTS[-1], 8)


@pytest.mark.parametrize("launch", [False, True], ids=["as_here", "one_launch"])
def test_grouped_writes_rows_of_no_expert_wherever_they_lie(make_weight, device, monkeypatch, launch):
    w, _ = make_weight(3, 24, 40, G=8)
    counts, lead, trail = [5, 0, 18], 4, 9
    offsets = (torch.tensor([0, *counts]).cumsum(0) + lead).to(device)
    x = torch.randn(lead + 23 + trail, 40, generator=torch.Generator().manual_seed(0)).bfloat16().to(device)
    want = grouped_gemm(x[lead : lead + 23], w, offsets - lead)
    if launch:  # what a GPU does, by the interpreter
        monkeypatch.setattr(
            "moeracle.kernels.triton.grouped_gemm.block_table", lambda o, R, m: table_of(o, x.new_ones(R, 24), m)
        )
    poisoned = lambda *shape, dtype, device: torch.ones(*shape, device=device).to(dtype)
    monkeypatch.setattr("moeracle.kernels.triton.grouped_gemm.torch.empty", poisoned)
    y = grouped_gemm(x, w, offsets)
    assert torch.equal(y[lead : lead + 23], want)
    assert not y[:lead].any()
    assert not y[lead + 23 :].any()
