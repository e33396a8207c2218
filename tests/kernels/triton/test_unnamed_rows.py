"""Rows that no block names become 0, every other row stays as it was: against what the blocks themselves say."""

from __future__ import annotations

import pytest
import torch

from moeracle.kernels.triton.device.unnamed_rows import output_for, zero_unnamed_rows
from moeracle.kernels.triton.moe_permute_torch import moe_align_block_size


def unwritten(blocks, B, R):
    """Walk the blocks as a GEMM does."""
    ids, experts, end = (t.tolist() for t in blocks)
    rows = set(range(R))
    for block, expert in enumerate(experts):
        if block * B < end[0] and expert >= 0:
            rows -= set(ids[block * B : (block + 1) * B])
    return sorted(rows)


@pytest.mark.parametrize("B", [1, 5, 16, 64])
@pytest.mark.parametrize(
    ("T", "k", "ignored", "ranks"), [(40, 3, 0.0, 1), (40, 3, 0.4, 1), (150, 2, 0.1, 2), (3, 2, 1.0, 1)]
)
def test_only_rows_that_nobody_writes_are_zeroed(device, B, T, k, ignored, ranks):
    E, R, g = 6, T * k, torch.Generator().manual_seed(T + B)
    ids = torch.randint(0, E, (T, k), generator=g, dtype=torch.int32)
    ids[torch.rand(T, k, generator=g) < ignored] = -1
    where = torch.arange(E, dtype=torch.int32) // ranks if ranks > 1 else None
    if where is not None:
        where[::2] = -1
    blocks = moe_align_block_size(ids, B, E, where)
    want = unwritten(blocks, B, R)
    assert (len(want) > 0) == (ignored > 0 or ranks > 1)
    y = torch.full((R, 72), float("nan"), dtype=torch.bfloat16, device=device)
    zero_unnamed_rows(y, tuple(t.to(device) for t in blocks), B)
    assert (y == 0).all(1).nonzero().flatten().tolist() == want
    assert int(y.isnan().all(1).sum()) == R - len(want)


@pytest.mark.parametrize("lies", [0, 1, 7, -1, 1 << 30])
def test_what_lay_in_the_table_before_names_no_row(device, monkeypatch, lies):
    """A position may be there by chance: of a block past the end, of another row, of an expert elsewhere."""
    ids = torch.tensor([0, 3, 9, 9, 1, 2, 9, 9, 4, 5, 9, 9], dtype=torch.int32, device=device)
    experts = torch.tensor([0, -1, 1], dtype=torch.int32, device=device)
    end = torch.tensor([8], dtype=torch.int32, device=device)
    y = torch.ones(9, 8, dtype=torch.float16, device=device)
    for value in (lies, torch.tensor([2, 4, 5, 0, 8, 9, 2, 3, 1])):
        dirty = lambda *shape, value=value, **of: (torch.zeros(*shape, **of) + torch.as_tensor(value).to(device)).int()
        monkeypatch.setattr("moeracle.kernels.triton.device.unnamed_rows.torch.empty", dirty)
        zero_unnamed_rows(y.fill_(1), (ids, experts, end), 4)
        assert y[:, 0].tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 0]


def test_a_large_output_is_not_cleared_whole(device, monkeypatch):
    monkeypatch.setattr("moeracle.kernels.triton.device.unnamed_rows.CLEAR", 0)
    blocks = moe_align_block_size(torch.tensor([[0, -1], [1, 0]], dtype=torch.int32), 4, 2)
    y = output_for(4, 8, tuple(t.to(device) for t in blocks), 4, torch.bfloat16, early=False)
    assert y.shape == (4, 8)
    assert not y[1].any()
