"""What both Hopper kernels share: layouts in which one thread holds one wgmma operand, dequantization, silu.

A weight tile is [16 * S, 64]: S slabs of 16 rows, one warp each (or several, one after another). The layouts here are
such that int4 words become the register operand without any exchange between threads; `assert_trivial` proves it.
"""

from __future__ import annotations

from moeracle.kernels.hopper.gluon_import import gl, gluon


@gluon.constexpr_function
def bits(n, base):
    """The bases of a linear layout that count from 0 to n - 1 in steps of `base`."""
    return [[step * (1 << i) for step in base] for i in range(int(n).bit_length() - 1)]


@gluon.constexpr_function
def word_layout(S, BLOCKS, WARPS):
    """[S, BLOCKS, 32, 4] words: a thread holds the four of its lane, of every block and of each WARPS-th slab."""
    registers = bits(4, [0, 0, 0, 1]) + bits(BLOCKS, [0, 1, 0, 0]) + bits(S // WARPS, [WARPS, 0, 0, 0])
    lanes, warps = bits(32, [0, 0, 1, 0]), bits(WARPS, [1, 0, 0, 0])
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [S, BLOCKS, 32, 4])


@gluon.constexpr_function
def fragment_layout(S, NG, WARPS):
    """[S, 8, 4, NG, 4 // NG] words: slab, row g, t, group, 16 columns of the group; the same threads' words."""
    registers = bits(4 // NG, [0, 0, 0, 0, 1]) + bits(NG, [0, 0, 0, 1, 0]) + bits(S // WARPS, [WARPS, 0, 0, 0, 0])
    lanes = bits(4, [0, 0, 1, 0, 0]) + bits(8, [0, 1, 0, 0, 0])
    return gl.DistributedLinearLayout(registers, lanes, bits(WARPS, [1, 0, 0, 0, 0]), [], [S, 8, 4, NG, 4 // NG])


@gluon.constexpr_function
def scale_layout(S, NG, WARPS):
    """[S, 8, NG]: the scales of the rows and groups whose words a thread holds."""
    return gl.SliceLayout(2, gl.SliceLayout(4, fragment_layout(S, NG, WARPS)))


@gluon.constexpr_function
def _along(dim, rank, layout):
    for other in reversed(range(rank)):
        if other != dim:
            layout = gl.SliceLayout(other, layout)
    return layout


@gluon.jit
def count(n: gl.constexpr, dim: gl.constexpr, rank: gl.constexpr, layout: gl.constexpr):
    """0..n-1 along one dimension of a tensor of this layout, of size 1 along the others."""
    i = gl.arange(0, n, layout=_along(dim, rank, layout))
    for other in gl.static_range(rank):
        if other != dim:
            i = i.expand_dims(other)
    return i


@gluon.constexpr_function
def _unpack(bf16, fold):
    """PTX: $4 a word; factors $5, $6 and addends or zero points $7, $8 of rows g and g + 8 -> $0..$3, pairs of weights.

    fold: a masked code is, as it lies, the bf16 number u * 2^-133 (bits 0..3) or u * 2^-129 (bits 4..7, the highest of
    which is the exponent's lowest: exponents 0 and 1 have the same spacing). Factors make up for that power of two.
    """
    if fold:
        lines = ["{ .reg .b32 w0, w2, w3;"]
        if fold == 2:
            lines += ["shr.u32 w2, $4, 8;"]
            words, low = ("$4", "$4", "w2", "w2"), "0x000F000F"
        else:
            lines += ["shl.b32 w0, $4, 4; shr.u32 w2, $4, 4; shr.u32 w3, $4, 8;"]
            words, low = ("w0", "$4", "w2", "w3"), "0x00F000F0"
        lines += [f"and.b32 ${p}, {words[p]}, {(low, '0x00F000F0')[p % 2]};" for p in range(4)]
        lines += [f"fma.rn.bf16x2 ${p}, ${p}, ${5 + p % 2}, ${7 + p % 2};" for p in range(4)]  # u*s - 8*s, rounded once
        return "\n".join([*lines, "}"])
    kind, magic = ("bf16x2", "0x43004300") if bf16 else ("f16x2", "0x64006400")
    lines = ["{ .reg .b32 w1, w2, w3;"]
    lines += [f"shr.u32 w{p}, $4, {4 * p};" for p in (1, 2, 3)]
    words = ("$4", "w1", "w2", "w3")
    lines += [f"lop3.b32 ${p}, {words[p]}, 0x000F000F, {magic}, 0xEA;" for p in range(4)]  # (word & mask) | magic
    lines += [f"sub.{kind} ${p}, ${p}, ${7 + p % 2};" for p in range(4)]  # exact
    lines += [f"mul.{kind} ${p}, ${p}, ${5 + p % 2};" for p in range(4)]  # (u-z)*s, rounded once to D
    return "\n".join([*lines, "}"])


@gluon.jit
def _twice(pairs):
    """The low and the high half of each word, each in both halves of a word."""
    return gl.inline_asm_elementwise(
        "prmt.b32 $0, $2, $2, 0x1010; prmt.b32 $1, $2, $2, 0x3232;",
        "=r,=r,r",
        [pairs],
        dtype=(gl.int32, gl.int32),
        is_pure=True,
        pack=1,
    )


@gluon.constexpr_function
def _folded(fold):
    """PTX: $4 a pair of scales times 2^133 or 2^129 -> $0, $1, each twice; $2, $3, -8 times the scale itself, twice."""
    low = "0x80088008" if fold == 2 else "0x80808080"  # -2^-130 or -2^-126, exact: a power of two times the scale
    return f"""{{ .reg .b32 low, high;
        prmt.b32 $0, $4, $4, 0x1010; prmt.b32 $1, $4, $4, 0x3232;
        mov.b32 low, {low}; mov.b32 high, 0x80808080;
        mul.rn.bf16x2 $2, $0, low; mul.rn.bf16x2 $3, $1, high; }}"""


@gluon.jit
def dequantize(
    words, scales, zeros, D: gl.constexpr, S: gl.constexpr, NG: gl.constexpr, WARPS: gl.constexpr, MMA: gl.constexpr,
    ZERO: gl.constexpr, FOLD: gl.constexpr = 0,
):  # fmt: skip
    """Return D((u - z) * s) as wgmma's register operand [16*S, 64].

    words [S, 1, 32, 4]; scales and zeros [S, 8, NG], as prepared_weight.py packs them; without ZERO z is 8. FOLD is the
    weight's: u * s - 8 * s is then one fused multiply-add, rounded once as (u - 8) * s is.
    """
    FRAGMENT: gl.constexpr = fragment_layout(S, NG, WARPS)
    BF16: gl.constexpr = D == gl.bfloat16  # noqa: SIM300
    w = gl.convert_layout(words.reshape([S, 8, 4, NG, 4 // NG]), FRAGMENT, assert_trivial=True)
    if FOLD:
        low, high, z_low, z_high = gl.inline_asm_elementwise(
            _folded(FOLD),
            "=&r,=&r,=&r,=&r,r",
            [scales],
            dtype=(gl.int32, gl.int32, gl.int32, gl.int32),
            is_pure=True,
            pack=1,
        )
    else:
        low, high = _twice(scales)
        if ZERO:
            z_low, z_high = _twice(zeros)
        else:
            EIGHT: gl.constexpr = 0x43084308 if BF16 else 0x64086408  # 136 and 1032: magic + 8
            z_low = gl.full([S, 8, NG], EIGHT, gl.int32, layout=scale_layout(S, NG, WARPS))
            z_high = z_low
    w, low = gl.broadcast(w, low.expand_dims(2).expand_dims(4))
    w, high = gl.broadcast(w, high.expand_dims(2).expand_dims(4))
    w, z_low = gl.broadcast(w, z_low.expand_dims(2).expand_dims(4))
    w, z_high = gl.broadcast(w, z_high.expand_dims(2).expand_dims(4))
    p0, p1, p2, p3 = gl.inline_asm_elementwise(
        _unpack(BF16, FOLD),
        "=&r,=&r,=&r,=&r,r,r,r,r,r",
        [w, low, high, z_low, z_high],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32),
        is_pure=True,
        pack=1,
    )
    pairs = gl.join(gl.join(p0, p1), gl.join(p2, p3))
    first = (pairs & 0xFFFF).to(gl.int16).to(D, bitcast=True)
    second = (pairs >> 16).to(gl.int16).to(D, bitcast=True)
    # slab, g, t, group, 16 columns, row half, column half, b  ->  (slab, row half, g), (group, 16s, column half, t, b)
    values = gl.join(first, second).permute([0, 5, 1, 3, 4, 6, 2, 7]).reshape([S * 16, 64])
    return gl.convert_layout(values, gl.DotOperandLayout(0, MMA, 2), assert_trivial=True)


@gluon.jit
def _half(g):
    """exp(-|g| / 2), as exp compiles, but 0 for what would be subnormal: its square is 0 either way."""
    return gl.inline_asm_elementwise(
        "{ .reg .f32 e; abs.f32 e, $1; mul.f32 e, e, 0fBF38AA3B; ex2.approx.ftz.f32 $0, e; }",
        "=f,f",
        [g],
        dtype=gl.float32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _divided(a, b):
    """a / b for b in [1, 2]: what div.full does there, without its care for other b."""
    return gl.inline_asm_elementwise(
        "{ .reg .f32 r; rcp.approx.ftz.f32 r, $2; mul.f32 $0, $1, r; }",
        "=f,f,f",
        [a, b],
        dtype=gl.float32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def silu_times(gate, up, D: gl.constexpr):
    """D(D(silu(D(gate))) * D(up)), the bits of silu_and_mul on a stored h; see triton/silu_and_mul.py."""
    g = gate.to(D).to(gl.float32)
    g = gl.where(g < -1000.0, -1000.0, g)
    half = _half(g)
    silu = _divided(gl.where(g < 0, (g * half) * half, g), 1.0 + half * half)
    return (silu.to(D).to(gl.float32) * up.to(D).to(gl.float32)).to(D)


@gluon.jit
def wait_for_launch():
    """Wait for the kernel before this one, where it was launched programmatically; else nothing."""
    gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def let_next_launch():
    """Let the next kernel start as soon as every program has come here; it must then wait for our results."""
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )
