"""Kernels that misbehave on a GPU: each must be named with its case, and the honest one between them be judged.

    PYTHONPATH=src python3 -m moeracle check tests/on_hardware/hostile.py --case-timeout 20 --json F.json \
        --case silu_and_mul/T64-I256/bf16/-/-/normal/s1
"""

import ctypes

import torch
import triton
import triton.language as tl

import moeracle

OP = dict(contract="grouped", device="cuda", dtypes="bf16")


@triton.jit
def activate(h, out, I: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    gate = tl.load(h + row * 2 * I + column, mask=column < I).to(tl.float32)
    up = tl.load(h + row * 2 * I + I + column, mask=column < I).to(tl.float32)
    a = (gate / (1 + tl.exp(-gate))).to(tl.bfloat16).to(tl.float32)
    tl.store(out + row * I + column, (a * up).to(tl.bfloat16), mask=column < I)


@triton.jit
def store_far_away(out, BLOCK: tl.constexpr):
    tl.store(out + (tl.arange(0, BLOCK).to(tl.int64) + (1 << 44)), tl.full((BLOCK,), 1.0, tl.bfloat16))


@triton.jit
def spin(flag):
    while tl.load(flag, volatile=True) == 0:
        pass


def activated(h, out=None):
    h = h.contiguous()
    out = torch.empty(len(h), h.shape[1] // 2, dtype=h.dtype, device=h.device) if out is None else out
    I = out.shape[1]
    activate[(len(h),)](h, out, I, triton.next_power_of_2(I))
    return out


@moeracle.kernel("silu_and_mul", **OP)
def honest_first(h):
    return activated(h)


@moeracle.kernel("silu_and_mul", **OP)
def illegal_address(h):
    out = activated(h)
    store_far_away[(1,)](out, 128)
    return out


@moeracle.kernel("silu_and_mul", **OP)
def invalid_launch(h):
    out = torch.empty(len(h), h.shape[1] // 2, dtype=h.dtype, device=h.device)
    activate[(1, 1 << 20, 1)](h, out, out.shape[1], 256)  # a grid's second dimension ends at 65,535
    return out


@moeracle.kernel("silu_and_mul", **OP)
def endless(h):
    flag = torch.zeros(1, dtype=torch.int32, device=h.device)
    spin[(1,)](flag)
    return activated(h)


SIDE = []


@moeracle.kernel("silu_and_mul", **OP)
def on_a_side_stream(h):
    """Return at once; the result comes from another stream, a second later, and nobody waits for it."""
    if not SIDE:
        SIDE.append(torch.cuda.Stream())
    out = torch.zeros(len(h), h.shape[1] // 2, dtype=h.dtype, device=h.device)
    torch.cuda.current_stream().synchronize()
    with torch.cuda.stream(SIDE[0]):
        torch.cuda._sleep(2_000_000_000)
        activated(h, out)
    return out


@moeracle.kernel("silu_and_mul", **OP)
def without_synchronizing(h):
    """As above, with torch's own wait for the device patched away."""
    torch.cuda.synchronize = lambda *args: None
    return on_a_side_stream(h)


@moeracle.kernel("silu_and_mul", **OP)
def exhausts_memory(h):
    return [torch.empty(1 << 40, dtype=torch.uint8, device=h.device) for _ in range(4)]


@moeracle.kernel("silu_and_mul", **OP)
def traps_in_the_driver(h):
    ctypes.string_at(h.data_ptr())  # a device's address, read by the CPU


@moeracle.kernel("silu_and_mul", **OP)
def honest_last(h):
    return activated(h)
