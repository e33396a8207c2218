"""Tiles found when a layer's weights are loaded: the model's few best are timed on the real weights, once a machine.

    from moeracle.kernels.tune.at_load import search
    search(w13, w2, top_k=8)           # later launches of this shape take what was found

A token count takes some ten tiles of either GEMM; compiling one takes 1 to 4 s the first time.

A tile is timed only if it stores, on these weights, the bits of a tile of the same schedule that recordings prove; what
spills registers is left out. Rows go to a table of this machine's own (tuned.cached_path), named by the GPU, and by a
digest of Triton's version and the kernels' sources: with others nothing of it is read. A second call finds its rows
there, and measures nothing: rows are of sizes, dtype and whether there are zero points, so another layer that has the
same takes them unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from moeracle.kernels import tuned
from moeracle.kernels.bench.layer_problem import CALLS, LayerProblem
from moeracle.kernels.bench.timing import GraphTimer
from moeracle.kernels.hopper.prepared_weight import PreparedWeight, prepared
from moeracle.kernels.hopper.tiles.layers import OP, Direct, Few, Layer, Tile, to_fields
from moeracle.kernels.hopper.tiles.model import plausible, ranked
from moeracle.kernels.tune.rounds import Clock, in_turn
from moeracle.ref.errors import require
from moeracle.ref.weights.weight import Int4Weight

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
MOST = 6  # tiles of each GEMM that are timed
NEAR = 1.3  # times the model's best: beyond, a tile is not timed
ROUNDS = 5
# Tiles whose bits are recorded (fixtures/hardware/h200/recordings/hopper), by the parts of K that they add.
PROVEN: dict[int, tuple[Tile, ...]] = {
    1: (Direct(8, 128, 256, 2, 8, 8, 64),),
    2: (Few(8, 64, 2, 4),),
    4: (Few(8, 64, 4, 4),),
}
Note = Callable[[str], None]


def candidates(w: PreparedWeight, rows: int, E: int, most: int = MOST) -> list[Tile]:
    """Return the model's best tiles of one GEMM, and of each block_m its best, fastest first.

    Args:
        w: prepared, or its sizes.
        rows: R.
        E: experts.
        most: how many, those of each block_m not counted.
    """
    found = ranked(w, rows, E, menu=plausible(rows, E))
    near = [(us, tile) for us, tile in found if us <= NEAR * found[0][0]]
    first = {tile.block_m: tile for _, tile in reversed(near)}
    return list(dict.fromkeys([*(tile for _, tile in near[:most]), *first.values()]))


def parts_of(tile: Tile) -> int:
    """Return into how many parts a tile cuts K."""
    return int(getattr(tile, "split_k", 1))


class Gate:
    """Lets tiles through whose bits are those of a proven tile of the same schedule, on the weights of a problem.

    Args:
        problem: the layer.
    """

    def __init__(self, problem: LayerProblem) -> None:
        self.problem = problem
        self.proven: dict[tuple[int, int], torch.Tensor | None] = {}
        self.read: torch.Tensor | None = None

    def stored(self, which: int, tile: Tile) -> torch.Tensor | None:
        """Return what a GEMM stores with a tile; None where it spills registers.

        GEMM2 reads random numbers: what GEMM1's last tile left may be zeros or NaN, if that tile is wrong.
        """
        out = self.problem.y if which else self.problem.a
        if which:
            if self.read is None:
                draw = torch.Generator(out.device).manual_seed(2)
                self.read = torch.randn(self.problem.a.shape, generator=draw, device=out.device).to(out.dtype)
            self.problem.a.copy_(self.read)
        out.zero_()
        made = self.problem.gemm_calls(which, tile)[0]()
        return None if getattr(made, "n_spills", 0) else out.clone()

    def __call__(self, which: int, tile: Tile) -> str:
        """Return why a tile of GEMM1 (0) or GEMM2 (1) must not be timed, or ""."""
        w, parts = (self.problem.up, self.problem.down)[which], parts_of(tile)
        if (which, parts) not in self.proven:
            fitting = [known.fit(w) for known in PROVEN.get(parts, ())]
            whole = [known for known in fitting if parts_of(known) == parts]
            self.proven[which, parts] = self.stored(which, whole[0]) if whole else None
        expected, got = self.proven[which, parts], self.stored(which, tile)
        if expected is None:
            return f"no tile of its schedule, {tile.schedule()}, is proven for this weight"
        if got is None:
            return "it spills registers"
        if not (expected.isfinite() & (expected != 0)).any():
            return "every sum is zero, NaN or infinite, which tells nothing of its bits"
        same = torch.equal(got.view(torch.int16), expected.view(torch.int16))
        return "" if same else f"its bits are not those of {tile.schedule()}"


def best_layer(
    problem: LayerProblem, clock: Clock, note: Note, gate: Callable[[int, Tile], str]
) -> tuple[float, Layer]:
    """Return (microseconds, layer) of the fastest pair of tiles that the gate lets through: both GEMMs timed in turn.

    Args:
        problem: what to time on.
        clock: as of tune.rounds.
        note: called with each tile that is refused.
        gate: says why a tile must not be timed, or "".
    Raises:
        ValueError: no block_m has a tile for both GEMMs.
    """
    best: list[dict[int, tuple[float, Tile]]] = [{}, {}]
    for which, w in enumerate((problem.up, problem.down)):
        allowed = []
        for tile in candidates(w, problem.rows, problem.E):
            why = gate(which, tile)
            if why:
                note(f"gemm{which + 1}: {tile} is not timed: {why}")
            else:
                allowed.append(tile)
        calls = {tile: problem.gemm_calls(which, tile) for tile in allowed}
        for us, tile in in_turn(clock, calls, ROUNDS) if calls else []:
            best[which].setdefault(tile.block_m, (us, tile))
    both = best[0].keys() & best[1].keys()
    if not both:
        raise ValueError(f"search: no tiles are left for both GEMMs at {problem.rows} rows")
    m = min(both, key=lambda m: best[0][m][0] + best[1][m][0])
    return best[0][m][0] + best[1][m][0], Layer(best[0][m][1], best[1][m][1])


def problem_of(w13: PreparedWeight, w2: PreparedWeight, top_k: int, T: int) -> LayerProblem:
    """Return a layer at T tokens: random activations, uniform routings, as many as its weights leave the cache for.

    Args:
        w13, w2: prepared.
        top_k: k.
        T: tokens.
    """
    device, E = w13.words.device, w13.words.shape[0]
    draw = torch.Generator(device).manual_seed(1)
    used = min(E, T * top_k) * (w13.words[0].nbytes + w2.words[0].nbytes)
    routed = []
    for _ in range(CALLS if used < 64 << 20 else 3):
        ids = torch.rand(T, E, generator=draw, device=device).topk(top_k, 1).indices.int()
        x = torch.randn(T, w13.K, generator=draw, device=device).to(w13.dtype)
        routed.append((x, torch.full((T, top_k), 1 / top_k, device=device), ids))
    return LayerProblem(w13, w2, routed)


def search(
    w13: Int4Weight | PreparedWeight,
    w2: Int4Weight | PreparedWeight,
    top_k: int,
    *,
    tokens: Sequence[int] = TOKENS,
    note: Note = lambda line: None,
    clock: Clock | None = None,
) -> list[dict[str, Any]]:
    """Find the tiles of a layer on this GPU, or take those that an earlier call has found, and let launches use them.

    Args:
        w13, w2: [E, 2I, H] and [E, H, I], as moe_w4a16_hopper takes them.
        top_k: k.
        tokens: T of each bucket.
        note: called with one line for each choice and each tile that is refused.
        clock: reads the time; None: CUDA graphs on the weights' device.
    Returns:
        The table's rows of this layer, one a T, those found before with "us" as it was then.
    Raises:
        ValueError: the weights have no prepared order, or no tile is left.
    """
    up, down = prepared(w13, gated=True, fold=True), prepared(w2, fold=True)
    E, device = up.words.shape[0], up.words.device
    key = {"op": OP, "N": up.N, "K": up.K, "E": E, "G": up.G, "dtype": up.kind}
    rule = "rows are found by w13's"
    require(
        up.kind == down.kind, f"w2: got zero points and dtype {down.kind!r}, must be those of w13, {up.kind!r}: {rule}"
    )
    same_groups = up.G == down.G or _group(up) == _group(down)  # one group of w2 may be as long as w13's many
    require(same_groups, f"w2: got G {_group(down)}, must be those of w13, {_group(up)}: {rule}")
    place, name = _place(device)
    rows = list(_kept(key, place, tokens, top_k))
    known = {row["rows_per_expert"] for row in rows}
    for T in tokens:
        if T * top_k / E in known:
            continue
        problem = problem_of(up, down, top_k, T)
        us, layer = best_layer(problem, clock or GraphTimer(device), note, Gate(problem))
        row = {**key, "rows_per_expert": T * top_k / E, "tile": to_fields(layer), "us": round(us, 1)}
        tuned.keep(place, name, [row])
        rows.append(row)
        note(f"T={T}: {us:.1f} us: {layer}")
    return rows


def _group(w: PreparedWeight) -> int:
    return -1 if w.G == w.K else w.G


def _kept(key: dict[str, Any], place: str, tokens: Sequence[int], top_k: int) -> Iterator[dict[str, Any]]:
    buckets = {T * top_k / key["E"] for T in tokens}
    for row in tuned.load_cached(place).get(tuple(key[name] for name in tuned.KEY), ()):
        if row["rows_per_expert"] in buckets:
            yield row


def _place(device: torch.device) -> tuple[str, str]:
    """Return the name of this GPU's table, and the GPU's own."""
    name = torch.cuda.get_device_name(device)
    return tuned.slug(name), name
