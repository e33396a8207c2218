"""Zero the rows that no block names, and only those: for the outputs that a padded GEMM allocates.

moe_align_block_size puts an ignored slot (-1) into no block, and an expert of another rank into a block of expert -1:
nobody would write their rows. Most calls have none, and to clear a large output for that takes as long as a sixth of
the GEMM. Whether row r is named is asked the way a sparse set is, whose table needs no clearing either:

    where[ids[p]] = p   for each named p;      r is named  <=>  p = where[r] is in range, named, and ids[p] = r
"""

from __future__ import annotations

import torch

from moeracle.kernels.triton.triton_import import tl, triton

CLEAR = 16 << 20  # bytes of output up to which clearing it all is quicker than two launches: 5 us on an H200
Blocks = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@triton.jit
def named_positions(ids_ptr, experts_ptr, end_ptr, position, num_ids, block_size):
    """Return each position's id, and whether its block is one that is multiplied."""
    inside = (position >= 0) & (position < tl.minimum(tl.load(end_ptr), num_ids))
    ids = tl.load(ids_ptr + position, mask=inside, other=-1)
    experts = tl.load(experts_ptr + position // block_size, mask=inside, other=-1)
    return ids, inside & (experts >= 0)


@triton.jit(do_not_specialize=["num_ids", "R", "block_size"])
def named_rows_kernel(
    ids_ptr, experts_ptr, end_ptr, where_ptr, num_ids, R, block_size, EARLY: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: BLOCK positions write down where they are."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids, named = named_positions(ids_ptr, experts_ptr, end_ptr, position, num_ids, block_size)
    tl.store(where_ptr + ids, position, mask=named & (ids >= 0) & (ids < R))


@triton.jit(do_not_specialize=["num_ids", "R", "block_size"])
def unnamed_rows_kernel(
    ids_ptr, experts_ptr, end_ptr, where_ptr, y_ptr, num_ids, R, block_size, N, EARLY: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program: ROWS rows, of which those that nobody named become 0."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    position = tl.load(where_ptr + row, mask=row < R, other=-1)  # of an unnamed row whatever lay there
    ids, named = named_positions(ids_ptr, experts_ptr, end_ptr, position, num_ids, block_size)
    unnamed = (row < R) & ((ids != row) | (named == 0))
    if tl.sum(unnamed.to(tl.int32), axis=0) > 0:
        for start in range(0, N, WIDTH):
            n = start + tl.arange(0, WIDTH)
            at = row.to(tl.int64)[:, None] * N + n[None, :]
            zero = tl.zeros((ROWS, WIDTH), dtype=y_ptr.dtype.element_ty)
            tl.store(y_ptr + at, zero, mask=unnamed[:, None] & (n < N)[None, :])


def zero_unnamed_rows(y: torch.Tensor, blocks: Blocks, block_size: int, *, early: bool = False) -> None:
    """Zero in place the rows of an output that the GEMM of these blocks will not write.

    y[r] = 0   where no p < end has sorted_token_ids[p] = r and expert_ids[p // B] >= 0

    Args:
        y: [R, N], contiguous, R at least 1.
        blocks: sorted_token_ids int32, expert_ids int32, num_tokens_post_padded int32 [1], contiguous.
        block_size: B of the alignment.
        early: let the kernel launched next start early (compute capability 9.0); it must wait before it reads or
            writes anything of these.
    Source: P. Briggs, L. Torczon, An efficient representation for sparse sets, doi.org/10.1145/176454.176484.
    """
    (ids, experts, end), (R, N) = blocks, y.shape
    where = torch.empty(R, dtype=torch.int32, device=y.device)
    options = {"launch_pdl": True} if early else {}
    named_rows_kernel[(triton.cdiv(ids.numel(), 512),)](
        ids, experts, end, where, ids.numel(), R, block_size, EARLY=early, BLOCK=512, num_warps=4
    )
    unnamed_rows_kernel[(triton.cdiv(R, 64),)](
        ids, experts, end, where, y, ids.numel(), R, block_size, N, EARLY=early, ROWS=64, WIDTH=64, num_warps=4,
        **options,
    )  # fmt: skip


def output_for(R: int, N: int, blocks: Blocks, block_size: int, dtype: torch.dtype, *, early: bool) -> torch.Tensor:
    """Allocate [R, N] for a padded GEMM, rows that it will not write being 0.

    Args:
        R, N: sizes.
        blocks, block_size, early: as zero_unnamed_rows.
        dtype: of the output.
    """
    device = blocks[0].device
    if R * N * dtype.itemsize <= CLEAR or device.type != "cuda":
        return torch.zeros(R, N, dtype=dtype, device=device)
    y = torch.empty(R, N, dtype=dtype, device=device)
    zero_unnamed_rows(y, blocks, block_size, early=early)
    return y
