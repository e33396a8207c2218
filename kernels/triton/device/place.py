"""Where each slot t*k+j goes: the device functions that aligning, permuting and routing share.

A program owns a run of slots. What it must know of the others is how many slots of each key come before its own and how
many there are in all: two histograms. From them follow, with one prefix sum, every expert's start, and with its rank
inside the run every slot's place; nothing is atomic, so the order is the slots' own, every time.

    place[slot] = start[key] + slots of this key in earlier runs + rank in this run
"""

from __future__ import annotations

from moeracle.kernels.triton.triton_import import tl, triton


@triton.jit
def load_keys(ids_ptr, map_ptr, slot, last, MAPPED: tl.constexpr):
    """Return each slot's expert (local, if MAPPED), -1 for one that belongs nowhere here or lies at or after last."""
    key = tl.load(ids_ptr + slot, mask=slot < last, other=-1).to(tl.int32)
    if MAPPED:
        key = tl.load(map_ptr + tl.maximum(key, 0), mask=key >= 0, other=-1).to(tl.int32)
    return key


@triton.jit
def count_keys(ids_ptr, map_ptr, first, last, MAPPED: tl.constexpr, BINS: tl.constexpr, SLOTS: tl.constexpr):
    """Return int32 [BINS]: how many of the slots first..last-1 have each key."""
    counts = tl.zeros((BINS,), dtype=tl.int32)
    for start in range(first, last, SLOTS):
        key = load_keys(ids_ptr, map_ptr, start + tl.arange(0, SLOTS), last, MAPPED)
        counts += tl.histogram(tl.maximum(key, 0), BINS, mask=key >= 0)
    return counts


@triton.jit
def add_up_counts(counts_ptr, programs, pid, BINS: tl.constexpr, ROWS: tl.constexpr):
    """Return (counts of the runs before this program's, counts of all runs), from counts [programs, BINS]."""
    bins = tl.arange(0, BINS)
    before = tl.zeros((BINS,), dtype=tl.int32)
    total = tl.zeros((BINS,), dtype=tl.int32)
    for first in range(0, programs, ROWS):
        row = first + tl.arange(0, ROWS)
        counts = tl.load(counts_ptr + row[:, None] * BINS + bins[None, :], mask=(row < programs)[:, None], other=0)
        total += tl.sum(counts, axis=0)
        before += tl.sum(tl.where((row < pid)[:, None], counts, 0), axis=0)
    return before, total


@triton.jit
def rank_in_run(key, SLOTS: tl.constexpr):
    """Return int32 [SLOTS]: how many slots before each one have its key."""
    i = tl.arange(0, SLOTS)
    same = (key[:, None] == key[None, :]) & (i[None, :] < i[:, None])
    return tl.sum(same.to(tl.int32), axis=1)


@triton.jit
def owner_of(block, last_block):
    """Return which key each block belongs to, given the prefix sums of the keys' blocks; BINS past the last one."""
    return tl.sum((block[:, None] >= last_block[None, :]).to(tl.int32), axis=1)


