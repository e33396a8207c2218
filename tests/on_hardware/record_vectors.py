"""Record single matrix instructions of an H200 that the other recordings leave out, as vectors. Under 90 s.

    PYTHONPATH=src python3 -u tests/on_hardware/record_vectors.py

writes the folder vectors in $OUT, to be copied to fixtures/hardware/h200/: fp8, tf32 and fp16 accumulators, by mma.sync
as inline assembly and by wgmma as tl.dot compiles it, from accumulators that are not zero. Every set is replayed at
once, each kind of rows by itself; where bits differ, the first rows are printed.
"""

import os
import re
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from moeracle.properties.recordings.vectors import (  # noqa: E402
    INPUTS,
    INTEGERS,
    OUTPUTS,
    VectorSet,
    describe,
    replay_vectors,
    write_vectors,
)
from moeracle.ref.bitmodels.models import MODELS, predict  # noqa: E402

OUT = Path(os.environ.get("OUT", "recordings")) / "vectors"
ROWS = int(os.environ.get("ROWS", "128"))
COMMAND = "PYTHONPATH=src python3 -u tests/on_hardware/record_vectors.py"
TILE = 64
KINDS = ("normal", "wide", "tiny", "powers", "least", "huge", "special")
PTX = {"fp16": "f16", "bf16": "bf16", "tf32": "tf32", "e4m3": "e4m3", "e5m2": "e5m2", "fp32": "f32"}

# model, operands, K of the problem
JOBS = [
    ("mma.m16n8k16.f16.sm90", "fp16", 16),
    ("mma.m16n8k8.f16.sm90", "fp16", 8),
    ("mma.m16n8k8.tf32.sm90", "tf32", 8),
    ("mma.m16n8k4.tf32.sm90", "tf32", 4),
    *[(f"mma.m16n8k32.fp8{out}.sm90", dtype, 32) for out in ("", ".f16") for dtype in ("e4m3", "e5m2")],
    *[(f"wgmma.k32.fp8{out}.sm90", dtype, 32) for out in ("", ".f16") for dtype in ("e4m3", "e5m2")],
    *[("wgmma.k32.fp8.sm90", dtype, 64) for dtype in ("e4m3", "e5m2")],
    ("wgmma.k8.tf32.sm90", "tf32", 8),
    ("wgmma.k8.tf32.sm90", "tf32", 16),
    ("wgmma.k16.f16.sm90", "fp16", 16),
    ("wgmma.k16.f16.sm90", "fp16", 32),
    *[("wgmma.k16.sm90", dtype, k) for dtype in ("bf16", "fp16") for k in (16, 32)],
]


@triton.jit
def mma_kernel(a_ptr, b_ptr, c_ptr, d_ptr, ASM: tl.constexpr, WIDE: tl.constexpr, HALF: tl.constexpr):
    """One warp, one instruction: 2 or 1 times 4 words a row, accumulators as 4 floats or 2 pairs of fp16."""
    p, lane = tl.program_id(0), tl.arange(0, 32)
    A: tl.constexpr = 4 if WIDE else 2
    B: tl.constexpr = 2 if WIDE else 1
    C: tl.constexpr = 2 if HALF else 4
    a0 = tl.load(a_ptr + p * A * 32 + lane)
    a1 = tl.load(a_ptr + (p * A + 1) * 32 + lane)
    b0 = tl.load(b_ptr + p * B * 32 + lane)
    c0 = tl.load(c_ptr + p * C * 32 + lane)
    c1 = tl.load(c_ptr + (p * C + 1) * 32 + lane)
    if WIDE:
        a2 = tl.load(a_ptr + (p * A + 2) * 32 + lane)
        a3 = tl.load(a_ptr + (p * A + 3) * 32 + lane)
        b1 = tl.load(b_ptr + (p * B + 1) * 32 + lane)
    if HALF:
        if WIDE:
            d0, d1 = tl.inline_asm_elementwise(
                ASM, "=r,=r,r,r,r,r,r,r,r,r", [a0, a1, a2, a3, b0, b1, c0, c1],
                dtype=(tl.int32, tl.int32), is_pure=False, pack=1,
            )  # fmt: skip
        else:
            d0, d1 = tl.inline_asm_elementwise(
                ASM, "=r,=r,r,r,r,r,r", [a0, a1, b0, c0, c1], dtype=(tl.int32, tl.int32), is_pure=False, pack=1
            )
    else:
        c2 = tl.load(c_ptr + (p * C + 2) * 32 + lane)
        c3 = tl.load(c_ptr + (p * C + 3) * 32 + lane)
        if WIDE:
            d0, d1, d2, d3 = tl.inline_asm_elementwise(
                ASM, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", [a0, a1, a2, a3, b0, b1, c0, c1, c2, c3],
                dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=False, pack=1,
            )  # fmt: skip
        else:
            d0, d1, d2, d3 = tl.inline_asm_elementwise(
                ASM, "=f,=f,=f,=f,r,r,r,f,f,f,f", [a0, a1, b0, c0, c1, c2, c3],
                dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=False, pack=1,
            )  # fmt: skip
        tl.store(d_ptr + (p * C + 2) * 32 + lane, d2)
        tl.store(d_ptr + (p * C + 3) * 32 + lane, d3)
    tl.store(d_ptr + p * C * 32 + lane, d0)
    tl.store(d_ptr + (p * C + 1) * 32 + lane, d1)


