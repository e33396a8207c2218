"""The order in which a compiled kernel adds, read off its TTGIR and PTX: for sums that the compiler lays out, tl.sum's.

A tl.sum over one axis adds what one thread holds, then across the lanes of a warp, then across warps. Which elements
each of them holds is the layout of the reduction's operand, in the TTGIR. Lanes and warps are joined by butterflies,
the farthest first ("halves", as shfl.sync.bfly with 16, 8, 4, 2, 1 shows); what one thread holds is added one after
another by triton 3.6 and 3.7 and in neighbouring pairs by 3.8 and 3.9. Of other versions nothing is read off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from moeracle.kernels.toolchain.jit_arguments import arguments_of

IN_A_THREAD: dict[tuple[int, ...], str] = {  # by triton's version
    (3, 6): "sequential",
    (3, 7): "sequential",
    (3, 8): "pairwise",
    (3, 9): "pairwise",
}
REDUCTION = re.compile(r"^\(.*?\) <\{axis = (\d+) : i32.*?\}> \(\{(.*?)\}\) : \(tensor<([\dx]+)xf32, (.+?)>\) ->", re.S)


@dataclass(frozen=True)
class Compiled:
    """One launch that was compiled and not run: the kernel's name, its compile-time arguments, TTGIR and PTX."""

    kernel: str
    constants: dict[str, Any]
    ttgir: str
    ptx: str


@dataclass(frozen=True)
class Sum:
    """One tl.sum: how many elements it adds, and which a place's bits stand for, in a thread, in a warp, in a block."""

    size: int
    registers: tuple[int, ...]
    lanes: tuple[int, ...]
    warps: tuple[int, ...]

    def levels(self, in_a_thread: str) -> list[tuple[int, str]]:
        """Return (how many become one, in which order), from the inside out."""
        found = zip((self.registers, self.lanes, self.warps), (in_a_thread, "halves", "halves"), strict=True)
        return [(1 << len(bits), order) for bits, order in found if bits]

    def bits(self) -> tuple[int, ...]:
        """Return the element that each bit of a place adds, innermost first."""
        return (*self.registers, *self.lanes, *self.warps)


@contextmanager
def compiling() -> Iterator[list[Compiled]]:
    """Within this block launches of Triton kernels are compiled for the GPU that is here, and not run."""
    from triton.runtime.jit import JITFunction

    found: list[Compiled] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> Any:
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        found.append(
            Compiled(self.__name__, arguments_of(self, args, options)[1], compiled.asm["ttgir"], compiled.asm["ptx"])
        )
        return compiled

    with mock.patch.object(JITFunction, "run", compile_only):
        yield found


def compiled_by(fn: Callable[..., Any], *args: Any) -> list[Compiled]:
    """Return what one call of a kernel's Python function would launch here."""
    with compiling() as found:
        fn(*args)
    return found


def in_a_thread() -> str | None:
    """Return the order in which this triton adds what one thread holds, or None: nobody has looked."""
    import triton

    return IN_A_THREAD.get(tuple(int(n) for n in triton.__version__.split(".")[:2]))


def sums(ttgir: str) -> list[Sum]:
    """Return the fp32 sums of a kernel, in the order of the text.

    Raises:
        ValueError: a layout that is not known here, or one that does not hold each element once.
    """
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\..*)$", ttgir, re.M))
    found = []
    for text in ttgir.split('"tt.reduce"')[1:]:
        match = REDUCTION.match(text[: text.find(") ->") + 4])
        if match is None or "arith.addf" not in match[2]:
            continue
        shape, axis = [int(n) for n in match[3].split("x")], int(match[1])
        one = Sum(shape[axis], *_along(match[4], layouts, shape, axis))
        if sorted(one.bits()) != [1 << b for b in range(one.size.bit_length() - 1)]:
            raise ValueError(f"layout: {match[4]} holds {one.bits()} of {one.size} elements")
        found.append(one)
    return found


def _along(layout: str, layouts: dict[str, str], shape: list[int], axis: int) -> tuple[tuple[int, ...], ...]:
    """Return the bits of (registers, lanes, warps) that move along an axis."""
    layout = layouts.get(layout, layout)
    if sliced := re.match(r"#ttg\.slice<\{dim = (\d+), parent = (.+)\}>$", layout):
        dim, parent = int(sliced[1]), sliced[2]
        whole = [*shape[:dim], 1, *shape[dim:]]  # what moves along the dimension that is gone is there again and again
        return _along(parent, layouts, whole, axis + (dim <= axis))
    if layout.startswith("#ttg.linear"):
        bases = [re.search(rf"{kind} = (\[\[.*?\]\]|\[\])", layout) for kind in ("register", "lane", "warp")]
        rows = [re.findall(r"\[([\d, ]+)\]", match[1]) if match else [] for match in bases]
        columns = [[int(row.split(",")[axis]) for row in kind] for kind in rows]
        return tuple(tuple(value for value in kind if value) for kind in columns)
    if layout.startswith("#ttg.blocked"):
        numbers = [re.search(rf"{name} = \[([\d, ]+)\]", layout)
                   for name in ("sizePerThread", "threadsPerWarp", "warpsPerCTA")]  # fmt: skip
        sizes = [int(match[1].split(",")[axis]) if match else 1 for match in numbers]
        counted, found = 1, []
        for size in sizes:
            bits = [counted << b for b in range(size.bit_length() - 1)]
            found.append([bit for bit in bits if bit < shape[axis]])
            counted *= size
        found[0] += [bit for bit in (1 << b for b in range(shape[axis].bit_length() - 1)) if bit >= counted]
        return tuple(map(tuple, found))
    raise ValueError(f"layout: got {layout[:60]}, must be #ttg.blocked or #ttg.linear")
