"""Which thread of the Hopper lm_head holds which codes, inputs and scales; see int8_lm_head.py for the renaming."""

from __future__ import annotations

from moeracle.kernels.hopper.device.fragments import bits
from moeracle.kernels.hopper.gluon_import import gl, gluon


@gluon.constexpr_function
def code_layout(W, WARPS):
    """[16 * WARPS, 64] words: a thread holds, of two rows, W words of every block of 4W."""
    registers = bits(W, [0, 1]) + bits(16 // W, [0, 4 * W]) + [[8, 0]]
    lanes = bits(4, [0, W]) + bits(8, [1, 0])
    return gl.DistributedLinearLayout(registers, lanes, bits(WARPS, [16, 0]), [], [16 * WARPS, 64])


@gluon.constexpr_function
def x_layout(XC, TN, W, WARPS):
    """[XC, TN, 4, W, 2] pairs of x: a thread holds 2W neighbours, a warp 8 blocks of SUB of one row."""
    blocks, rows = bits(XC, [1, 0, 0, 0, 0]), bits(TN, [0, 1, 0, 0, 0])
    of_warps, outer = len(bits(WARPS, [0])), rows + blocks[3:]
    registers = bits(2, [0, 0, 0, 0, 1]) + bits(W, [0, 0, 0, 1, 0]) + outer[of_warps:]
    lanes = bits(4, [0, 0, 1, 0, 0]) + blocks[:3]
    return gl.DistributedLinearLayout(registers, lanes, outer[:of_warps], [], [XC, TN, 4, W, 2])


@gluon.constexpr_function
def scale_layout(N, WARPS):
    """[16 * WARPS, N] scales: those of the two rows whose sums a thread holds."""
    registers, lanes = [*bits(N, [0, 1]), [8, 0]], [[0, 0], [0, 0], *bits(8, [1, 0])]
    return gl.DistributedLinearLayout(registers, lanes, bits(WARPS, [16, 0]), [], [16 * WARPS, N])