@triton.jit
def dot_kernel(a_ptr, b_ptr, c_ptr, d_ptr, K: tl.constexpr, TILE: tl.constexpr, HALF: tl.constexpr):
    """One wgmma tile a program; the diagonal is what is read."""
    p, m, k = tl.program_id(0), tl.arange(0, TILE), tl.arange(0, K)
    at = (p * TILE + m[:, None]) * K + k[None, :]
    square = (p * TILE + m[:, None]) * TILE + m[None, :]
    c = tl.load(c_ptr + square)
    out: tl.constexpr = tl.float16 if HALF else tl.float32
    d = tl.dot(tl.load(a_ptr + at), tl.trans(tl.load(b_ptr + at)), c, input_precision="tf32", out_dtype=out)
    tl.store(d_ptr + square, d)


def assembly(model, operands):
    """Return the PTX of an mma.sync instruction, its registers numbered as the kernel gives them."""
    how = MODELS[model]
    shape, half, wide = model.split(".")[1], how.core.form == "fp16", how.k * INPUTS[operands].itemsize == 32
    kind, out, n = PTX[operands], "f16" if half else "f32", 2 if half else 4
    places = [n, *([4, 2] if wide else [2, 1]), n]
    at, groups = 0, []
    for count in places:
        groups.append("{" + ",".join(f"${at + i}" for i in range(count)) + "}")
        at += count
    return f"mma.sync.aligned.{shape}.row.col.{out}.{kind}.{kind}.{out} {', '.join(groups)};"


