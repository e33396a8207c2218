"""Tiles of the Hopper kernels: five records, and what of each fits a given weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from moeracle.kernels.hopper.prepared_weight import COLUMN_TILE, ROW_TILE, ROWS
from moeracle.kernels.triton.schedules import WGMMA

if TYPE_CHECKING:
    from moeracle.kernels.hopper.prepared_weight import PreparedWeight

SHARED = 220 * 1024  # bytes of shared memory that a program may take
WHOLE_X = 226 * 1024  # bytes of it for x, where nothing lies beside it


def _fitting(block_n: int, w: PreparedWeight) -> int:
    while block_n > 64 and w.slabs * 16 % block_n:
        block_n //= 2
    return block_n


def _depth(wanted: int, steps: int) -> int:
    return next(d for d in range(min(wanted, steps), 0, -1) if steps % d == 0)


def in_parts(split_k: int) -> str:
    """Return the schedule of K as a whole, or of so many parts of it that are added pairwise."""
    return WGMMA if split_k == 1 else f"{WGMMA}/s{split_k}/join=pairwise"


class Scheduled:
    """What every tile has: its schedule, by `split_k` where it has one."""

    def schedule(self) -> str:
        """Return the text of the order in which products are added, for a tile that `fit` returned."""
        return in_parts(getattr(self, "split_k", 1))


@dataclass(frozen=True)
class Ring(Scheduled):
    """hopper_gemm, words and x through a ring of `num_stages` steps of `block_k` columns in shared memory.

    Args:
        block_m: rows of x, 8..128. block_n: rows of the weight, a multiple of 64. block_k: 64 or 128.
        num_stages: 2 or more. num_warps: 4, or 8 where block_n is at least 128.
        least: columns that a block of few real rows is multiplied by, a power of 2, 8 or more; 0: always block_m.
        max_registers: a thread's, so that more programs fit at once; 0 leaves it to the compiler.
    """

    block_m: int = 64
    block_n: int = 128
    block_k: int = 64
    num_stages: int = 5
    num_warps: int = 4
    least: int = 0
    max_registers: int = 0

    def fit(self, w: PreparedWeight) -> Ring:
        """Return the nearest tile that divides the weight and fits into shared memory."""
        block_n = _fitting(self.block_n, w)
        stages = min(self.num_stages, w.padded_k // self.block_k + 1)
        step = self.block_k * (block_n // 2 + self.block_m * 2)
        stages, warps = max(2, min(stages, SHARED // step)), min(self.num_warps, block_n // 16)
        return replace(self, block_n=block_n, num_stages=stages, num_warps=warps)


@dataclass(frozen=True)
class Direct(Scheduled):
    """hopper_gemm, words straight into registers `block_k` columns ahead, x through a ring of `num_stages` steps.

    Args:
        block_m: rows of x, 8..128. block_n: rows of the weight, a multiple of 64. block_k: 64, 128 or 256.
        num_stages: 2 or more. num_warps: 4, or more where block_n is 16 rows a warp.
        least, max_registers: as Ring's.
    """

    block_m: int = 64
    block_n: int = 128
    block_k: int = 256
    num_stages: int = 2
    num_warps: int = 8
    least: int = 0
    max_registers: int = 0

    def fit(self, w: PreparedWeight) -> Direct:
        """Return the nearest tile that divides the weight and fits into shared memory."""
        block_n, block_k = _fitting(self.block_n, w), self.block_k
        while w.padded_k % block_k or 2 * block_k * self.block_m * 2 > SHARED:
            block_k //= 2
        stages = min(self.num_stages, w.padded_k // block_k + 1, SHARED // (block_k * self.block_m * 2))
        stages, warps = max(2, stages), min(self.num_warps, block_n // 16)
        return replace(self, block_n=block_n, block_k=block_k, num_stages=stages, num_warps=warps)


@dataclass(frozen=True)
class Few(Scheduled):
    """hopper_few: all of x in shared memory, weights in registers `depth` steps of 64 columns ahead.

    Args:
        block_m: rows of x, 8..32. block_n: rows of the weight, a multiple of 64. split_k: 1, 2 or 4 parts of K.
        depth: 1..8.
        max_registers: as Ring's.
    """

    block_m: int = 8
    block_n: int = 64
    split_k: int = 1
    depth: int = 4
    max_registers: int = 0

    @property
    def num_warps(self) -> int:
        """Four for every 64 rows of each part."""
        return self.split_k * self.block_n // 16

    def fit(self, w: PreparedWeight) -> Few | Ring:
        """Return the nearest tile that divides the weight, or a Ring where x is too large for shared memory."""
        if self.block_m * w.padded_k * 2 > WHOLE_X:
            return Ring(self.block_m, max(self.block_n, 128), 128, 4, 4).fit(w)
        split = self.split_k
        while split > 1 and (w.padded_k % (64 * split) or w.padded_k != w.K):  # parts of K itself: a schedule says so
            split //= 2
        depth = _depth(self.depth, w.padded_k // split // 64)
        return replace(self, block_n=_fitting(self.block_n, w), split_k=split, depth=depth)


@dataclass(frozen=True)
class Stream(Scheduled):
    """hopper_stream: as Few in one part of K, by `resident` programs a multiprocessor that stay.

    Args:
        block_m: rows of x, 8..64. block_n: rows of the weight, a multiple of 64.
        depth: steps of 64 columns ahead, 1..8.
        resident: programs a multiprocessor, as many as fit.
        max_registers: as Ring's.
    """

    block_m: int = 8
    block_n: int = 64
    depth: int = 4
    resident: int = 4
    max_registers: int = 0

    @property
    def num_warps(self) -> int:
        """Four for every 64 rows."""
        return self.block_n // 16

    def fit(self, w: PreparedWeight) -> Stream | Direct:
        """Return the nearest tile that divides the weight, or a Direct where x is too large for shared memory."""
        if self.block_m * w.padded_k * 2 > SHARED:
            return Direct(self.block_m, max(self.block_n, 128)).fit(w)
        return replace(self, block_n=_fitting(self.block_n, w), depth=_depth(self.depth, w.padded_k // 64))


@dataclass(frozen=True)
class Duo(Scheduled):
    """hopper_duo: two warpgroups multiply, a third copies everything through a ring of `num_stages` steps.

    Args:
        block_m: rows of x, 16..128. block_n: rows of the weight, 128 or 256. block_k: 64 or 128.
        num_stages: 2 or more.
        least: as Ring's.
    """

    block_m: int = 64
    block_n: int = 256
    block_k: int = 128
    num_stages: int = 4
    least: int = 0

    @property
    def num_warps(self) -> int:
        """Of the first warpgroup; the kernel adds two."""
        return 4

    @property
    def copy_registers(self) -> int:
        """A copying thread's: as many as what it copies in one step has addresses; others share the rest."""
        return 88 if self.block_m > 64 else 104

    def fit(self, w: PreparedWeight) -> Duo | Direct:
        """Return the nearest tile that divides the weight and fits into shared memory, or a Direct for 64 rows."""
        block_n, block_k = _fitting(self.block_n, w), self.block_k
        if block_n < 128:
            return Direct(self.block_m, 128, least=self.least).fit(w)
        if self.block_m > 64 or (block_k < w.G and w.G % block_k):  # registers; a step that two groups share
            block_k = 64
        pairs = 2 * block_n * max(1, block_k // w.G) * 2  # scales and zero points
        step = block_k * (block_n // 2 + self.block_m * 2) + pairs + 16
        return replace(self, block_n=block_n, block_k=block_k, num_stages=max(2, min(self.num_stages, SHARED // step)))


Tile = Ring | Direct | Few | Stream | Duo
KINDS: dict[str, Any] = {kind.__name__.lower(): kind for kind in (Ring, Direct, Few, Stream, Duo)}
WIDEST = Direct(128, 128, 64, 4, 8, 64, 128)  # 128 rows in what registers there are, whatever the epilogue


def register_cap(tile: Tile) -> int:
    """Return the most registers that a tile lets a thread have; 0: as many as the compiler likes."""
    return int(getattr(tile, "max_registers", 0))


def sizes_of(N: int, K: int, G: int, kind: str = "bf16") -> Any:
    """Return what tiles ask of a PreparedWeight [., N, K] with groups of G, or -1, and of this kind."""
    slabs, columns = -(-N // ROW_TILE) * (ROW_TILE // ROWS), -(-K // COLUMN_TILE) * COLUMN_TILE
    return SimpleNamespace(N=N, K=K, G=K if G == -1 else G, slabs=slabs, padded_k=columns, kind=kind)
