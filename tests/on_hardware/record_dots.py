"""Raw matrix instructions for record.py: one warp, one instruction, and tl.dot on operands that are stored.

Lane l holds the fragments of groupID l // 4 and threadID_in_group l % 4, as PTX lays them out.
"""

import re

import torch
import triton
import triton.language as tl
from record_launch import facts_of
from record_replay import finished

from moeracle.kernels.triton import schedules

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16}


@triton.jit
def mma_kernel(a_ptr, b_ptr, c_ptr, d_ptr, K8: tl.constexpr, BF16: tl.constexpr):
    p = tl.program_id(0)
    lane = tl.arange(0, 32)
    a0 = tl.load(a_ptr + (p * (2 if K8 else 4) + 0) * 32 + lane)
    a1 = tl.load(a_ptr + (p * (2 if K8 else 4) + 1) * 32 + lane)
    b0 = tl.load(b_ptr + p * (1 if K8 else 2) * 32 + lane)
    c0 = tl.load(c_ptr + (p * 4 + 0) * 32 + lane)
    c1 = tl.load(c_ptr + (p * 4 + 1) * 32 + lane)
    c2 = tl.load(c_ptr + (p * 4 + 2) * 32 + lane)
    c3 = tl.load(c_ptr + (p * 4 + 3) * 32 + lane)
    if K8:
        d0, d1, d2, d3 = tl.inline_asm_elementwise(
            "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {$0,$1,$2,$3}, {$4,$5}, {$6}, {$7,$8,$9,$10};"
            if BF16
            else "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {$0,$1,$2,$3}, {$4,$5}, {$6}, {$7,$8,$9,$10};",
            "=f,=f,=f,=f,r,r,r,f,f,f,f",
            [a0, a1, b0, c0, c1, c2, c3],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=False,
            pack=1,
        )
    else:
        a2 = tl.load(a_ptr + (p * 4 + 2) * 32 + lane)
        a3 = tl.load(a_ptr + (p * 4 + 3) * 32 + lane)
        b1 = tl.load(b_ptr + (p * 2 + 1) * 32 + lane)
        d0, d1, d2, d3 = tl.inline_asm_elementwise(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
            if BF16
            else "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
            "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
            [a0, a1, a2, a3, b0, b1, c0, c1, c2, c3],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=False,
            pack=1,
        )
    tl.store(d_ptr + (p * 4 + 0) * 32 + lane, d0)
    tl.store(d_ptr + (p * 4 + 1) * 32 + lane, d1)
    tl.store(d_ptr + (p * 4 + 2) * 32 + lane, d2)
    tl.store(d_ptr + (p * 4 + 3) * 32 + lane, d3)


