"""Asking L2 for a program's weights before anything else, so that loads a few steps ahead find them there.

Memory takes longer than any kernel here can look ahead in registers. One thread a slab names all of its words at once,
which is a hint: nothing is read, so it needs no result of the kernel before and comes before the wait for it.
"""

from __future__ import annotations

from moeracle.kernels.hopper.gluon_import import gl, gluon


@gluon.jit
def _ask(ptr, each, n: gl.constexpr):
    """Name n runs of `each` bytes, a multiple of 16, which lie one after another; one thread a run."""
    run = gl.arange(0, n, layout=gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    gl.inline_asm_elementwise(
        """{ .reg .pred mine; .reg .u32 thread; mov.u32 thread, %tid.x; setp.lt.u32 mine, thread, $3; mov.u32 $0, 0;
        @mine cp.async.bulk.prefetch.L2.global [$1], $2; }""",
        "=r,l,r,r",
        [ptr + (run * each // 4).to(gl.int64), run * 0 + each, run * 0 + n],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def ask_for_slabs(w_ptr, s_ptr, z_ptr, slab, KP, groups, ZERO: gl.constexpr, S: gl.constexpr):
    """Ask L2 for words, scales and zero points of S slabs, at most 32, from number `slab` on."""
    _ask(w_ptr + slab.to(gl.int64) * (KP * 2), KP * 8, S)
    _ask(s_ptr + slab.to(gl.int64) * (groups * 8), groups * 32, S)
    if ZERO:
        _ask(z_ptr + slab.to(gl.int64) * (groups * 8), groups * 32, S)