def run_mma(model, operands, a, b, c):
    """a, b [P, k], c [P] on the CPU -> d [P]: result i from row i % 8 of a tile, P a multiple of 8."""
    P, half = len(a), c.dtype == torch.float16
    words = a.view(torch.uint8).view(torch.int32).reshape(P // 8, 8, -1)
    other = b.view(torch.uint8).view(torch.int32).reshape(P // 8, 8, -1)
    W = words.shape[2]
    g, t = torch.arange(32) // 4, torch.arange(32) % 4
    rows = torch.cat([words, torch.zeros_like(words)], 1)  # rows 8 to 15 of the tile are zeros
    ra = torch.stack([rows[:, g + 8 * r, t + 4 * h] for h in range(W // 4) for r in range(2)], 1)
    rb = torch.stack([other[:, g, t + 4 * h] for h in range(W // 4)], 1)
    tile = torch.zeros(P // 8, 16, 8, dtype=c.dtype)
    i = torch.arange(8)
    tile[:, i, i] = c.view(-1, 8)
    if half:
        pairs = tile.view(torch.int32)  # [P/8, 16, 4]
        rc = torch.stack([pairs[:, g + 8 * r, t] for r in range(2)], 1)
    else:
        rc = torch.stack([tile[:, g + 8 * r, 2 * t + j] for r in range(2) for j in range(2)], 1)
    ra, rb, rc = (x.contiguous().cuda() for x in (ra, rb, rc))
    rd = torch.empty_like(rc)
    kernel = mma_kernel[(P // 8,)](ra, rb, rc, rd, ASM=assembly(model, operands), WIDE=W == 8, HALF=half, num_warps=1)
    rd = rd.cpu()
    if half:
        back = torch.empty(P // 8, 16, 4, dtype=torch.int32)
        for r in range(2):
            back[:, g + 8 * r, t] = rd[:, r]
        back = back.view(torch.float16)
    else:
        back = torch.empty(P // 8, 16, 8)
        for n, (r, j) in enumerate((r, j) for r in range(2) for j in range(2)):
            back[:, g + 8 * r, 2 * t + j] = rd[:, n]
    return back[:, i, i].reshape(-1).contiguous(), kernel


def run_dot(model, operands, a, b, c):
    """The same by tl.dot on tiles of 64; K of fewer than 16 inputs is filled with zeros."""
    P, K = a.shape
    whole = max(K, 16)
    if whole > K:
        a, b = (torch.cat([x, torch.zeros(P, whole - K, dtype=x.dtype)], 1) for x in (a, b))
    square = torch.zeros(P // TILE, TILE, TILE, dtype=c.dtype)
    i = torch.arange(TILE)
    square[:, i, i] = c.view(-1, TILE)
    d = torch.empty_like(square, device="cuda")
    operands_on = (x.contiguous().cuda() for x in (a, b, square))
    half = c.dtype == torch.float16
    kernel = dot_kernel[(P // TILE,)](*operands_on, d, K=whole, TILE=TILE, HALF=half, num_warps=4)
    return d.cpu()[:, i, i].reshape(-1).contiguous(), kernel


def draw(kind, operands, out, P, K, seed):
    """Return a, b [P, K] and c [P]; the same on every machine."""
    g = torch.Generator().manual_seed(seed)
    dtype, half = INPUTS[operands], out == "fp16"
    least = {"bf16": -133, "tf32": -136, "fp16": -24, "e4m3": -9, "e5m2": -16}[operands]
    most = {"bf16": 127, "tf32": 127, "fp16": 15, "e4m3": 8, "e5m2": 15}[operands]
    largest = {"fp16": 65504.0, "e4m3": 448.0, "e5m2": 57344.0}.get(operands, 3e38)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def power(low, high, *shape):
        return torch.exp2(torch.randint(low, high + 1, shape, generator=g).double())

    def sign(*shape):
        return torch.randint(0, 2, shape, generator=g).double() * 2 - 1

    def pick(values, *shape):
        return torch.tensor(values, dtype=torch.float64)[torch.randint(len(values), shape, generator=g)]

    a, b, c = normal(P, K), normal(P, K), normal(P)
    wide = {"bf16": 16, "tf32": 16, "fp16": 6, "e4m3": 3, "e5m2": 6}[operands]
    inf, nan = torch.inf, torch.nan
    if kind == "wide":
        a, b, c = a * power(-wide, wide, P, K), b * power(-wide, 4, P, K), c * power(-18, 12 if half else 24, P)
    if kind == "tiny":
        low = least + 4 if least > -100 else -72
        a, b = a * power(low, low + 6, P, K), b * power(low, low + 6, P, K)
        c = c * power(-24, -12, P) if half else c * power(-149, -118, P)
        c[::4] = 0
        if least > -100:  # the accumulator alone
            a[: P // 3] = 0
    if kind == "powers":  # ties and what lies just below them, in rows of growing span and density
        base, span = (least, 18) if least > -100 else (-80, 20)
        grows = torch.linspace(0, 1, P, dtype=torch.float64)[:, None]
        a, b = (
            sign(P, K) * torch.exp2(base + (torch.rand(P, K, generator=g) * (1 + span * grows)).floor()) for _ in "ab"
        )
        a = torch.where(torch.rand(P, K, generator=g) < 0.9 - 0.6 * grows[torch.randperm(P, generator=g)], 0.0, a)
        if half and operands != "e4m3":  # the tie between 0 and the smallest result
            a[::2, 0], b[::2, 0] = 2.0**-12, 2.0**-13
        step = 2.0**-24 if half else 2.0**-149
        c = pick([0.0, 0.0, step, -step, 3 * step, 2.0**-14 if half else 2.0**-126, -(2.0**-13)], P)
    if kind == "least":  # 2^-149 - 2^-m, or the tie 2^-25 ± 2^-m, with and without a subnormal accumulator
        first, last, step = (26, 48, 2.0**-24) if half else (150, 179, 2.0**-149)
        last = min(last, -2 * least)
        rows = [(m, s, x) for m in range(first, last + 1) for s in (-1.0, 1.0) for x in (0.0, step, -3 * step)]
        a, b, c = torch.zeros(P, K).double(), torch.zeros(P, K).double(), torch.zeros(P).double()
        for i in range(P):
            m, s, x = rows[i % len(rows)]
            at = 1 + i % (K - 1)
            a[i, 0], b[i, 0] = (2.0**-12, 2.0**-13) if half else (2.0**-75, 2.0**-74)
            a[i, at], b[i, at], c[i] = s * 2.0 ** -(m - m // 2), 2.0 ** -(m // 2), x
    if kind == "huge":
        up = (most - 1) if operands in ("fp16", "e4m3", "e5m2") else 64
        a, b = a * power(up - 3, up, P, K), b * power(up - 3 if not half else 0, up if not half else 2, P, K)
        if half:
            a[::2] = a[::2] / 64
        c = pick([65504.0, -65504.0, 32768.0, 65488.0], P) if half else c * power(120, 126, P)
    if kind == "special":
        pool = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            1.5,
            2.0**least,
            -(2.0**least),
            3 * 2.0**least,
            largest,
            -largest,
            2.0 ** (least + 8),
        ]
        a, b = pick(pool, P, K), pick(pool, P, K)
        a = torch.where(torch.rand(P, K, generator=g) < 0.6, 0.0, a)
        rare = [nan] if operands == "e4m3" else [inf, -inf, nan]
        a = torch.where(
            (torch.rand(P, K, generator=g) < 0.03) & (torch.arange(P) < P // 3)[:, None], pick(rare, P, K), a
        )
        a[P // 2 : P // 2 + P // 8] = pick([0.0, -0.0], P // 8, K)
        step = 2.0**-24 if half else 2.0**-149
        c = pick([0.0, -0.0, step, -step, 1.0, -1.0, inf, -inf, nan, 65504.0 if half else 3.4e38], P)
        c[P // 2 : P // 2 + P // 16] = -0.0
    clamped = [torch.where(x.isfinite(), x.clamp(-largest, largest), x).float() for x in (a, b)]
    if operands == "tf32" and kind != "wide":  # of "wide" the operands keep bits that tf32 does not have
        clamped = [(x.view(torch.int32) & -(1 << 13)).view(torch.float32) for x in clamped]
    limit = 65504.0 if half else 3.4e38
    c = torch.where(c.isfinite(), c.clamp(-limit, limit), c).float().to(OUTPUTS[out])
    return clamped[0].to(dtype), clamped[1].to(dtype), c


def instruction_of(kernel, model):
    """Return the PTX instruction that was compiled, without its registers."""
    text = kernel.asm["ptx"]
    found = sorted(set(re.findall(r"(?:wgmma\.mma_async|mma\.sync)[\w.:]+", text)))
    return "; ".join(found) or f"none found for {model}"


def record(number, model, operands, K, gpu):
    """Return one job's set, all kinds of rows together, and how many kinds are not wholly predicted."""
    run = run_dot if model.startswith("wgmma") else run_mma
    out = "fp16" if MODELS[model].core.form == "fp16" else "fp32"
    parts, wrong, text = [], 0, ""
    for kind in KINDS:
        if kind == "least" and (operands == "e4m3" or (out == "fp32" and operands in ("fp16", "e5m2"))):
            continue  # no product reaches below the least exponent
        rows = 3 * ROWS // 2 if kind == "least" else ROWS
        a, b, c = draw(kind, operands, out, rows, K, 100 * number + KINDS.index(kind))
        d, kernel = run(model, operands, a, b, c)
        torch.cuda.synchronize()
        text = instruction_of(kernel, model)
        parts.append((a, b, c, d))
        kept = VectorSet(kind, operands, out, a, b, c, d, gpu, text, model)
        seen = replay_vectors(kept)
        print(
            f"{'ok ' if seen.ok else 'BAD'} {seen.equal}/{seen.total} {model}.{operands}.K{K}.{kind} | {text}",
            flush=True,
        )
        if not seen.ok:
            wrong += 1
            got = predict(model, a, b, c)
            differ = (got.view(INTEGERS[got.dtype]) != d.view(INTEGERS[d.dtype])).nonzero().flatten()
            for row in differ[:4].tolist():
                print(f"      {describe(kept, row, got)}", flush=True)
    a, b, c, d = (torch.cat([part[i].view(torch.uint8) for part in parts]).view(parts[0][i].dtype) for i in range(4))
    return VectorSet(f"{model}.{operands}.K{K}", operands, out, a, b, c, d, gpu, text, model), wrong


def main():
    start, sets, wrong, errors = time.time(), [], 0, []
    gpu = torch.cuda.get_device_name(0)
    major, minor = torch.cuda.get_device_capability(0)
    for number, job in enumerate(JOBS):
        try:
            kept, bad = record(number, *job, f"{gpu} (sm_{major}{minor})")
            sets.append(kept)
            wrong += bad
        except Exception:  # one that does not compile must not stop the others
            errors.append(job)
            print(f"ERROR {job}: {traceback.format_exc(limit=3)[-600:]}", flush=True)
    about = {"gpu": gpu, "torch": torch.__version__, "triton": triton.__version__, "command": COMMAND}
    write_vectors(OUT, sets, about)
    size = sum(f.stat().st_size for f in OUT.iterdir()) / 1e6
    print(
        f"{len(sets)} sets, {wrong} parts not predicted, {len(errors)} errors, {size:.2f} MB, {time.time() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