@triton.jit
def place_aligned(
    before, total, first, last, pid, programs, ids_ptr, map_ptr, sorted_ptr, experts_ptr, end_ptr, R, E,
    MAPPED: tl.constexpr, B: tl.constexpr, B_POW2: tl.constexpr, BINS: tl.constexpr, SLOTS: tl.constexpr,
    EXPERTS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Write this program's share of sorted_token_ids, expert_ids and num_tokens_post_padded.

    Keys are global; MAPPED only renames expert_ids. EXPERTS: keys whose padding this program writes; BLOCKS: a step.
    """
    blocks = (total + B - 1) // B
    last_block = tl.cumsum(blocks, 0)
    begin = (last_block - blocks) * B
    used = tl.sum(blocks, axis=0)
    length = R + E * (B - 1)
    ahead = before
    for run in range(first, last, SLOTS):
        slot = run + tl.arange(0, SLOTS)
        key = load_keys(ids_ptr, map_ptr, slot, last, False)
        safe = tl.maximum(key, 0)
        at = tl.gather(begin + ahead, safe, 0) + rank_in_run(key, SLOTS)
        tl.store(sorted_ptr + at, slot, mask=key >= 0)
        ahead += tl.histogram(safe, BINS, mask=key >= 0)
    # The padding of this program's experts, fewer than B entries each, and its part of the tail.
    e = pid * EXPERTS + tl.arange(0, EXPERTS)
    safe_e = tl.minimum(e, BINS - 1)
    pad = tl.gather(begin + total, safe_e, 0)[:, None] + tl.arange(0, B_POW2)[None, :]
    pad_end = tl.gather(last_block * B, safe_e, 0)
    filler = tl.full((EXPERTS, B_POW2), 0, tl.int32) + R
    tl.store(sorted_ptr + pad, filler, mask=(pad < pad_end[:, None]) & (e < E)[:, None])
    for start in range(used * B + pid * 1024, length, programs * 1024):
        tail = start + tl.arange(0, 1024)
        tl.store(sorted_ptr + tail, tl.full((1024,), 0, tl.int32) + R, mask=tail < length)
    num_blocks = (length + B - 1) // B
    for start in range(pid * BLOCKS, num_blocks, programs * BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        expert = owner_of(block, last_block)
        if MAPPED:
            expert = tl.load(map_ptr + expert, mask=block < used, other=-1).to(tl.int32)
        tl.store(experts_ptr + block, tl.where(block < used, expert, -1), mask=block < num_blocks)
    if pid == 0:
        tl.store(end_ptr, used * B)


@triton.jit
def place_permuted(
    before, total, first, last, pid, programs, ids_ptr, map_ptr, inv_ptr, order_ptr, offsets_ptr, table_ptr, R, E,
    num_table, MAPPED: tl.constexpr, BM: tl.constexpr, BINS: tl.constexpr, SLOTS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Write this program's share of inv, row order, expert_offsets and (BM > 0) the table of BM-row blocks.

    Keys are local if MAPPED. Slots of no expert here come last, in order.
    """
    end = tl.cumsum(total, 0)
    begin = end - total
    placed = tl.sum(total, axis=0)
    ahead = before
    rest = first - tl.sum(before, axis=0)
    for run in range(first, last, SLOTS):
        slot = run + tl.arange(0, SLOTS)
        key = load_keys(ids_ptr, map_ptr, slot, last, MAPPED)
        safe = tl.maximum(key, 0)
        rank = rank_in_run(key, SLOTS)
        row = tl.where(key >= 0, tl.gather(begin + ahead, safe, 0) + rank, placed + rest + rank)
        tl.store(inv_ptr + slot, row, mask=slot < last)
        tl.store(order_ptr + row, slot, mask=slot < last)
        ahead += tl.histogram(safe, BINS, mask=key >= 0)
        rest += tl.sum(((key < 0) & (slot < last)).to(tl.int32), axis=0)
    if pid == 0:
        e = tl.arange(0, BINS)
        tl.store(offsets_ptr + e, begin.to(tl.int64), mask=e < E)
        tl.store(offsets_ptr + E, placed.to(tl.int64))
    if BM > 0:
        blocks = (total + BM - 1) // BM
        last_block = tl.cumsum(blocks, 0)
        used = tl.sum(blocks, axis=0)
        for start in range(pid * BLOCKS, num_table, programs * BLOCKS):
            block = start + tl.arange(0, BLOCKS)
            expert = owner_of(block, last_block)
            of_expert = block < used
            safe = tl.minimum(expert, BINS - 1)
            m_start = tl.gather(begin - (last_block - blocks) * BM, safe, 0) + block * BM
            m_end = tl.gather(end, safe, 0)
            # Rows of no expert here follow as blocks of expert -1.
            m_start = tl.where(of_expert, m_start, placed + (block - used) * BM)
            m_count = tl.minimum(tl.where(of_expert, m_end, R) - m_start, BM)
            mask = block < num_table
            tl.store(table_ptr + block * 3, tl.where(of_expert, expert, -1).to(tl.int64), mask=mask)
            tl.store(table_ptr + block * 3 + 1, tl.where(m_count > 0, m_start, 0).to(tl.int64), mask=mask)
            tl.store(table_ptr + block * 3 + 2, tl.maximum(m_count, 0).to(tl.int64), mask=mask)