def fragments(a, w, c):
    """a [P,16,K], w [P,8,K] 16-bit, c [P,16,8] fp32 -> registers [P, r, 32 lanes] as PTX lays them out."""
    P, _, K = a.shape
    g, t = torch.arange(32) // 4, torch.arange(32) % 4
    a32, w32 = a.view(torch.int32), w.view(torch.int32)  # [.., K/2] pairs, the lower k in the lower half
    ra = [a32[:, g + 8 * r, t + 4 * h] for h in range(K // 8) for r in range(2)]
    rb = [w32[:, g, t + 4 * h] for h in range(K // 8)]
    rc = [c[:, g + 8 * r, 2 * t + j] for r in range(2) for j in range(2)]
    return [torch.stack(x, 1).contiguous() for x in (ra, rb, rc)]


def from_fragments(d):
    P = d.shape[0]
    g, t = torch.arange(32) // 4, torch.arange(32) % 4
    out = torch.empty(P, 16, 8, device=d.device)
    for i, (r, j) in enumerate((r, j) for r in range(2) for j in range(2)):
        out[:, g + 8 * r, 2 * t + j] = d[:, i]
    return out


@triton.jit
def dot_kernel(a_ptr, w_ptr, c_ptr, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    p = tl.program_id(0)
    m, n = tl.arange(0, BM), tl.arange(0, BN)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        a = tl.load(a_ptr + (p * BM + m[:, None]) * K + k[None, :])
        w = tl.load(w_ptr + (p * BN + n[:, None]) * K + k[None, :]).to(a.dtype)
        acc = tl.dot(a, tl.trans(w), acc)
    tl.store(c_ptr + (p * BM + m[:, None]) * BN + n[None, :], acc)


KINDS = ("normal", "wide", "tiny", "huge", "special")


def draw(kind, dt, P, M, N, K, seed, codes=False):
    """Operands and accumulators on the CPU."""
    g = torch.Generator().manual_seed(seed)
    rnd = lambda *s: torch.randn(*s, generator=g)
    exps = lambda x, r: torch.exp2(torch.randint(-r, r + 1, x.shape, generator=g).float())
    a, w, c = rnd(P, M, K), rnd(P, N, K), rnd(P, M, N)
    bf = dt == "bf16"
    if kind == "wide":
        a, w, c = a * exps(a, 10 if bf else 6), w * exps(w, 10 if bf else 6), c * exps(c, 24)
    if kind == "tiny":
        a, w = (a * 2.0**-70, w * 2.0**-72) if bf else (a * 2.0**-16, w * 2.0**-16)
        a, w = a * exps(a, 4), w * exps(w, 4)
        c = c * 2.0 ** (-142 if bf else -36) * exps(c, 8)
        c[::3] = 0
        c[1::9] = -0.0
    if kind == "huge":
        a, w = (
            (a * 2.0**62, w * 2.0**62)
            if bf
            else ((a * 2.0**14).clamp(-65504, 65504), (w * 2.0**14).clamp(-65504, 65504))
        )
        c = c * (2.0**124 if bf else 2.0**34) * exps(c, 2)
    if kind == "special":
        pool = [0.0, -0.0, 1.0, -1.0, 2.0**-75, -(2.0**-76), 2.0**-133, 3 * 2.0**-133, 2.0**64, -(2.0**64), 2.0**127]
        if not bf:
            pool = [0.0, -0.0, 1.0, -1.0, 2.0**-24, -(2.0**-24), 3 * 2.0**-20, 65504.0, -65504.0, 2.0**-14, 1.5]
        rare = [float("inf"), -float("inf"), float("nan")]
        pick = lambda s, values: torch.tensor(values)[torch.randint(len(values), s, generator=g)]
        a, w = pick(a.shape, pool), pick(w.shape, pool)
        a = torch.where(torch.rand(a.shape, generator=g) < 0.6, torch.zeros(()), a)
        a[: P // 4] = torch.where(
            torch.rand(a[: P // 4].shape, generator=g) < 0.02, pick(a[: P // 4].shape, rare), a[: P // 4]
        )
        c = pick(c.shape, [0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-126, -1.0, 3.4e38, -3.4e38, 2.0**25 + 4, *rare])
    if codes:
        w = torch.randint(-8, 8, w.shape, generator=g).float()
    w = w.to(torch.int8) if codes else w.to(TORCH[dt])
    return a.to(TORCH[dt]), w, c


def dots(what, dt):
    done = []
    single = what.startswith("m16")
    for kind in KINDS:
        codes = what.endswith("codes")
        if codes and kind not in ("normal", "wide"):
            continue
        for K in (int(what.rpartition("k")[2]),) if single else (64, 256):
            if single:
                a, w, c = draw(kind, dt, 48, 16, 8, K, seed=K + len(kind))
                ra, rb, rc = (x.to("cuda") for x in fragments(a, w, c))
                rd = torch.empty_like(rc)
                mma_kernel[(48,)](ra, rb, rc, rd, K8=K == 8, BF16=dt == "bf16", num_warps=1)
                out, schedule, name = from_fragments(rd.cpu()), f"mma.{what}.sm90", "mma_kernel"
            else:
                BM = int(re.search(r"\d+", what)[0])
                a, w, c = draw(kind, dt, 2 if BM < 64 else 1, BM, 64, K, seed=K + len(kind), codes=codes)
                c = None
                out = torch.empty(len(a), BM, 64, device="cuda")
                dot_kernel[(len(a),)](a.to("cuda"), w.to("cuda"), out, K, BM=BM, BN=64, BK=64, num_warps=4)
                name = "dot_kernel"
                schedule = f"{schedules.MMA if BM < 64 else schedules.WGMMA}/t64"
                if codes and BM < 64:
                    schedule = f"{schedules.MMA}/t64/bits1.4.8.16.2"
            torch.cuda.synchronize()
            fields = {
                "name": f"{what}.{dt}.K{K}.{kind}", "kind": "dots", "kernel": "mma" if single else "dot",
                "schedule": schedule, "store": "fp32", "facts": facts_of([name]),
            }  # fmt: skip
            done.append(finished(fields, {"a": a, "w": w, "acc": c, "out": out.cpu()}))
    return done
