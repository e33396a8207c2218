"""Schedules that depend on a case: what each kernel here would launch for it decides, and often the compiler does.

Sums that tl.sum lays out are read off the kernel that this case compiles to (sum_orders.py); tiles of the matrix unit
follow from the launch's choices. Every function returns the text of a contract's schedules, or None where nothing is
known: another version of triton, a layout that is not understood. `moeracle.kernels` asks them on compute capability
9.0 only. Their predictions are checked bit for bit against recordings of an NVIDIA H200 (docs/bit-models.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeracle.kernels.toolchain.sum_orders import Compiled, Sum, compiled_by, in_a_thread, sums
from moeracle.kernels.triton import schedules
from moeracle.kernels.triton.schedules import GEMM, SLOTS, UNPACKED, UNPACKED_MMA, WGMMA_ROWS

CHUNK = 64  # inputs that int8_fragments_kernel renames together
RENAMED = {64: "bits1.2.16.32.4.8", 32: "p8/bits1.2.16.4.8", 16: "p4"}  # by group: which k an instruction takes
RENAMED_HALF = "bits1.2.8.16.4"  # of hopper_lm_head_kernel with groups of 32
_READ: dict[tuple[Any, ...], str | None] = {}


def read(rule: Callable[[list[Compiled], str, Any], str | None], fn: str) -> Callable[[Any], str | None]:
    """Return a function from a case to `rule` of what `fn` launches for it, each shape once.

    Args:
        rule: takes launches, how a thread adds, and the case.
        fn: "module:function" in moeracle.kernels, an entry's.
    """

    def schedule(case: Any) -> str | None:
        from importlib import import_module

        key = (fn, case.dims, case.dtype, case.zero, case.flags, case.pad)
        if key not in _READ:
            thread = in_a_thread()
            module, name = fn.split(":")
            function = getattr(import_module(f"moeracle.kernels.{module}"), name)
            try:
                launches = compiled_by(function, *case.build("cuda").args.values()) if thread else []
                _READ[key] = rule(launches, thread, case) if thread and launches else None
            except (KeyError, ValueError):  # a layout that nobody has looked at
                _READ[key] = None
        return _READ[key]

    return schedule


def tree_text(tile: int, parts: list[tuple[Sum, int]], thread: str, *rest: str) -> str:
    """Return fp32 fused multiply-adds over tiles, summed by `parts` from the inside out.

    Args:
        tile: inputs a step.
        parts: each tl.sum, and how many inputs one of its elements stands for.
        thread: the order in a thread.
        rest: further parts of the text.
    """
    levels = [f"{n}-{order}" for one, _ in parts for n, order in one.levels(thread)]
    if not levels:
        return "fma"  # a step of one input
    bits = [str(bit * scale) for one, scale in parts for bit in one.bits()]
    return "/".join(["fma", f"t{tile}", f"tree{'.'.join(levels)}", f"bits{'.'.join(bits)}", *rest])


def _row_text(launch: Compiled, thread: str) -> str:
    """Each of BLOCK_K places adds over the steps by fused multiply-add; the places are joined once."""
    one = sums(launch.ttgir)[-1]
    return tree_text(one.size, [(one, 1)], thread, "held1")


def _dot_text(launch: Compiled, zero: str) -> str:
    """tl.dot of an int4 tile: consecutive k, except mma with uint8 zero points."""
    return UNPACKED_MMA if zero == UNPACKED and launch.constants["BLOCK_M"] < WGMMA_ROWS else GEMM


def linear(launches: list[Compiled], thread: str, case: Any) -> str:
    """Return the order of int4_linear: rows kernel or dot, as it chose."""
    return _dense(launches[0], thread, case)


def _dense(launch: Compiled, thread: str, case: Any) -> str:
    """Return the order of one dense int4 GEMM."""
    constants = launch.constants
    if launch.kernel == "hopper_linear_few_kernel":  # parts of K on one product's diagonal, neighbours added first
        parts = constants["SPLIT"]
        return GEMM if parts == 1 else f"{GEMM}/t{constants['KX']}/s{parts}/join=pairwise"
    if launch.kernel == "hopper_linear_ring_kernel":
        return GEMM
    return _row_text(launch, thread) if constants["BLOCK_M"] == 1 else _dot_text(launch, case.zero)


def tiny(launches: list[Compiled], thread: str, case: Any) -> str:
    """Return the order of tiny_dot."""
    return _row_text(launches[0], thread)


def shared(launches: list[Compiled], thread: str, case: Any) -> str | None:
    """Return the orders of the shared expert: gate and up, down, and x·g, which may have a launch of its own."""
    *alone, first, second = launches
    gate = sums((alone[0] if alone else first).ttgir)[0] if "gate" in case.flags else None
    if first.constants.get("BLOCK_M") == 1:
        *_, one, other = sums(first.ttgir)  # gate's rows and up's
        if one != other:
            return None
    up, down = _dense(first, thread, case), _dense(second, thread, case)
    gated = f",gate_schedule={tree_text(gate.size, [(gate, 1)], thread, 'held1')}" if gate else ""
    return up + ("" if down == up else f",gemm2_schedule={down}") + gated


def decode(launches: list[Compiled], thread: str, case: Any) -> str | None:
    """Return the orders of the decode layer: its two GEMMs, and the sum over slots."""
    texts = []
    for launch in launches:
        if launch.kernel == "decode_gemm_kernel":
            one = sums(launch.ttgir)[-1]
            texts.append(tree_text(one.size, [(one, 1)], thread, "combine=sequential"))
    up, down = texts
    return up + ("" if down == up else f",gemm2_schedule={down}") + f",sum_schedule={SLOTS}"


def lm_head(launches: list[Compiled], thread: str, case: Any) -> str | None:
    """Return the order of int8_lm_head: of one token, of few, or of many."""
    launch = launches[0]
    group, last = launch.constants["GROUP"], "scalelast/biasfused"
    if launch.kernel == "int8_row_kernel":
        chunk, block = launch.constants["CHUNK"], launch.constants["BLOCK_K"]
        inner, outer = sums(launch.ttgir)
        if (inner.size, outer.size * chunk) != (chunk, block):
            return None
        text = tree_text(block, [(inner, 1), (outer, chunk)], thread, f"held{chunk}")
        return f"{text}/{'fused' if group else last}"
    if launch.kernel == "hopper_lm_head_kernel":
        wide = f"{schedules.WGMMA}/t{group or CHUNK}/{RENAMED[CHUNK] if group != 32 else RENAMED_HALF}"
        return f"{wide}/{'fused' if group else last}"
    if launch.kernel not in ("int8_rows_kernel", "int8_fragments_kernel"):
        return None
    block = launch.constants["BLOCK_K"]
    if launch.kernel == "int8_rows_kernel":
        return f"{schedules.WGMMA}/t{block}/{'fused' if group else last}"
    order = RENAMED[min(group or CHUNK, CHUNK)]
    if group == 0:
        return f"{schedules.WGMMA}/t{block}/{order}/{last}"
    groups = launch.constants["GROUPS"]
    join = "" if groups == 1 else f"/d{groups}{_join(sums(launch.ttgir)[-1], thread)}"
    return f"{schedules.WGMMA}/t{min(group, block)}/{order}{join}/fused"


def _join(one: Sum, thread: str) -> str:
    """Return how the groups' accumulators are joined: by a thread in order, or farthest first.

    Raises:
        ValueError: in neither way.
    """
    n = one.size.bit_length() - 1
    if one.registers == one.bits() == tuple(1 << b for b in range(n)):
        return f"/join={thread}"
    farthest = tuple(1 << b for b in reversed(range(n)))
    if len(one.registers) <= 1 and not one.warps and one.registers + one.lanes[::-1] == farthest:
        return "/join=halves"
    raise ValueError(f"sum: got {one}, must be joined in a thread, or farthest first")
