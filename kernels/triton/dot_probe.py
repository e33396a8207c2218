"""Probe kernels: one dot instruction at a time, fed as `moeracle infer --probe-hardware` asks.

out[p] = acc[p] + sum_k a[p, k] w[p, k]

`dot` goes through tl.dot: mma on NVIDIA, WMMA or MFMA on AMD, whatever the compiler takes for 16 x 16 x 16. `dot2` is
gfx11's and gfx12's v_dot2_f32_bf16 or _f16 itself, as inline assembly. Neither needs a HIP or CUDA compiler.
"""

from __future__ import annotations

import torch

from moeracle.kernels.triton.triton_import import tl, triton

TILE = 16
DOT2 = {torch.bfloat16: "v_dot2_f32_bf16", torch.float16: "v_dot2_f32_f16"}


@triton.jit
def dot_probe_kernel(a_ptr, w_ptr, acc_ptr, out_ptr, K: tl.constexpr, TILE: tl.constexpr):
    """TILE probes a program: the diagonal of a w^T + acc, the rest of which nobody reads."""
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    k = tl.arange(0, K)
    columns = tl.arange(0, TILE)
    a = tl.load(a_ptr + rows[:, None] * K + k[None, :])
    w = tl.load(w_ptr + rows[:, None] * K + k[None, :])
    acc = tl.broadcast_to(tl.load(acc_ptr + rows)[:, None], (TILE, TILE))
    out = tl.dot(a, tl.trans(w), acc)
    tl.store(out_ptr + rows[:, None] * TILE + columns[None, :], out)


@triton.jit
def dot2_probe_kernel(a_ptr, w_ptr, acc_ptr, out_ptr, ASM: tl.constexpr, TILE: tl.constexpr):
    """TILE probes a program, each one instruction on a pair of 16-bit values held in one int32."""
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    out = tl.inline_asm_elementwise(
        ASM,
        "=v,v,v,v",
        [tl.load(a_ptr + rows), tl.load(w_ptr + rows), tl.load(acc_ptr + rows)],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )
    tl.store(out_ptr + rows, out)


def dot(a: torch.Tensor, w: torch.Tensor, acc: torch.Tensor) -> torch.Tensor:
    """Return acc + the rows' dot products as this GPU's matrix instruction leaves them.

    Args:
        a, w: [P, K], both bf16 or both fp16; K 16, 32 or 64.
        acc: float32 [P].
    Returns:
        float32 [P].
    """
    P, K = a.shape
    whole = -(-P // TILE) * TILE
    a, w = (torch.nn.functional.pad(x, (0, 0, 0, whole - P)).contiguous() for x in (a, w))
    acc = torch.nn.functional.pad(acc, (0, whole - P)).contiguous()
    out = torch.empty(whole, TILE, device=a.device)
    if P:
        dot_probe_kernel[(whole // TILE,)](a, w, acc, out, K=K, TILE=TILE, num_warps=1)
    diagonal = out.view(-1, TILE, TILE).diagonal(dim1=1, dim2=2)
    return diagonal.reshape(-1)[:P]


def dot2(a: torch.Tensor, w: torch.Tensor, acc: torch.Tensor) -> torch.Tensor:
    """Return acc + a0*w0 + a1*w1 as v_dot2_f32_bf16 or v_dot2_f32_f16 leaves it: gfx11 and gfx12 only.

    Args:
        a, w: [P, 2], both bf16 or both fp16.
        acc: float32 [P].
    """
    P, block = a.shape[0], 64
    whole = -(-P // block) * block
    pad = torch.nn.functional.pad
    pairs = [pad(x, (0, 0, 0, whole - P)).contiguous().view(torch.int32).reshape(-1) for x in (a, w)]
    out = torch.empty(whole, device=a.device)
    if P:
        asm = f"{DOT2[a.dtype]} $0, $1, $2, $3"
        dot2_probe_kernel[(whole // block,)](*pairs, pad(acc, (0, whole - P)).contiguous(), out, ASM=asm, TILE=block)
    return out[:P]


def architecture() -> str:
    """Return what the current GPU calls itself: "gfx1151", "sm_90", or "" without one."""
    if not torch.cuda.is_available():
        return ""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip is not None:
        return str(getattr(properties, "gcnArchName", "")).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"
