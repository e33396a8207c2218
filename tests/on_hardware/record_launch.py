"""Launching for record.py: kernels are watched as they compile, and may be made to store fp32."""

import os
import re

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
import torch

import moeracle.kernels.triton.decode_gemm as decode_triton
import moeracle.kernels.triton.grouped_gemm as grouped_triton
import moeracle.kernels.triton.int4_linear as linear_triton
import moeracle.kernels.triton.int8_lm_head as lm_head_triton
import moeracle.kernels.triton.moe_sum as sum_triton
import moeracle.kernels.triton.moe_unpermute as unpermute_triton
import moeracle.kernels.triton.padded_gemm as padded_triton
import moeracle.kernels.triton.tiny_dot as tiny_triton
from moeracle.kernels import choose
from moeracle.kernels.hopper.tiles.layers import Layer, to_fields
from moeracle.kernels.toolchain import sum_orders
from moeracle.kernels.triton.tiles import Tile

LAST = {}  # the last compiled kernel of each function since a launch began
ALLOCATES = [linear_triton, lm_head_triton, tiny_triton, unpermute_triton, sum_triton, grouped_triton, padded_triton]
ALLOCATES += [choose, decode_triton]  # modules whose kernels store whatever dtype their output has


def watch():
    """Keep the last compiled kernel of each function."""
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def kept(self, *args, **kwargs):
        compiled = run(self, *args, **kwargs)
        LAST[self.fn.__name__] = compiled
        return compiled

    JITFunction.run = kept


watch()


class Fp32Outputs:
    """Stands for torch in a kernel's module: what it allocates is fp32, so that the accumulator itself is stored."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, *shape, dtype=None, device=None):
        return torch.empty(*shape, dtype=torch.float32, device=device)

    def zeros(self, *shape, dtype=None, device=None):
        return torch.zeros(*shape, dtype=torch.float32, device=device)


class Remembers:
    """Stands for torch in a kernel's module: the last fp32 tensor that it allocates is kept."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, *shape, dtype=None, device=None):
        made = torch.empty(*shape, dtype=dtype, device=device)
        if dtype == torch.float32:
            self.fp32 = made
        return made


def launched(fn, store):
    """Call fn and return what it stored, by stage; with store fp32 its module allocates fp32."""
    LAST.clear()
    for module in ALLOCATES:
        module.torch = Fp32Outputs() if store == "fp32" else torch
    try:
        out = fn()
    finally:
        for module in ALLOCATES:
            module.torch = torch
    torch.cuda.synchronize()
    return out if isinstance(out, dict) else {"out": out}


def facts_of(names, tile=None):
    """What the compiler made of these kernels: instructions, warps, how each tl.sum is laid out, operands of tl.dot."""
    found, order, warps = [], [], []
    for name in names:
        ptx, ir = LAST[name].asm["ptx"], LAST[name].asm["ttgir"]
        mma = sorted(set(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)[.\w:]*", ptx)))
        found += [f"{f} x{ptx.count(f)}" for f in mma] or [f"fma.rn.f32 x{ptx.count('fma.rn.f32')}"]
        order += [f"{name} {s.size}: {s.registers} {s.lanes} {s.warps}" for s in laid_out(ir) if s.size > 1]
        order += sorted(set(re.findall(r"opIdx = \d, parent = #\w+, kWidth = \d+", ir)))
        warps.append(LAST[name].metadata.num_warps)
    facts = {"instructions": found, "num_warps": warps[0], "order": "; ".join(order), "launches": names}
    if isinstance(tile, Tile):
        facts |= {"tile": [tile.block_m, tile.block_n, tile.block_k], "num_stages": tile.num_stages}
    elif isinstance(tile, Layer):
        facts["tile"] = to_fields(tile)
    elif tile is not None:
        facts["tile"] = to_fields(Layer(tile, tile))["gemm1"]
    return facts


def laid_out(ir):
    try:
        return sum_orders.sums(ir)
    except ValueError:
        return []
