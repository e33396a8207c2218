"""Device code of the int8 lm_head for compute capability 9.0: codes go through a ring into wgmma's registers.

    y^T [BN, TN] = sum_g scale[:, g] * (codes[:, g] x[:, g]^T)        unscaled codes are exact in D

A program keeps all of x in shared memory and takes tiles of BN vocabulary rows, one after another. The copy engine
brings codes STAGES steps of 256 inputs ahead, across tiles. wgmma wants of thread 4g + q, for its row, inputs 2q, 2q+1,
2q+8, 2q+9 of every 16, but words hold neighbours. Which input is called which does not matter to a sum, so the SUB
inputs that four threads take are renamed until each finds its own codes, and x is renamed likewise:

    input 4W*q + 4w + 2b + i   is column 16w + 8i + 2q + b of the product      (w: word, and instruction; W = SUB / 16)

SUB divides the group, so a product never crosses one: K = 16 an instruction, chained in fp32 within a group, times its
scale, added to the sum by one fused multiply-add a group, groups ascending.
"""

from __future__ import annotations

from moeracle.kernels.hopper.device.fragments import count
from moeracle.kernels.hopper.device.int8_layouts import code_layout, scale_layout, x_layout
from moeracle.kernels.hopper.gluon_import import barrier, gl, gluon, hopper

load_tile = getattr(hopper.tma, "async_load", None) or hopper.tma.async_copy_global_to_shared  # triton 3.6

if hasattr(gl.shared_memory_descriptor, "reinterpret"):

    @gluon.jit
    def _reshaped(memory, D: gl.constexpr, shape: gl.constexpr, layout: gl.constexpr):
        return memory.reinterpret(D, shape, layout)

else:  # triton 3.6

    @gluon.jit
    def _reshaped(memory, D: gl.constexpr, shape: gl.constexpr, layout: gl.constexpr):
        return memory._reinterpret(D, shape, layout)


@gluon.constexpr_function
def _widen(bf16):
    """PTX: $2, a word of four codes -> $0, codes 0 and 2, and $1, codes 1 and 3, in D."""
    lines = ["{ .reg .b32 odd, low, high; shr.u32 odd, $2, 8;"]
    for word, out in (("$2", "$0"), ("odd", "$1")):
        if bf16:  # 128 + the low seven bits, minus 128 + the sign bit's 128: each exact in 8 bits
            lines += [f"lop3.b32 low, {word}, 0x007F007F, 0x43004300, 0xEA;"]
            lines += [f"lop3.b32 high, {word}, 0x00800080, 0x43004300, 0xEA;", f"sub.bf16x2 {out}, low, high;"]
        else:  # 1024 + (code + 128), minus 1152
            lines += [f"lop3.b32 low, {word}, 0x00FF00FF, 0x64806480, 0x6A; mov.b32 high, 0x64806480;"]
            lines += [f"sub.f16x2 {out}, low, high;"]
    return "\n".join([*lines, "}"])


@gluon.jit
def _halves(words, D: gl.constexpr):
    """The two halves of each word as D, along a new last dimension."""
    low = (words & 0xFFFF).to(gl.int16).to(D, bitcast=True)
    return gl.join(low, (words >> 16).to(gl.int16).to(D, bitcast=True))


@gluon.jit
def _pick(values, C: gl.constexpr, N: gl.constexpr):
    """values[..., C] of N, a power of two; nothing moves."""
    n: gl.constexpr = N
    if N == 1:
        out = values.reshape(values.shape[:-1])
    else:
        even, odd = gl.split(values.reshape(values.shape[:-1] + [n // 2, 2]))  # noqa: RUF005
        if N == 2:
            even = even.reshape(values.shape[:-1])
            odd = odd.reshape(values.shape[:-1])
            out = odd if C % 2 else even
        else:
            out = _pick(odd if C % 2 else even, C // 2, n // 2)
    return out


@gluon.jit
def _left(words, D: gl.constexpr, ROWS: gl.constexpr, SUB: gl.constexpr, MMA: gl.constexpr):
    """Turn words [WARPS, 2, 8, 4, W] of codes into the left operand [ROWS, SUB] of renamed inputs."""
    p0, p1 = gl.inline_asm_elementwise(
        _widen(gl.bfloat16 == D), "=&r,=&r,r", [words], dtype=(gl.int32, gl.int32), is_pure=True, pack=1
    )
    values = _halves(gl.join(p0, p1), D)  # slab, row half, g, q, w, i, b
    values = values.permute([0, 1, 2, 4, 5, 3, 6]).reshape([ROWS, SUB])
    return gl.convert_layout(values, gl.DotOperandLayout(0, MMA, 2), assert_trivial=True)


@gluon.jit
def _here(values):
    """The same values, which the compiler takes for new: what follows from them is not kept in registers meanwhile."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [values], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _scales(s_ptr, stride_s, V, groups, tile, step, BN: gl.constexpr, NG: gl.constexpr, SCALES: gl.constexpr):
    """The scales of one step of a tile, [BN, NG], straight into registers; 0 outside of the weight."""
    row = gl.arange(0, BN, layout=gl.SliceLayout(1, SCALES)).expand_dims(1)
    g = gl.arange(0, NG, layout=gl.SliceLayout(0, SCALES)).expand_dims(0) + step * NG
    at = s_ptr + (tile * BN).to(gl.int64) * stride_s + row * stride_s + g
    return gl.load(at, mask=(row < V - tile * BN) & (g < groups), other=0.0)


@gluon.jit(do_not_specialize=["T", "programs", "step0"])
def hopper_lm_head_kernel(
    x_ptr, codes, scales, s_ptr, bias_ptr, sums_ptr, y_ptr, T, V, K, groups, stride_x, stride_s, programs, step0,
    BIAS: gl.constexpr, GROUP: gl.constexpr, STEPS: gl.constexpr, STAGES: gl.constexpr, TN: gl.constexpr,
    IN_RING: gl.constexpr, FIRST: gl.constexpr, LAST: gl.constexpr,
):  # fmt: skip
    """One program: every programs-th tile of 16 rows a warp, times TN tokens, over STEPS steps of 256 inputs.

    x is a pointer to int32 and its stride counts words; codes is a descriptor of int32 [V, K/4], scales one of s, used
    if IN_RING. GROUP is 32, 64, 128 or 0, one scale a row. Steps begin at step0; unless FIRST, sums [V, TN] hold what
    was added before them; unless LAST, they are what is written.
    """
    WARPS: gl.constexpr = gl.num_warps()
    D: gl.constexpr = y_ptr.dtype.element_ty
    SUB: gl.constexpr = 32 if GROUP == 32 else 64
    W: gl.constexpr = SUB // 16
    SUBS: gl.constexpr = 256 // SUB
    NG: gl.constexpr = 256 // GROUP if GROUP > 0 else 1
    CHAIN: gl.constexpr = SUBS // NG  # blocks of one group
    AHEAD: gl.constexpr = min(NG - 1, (3 if TN <= 32 else 1))  # groups being multiplied while one is scaled
    BN: gl.constexpr = 16 * WARPS
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, TN, 16])
    COLUMN: gl.constexpr = gl.SliceLayout(1, MMA)
    SCALES: gl.constexpr = scale_layout(NG, WARPS)
    STORE: gl.constexpr = gl.BlockedLayout([2, 1], [32, 1], [WARPS // 4, 4], [0, 1])
    BLOCKS: gl.constexpr = STEPS * SUBS
    XC: gl.constexpr = max(8, 64 * WARPS // (TN * W))  # blocks of x that are brought at a time
    BATCHES: gl.constexpr = (BLOCKS + XC - 1) // XC
    X: gl.constexpr = x_layout(XC, TN, W, WARPS)
    SHARED: gl.constexpr = gl.NVMMASharedLayout(2 * SUB, 16, 2)
    BYTES: gl.constexpr = BN * 256 + (BN * NG * (scales.dtype.primitive_bitwidth // 8) if IN_RING else 0)

    pid = gl.program_id(0)
    tiles = (V + BN - 1) // BN
    steps = (tiles - pid + programs - 1) // programs * STEPS
    ring = gl.allocate_shared_memory(gl.int32, [STAGES, BN, 64], codes.layout)
    if IN_RING:
        s_ring = gl.allocate_shared_memory(scales.dtype, [STAGES, BN, NG], scales.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], hopper.mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        hopper.mbarrier.init(full.index(stage), count=1)
    hopper.fence_async_shared()
    barrier()
    for stage in gl.static_range(STAGES):
        there = stage < steps
        row = (pid + stage // STEPS * programs) * BN
        k = step0 + stage % STEPS
        hopper.mbarrier.expect(full.index(stage), BYTES, pred=there)
        load_tile(codes, [row, k * 64], full.index(stage), ring.index(stage), pred=there)
        if IN_RING:
            load_tile(scales, [row, k * NG], full.index(stage), s_ring.index(stage), pred=there)

    x_batch = gl.allocate_shared_memory(D, [BATCHES, XC * TN, SUB], SHARED)
    x_t = count(TN, 1, 5, X)
    x_k = count(XC, 0, 5, X) * (SUB // 2) + count(4, 2, 5, X) * (2 * W) + count(W, 3, 5, X) * 2 + count(2, 4, 5, X)
    for batch in range(BATCHES):
        k2 = x_k + batch * (XC * SUB // 2) + step0 * 128
        pairs = gl.load(x_ptr + x_t * stride_x + k2, mask=(x_t < T) & (k2 * 2 < K), other=0)
        values = _halves(pairs, D).permute([0, 1, 3, 5, 2, 4])  # block, t, w, i, q, b: 2b + i is the input of a word
        x_batch.index(batch).store(values.reshape([XC * TN, SUB]))
    hopper.fence_async_shared()  # wgmma reads x through the other proxy
    barrier()
    x_all = _reshaped(x_batch, D, [BATCHES * XC, TN, SUB], SHARED)

    if GROUP > 0 and not IN_RING:  # then they are loaded a step ahead
        scale1 = _scales(s_ptr, stride_s, V, groups, pid, step0, BN, NG, SCALES)
    zero = gl.zeros([BN, TN], gl.float32, layout=MMA)
    done = 0
    slot = 0
    phase = 0
    for tile in range(pid, tiles, programs):
        v = tile * BN + gl.arange(0, BN, layout=COLUMN)
        sums = sums_ptr + (tile * BN).to(gl.int64) * TN + (count(BN, 0, 2, MMA) * TN + count(TN, 1, 2, MMA))
        acc = zero if FIRST else gl.load(sums, mask=(v < V).expand_dims(1), other=0.0)
        for i in range(STEPS):
            hopper.mbarrier.wait(full.index(slot), phase)
            words = ring.index(slot).load(code_layout(W, WARPS))
            if IN_RING:
                scale = s_ring.index(slot).load(SCALES)
            elif GROUP > 0:
                scale = scale1
                after = gl.where(i + 1 < STEPS, tile, tile + programs)
                scale1 = _scales(s_ptr, stride_s, V, groups, after, step0 + (i + 1) % STEPS, BN, NG, SCALES)
            barrier()  # everyone has read it
            ahead = done + STAGES
            row = (pid + ahead // STEPS * programs) * BN
            k = step0 + ahead % STEPS
            hopper.mbarrier.expect(full.index(slot), BYTES, pred=ahead < steps)
            load_tile(codes, [row, k * 64], full.index(slot), ring.index(slot), pred=ahead < steps)
            if IN_RING:
                load_tile(scales, [row, k * NG], full.index(slot), s_ring.index(slot), pred=ahead < steps)
            done += 1
            slot += 1
            phase = gl.where(slot == STAGES, phase ^ 1, phase)
            slot = gl.where(slot == STAGES, 0, slot)

            split = words.reshape([WARPS, 2, 8, SUBS, 4, W]).permute([0, 1, 2, 4, 5, 3])
            if GROUP == 0:
                for u in gl.static_range(SUBS):
                    a = _left(_pick(split, u, SUBS), D, BN, SUB, MMA)
                    acc = hopper.warpgroup_mma(a, x_all.index(i * SUBS + u).permute([1, 0]), acc, is_async=True)
                acc, a = hopper.warpgroup_mma_wait(0, deps=[acc, a])
            else:
                parts = ()
                lefts = ()
                spare = zero
                for g in gl.static_range(NG + AHEAD):
                    if g < NG:
                        part = spare if g > AHEAD else zero  # in registers that are free, or all parts would be kept
                        for u in gl.static_range(CHAIN):
                            a = _left(_pick(split, g * CHAIN + u, SUBS), D, BN, SUB, MMA)
                            right = x_all.index(i * SUBS + g * CHAIN + u).permute([1, 0])
                            part = hopper.warpgroup_mma(a, right, part, use_acc=u > 0, is_async=True)
                            lefts = lefts + (a,)  # type: ignore[assignment]  # noqa: RUF005
                        parts = parts + (part,)  # type: ignore[assignment]  # noqa: RUF005
                    if g >= AHEAD:  # a group is scaled while those after it are multiplied
                        spare, a, acc = hopper.warpgroup_mma_wait(
                            (AHEAD if g < NG else NG - 1 - g + AHEAD) * CHAIN,
                            deps=[parts[g - AHEAD], lefts[(g - AHEAD) * CHAIN], acc],
                        )
                        s = gl.convert_layout(_pick(scale, g - AHEAD, NG), COLUMN, assert_trivial=True)
                        acc += spare * s.to(gl.float32).expand_dims(1)
        if LAST:
            if GROUP == 0:
                s = gl.load(s_ptr + v.to(gl.int64) * stride_s, mask=v < V, other=0.0)
                acc = acc * s.to(gl.float32).expand_dims(1)
            if BIAS:
                acc = acc + gl.load(bias_ptr + v, mask=v < V, other=0.0).to(gl.float32).expand_dims(1)
            y = gl.convert_layout(acc.to(D), STORE)
            v_out = tile * BN + count(BN, 0, 2, STORE)
            t_out = _here(count(TN, 1, 2, STORE))
            gl.store(y_ptr + (t_out * V + v_out), y, mask=(t_out < T) & (v_out < V), eviction_policy="evict_last")
        else:
            gl.store(sums, acc, mask=(v < V).expand_dims(1))
