"""Whether two checkpoints hold the same weights, in whatever clothes; and if not, where, by how much, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from moeracle.properties.faults import find_fault
from moeracle.ref.weights.stored import StoredWeight

from .checkpoint import Checkpoint
from .experts import Layer, Rows
from .files import shown
from .loaders import Beside, mistakes

PROJECTIONS = ("gate", "up", "down")
MOST_EXPLAINED = 12  # weights that differ and are asked every known mistake
NEIGHBOURS = 8  # experts whose weights are tried in an expert's place
NEARLY = 0.9  # of the elements: less explains nothing
_FROM_LAYER = re.compile(r"(?:.*?\.)?((?:layers|h|blocks)\.\d+\..+)")


@dataclass(frozen=True)
class Unit:
    """One weight of a model, whichever tensor holds it.

    Args:
        name: as it is reported: "layer 0 expert 2 gate", or the module's name.
        layer, expert: numbers, or None.
        projection: "gate", "up" or "down"; "" outside experts.
    """

    name: str
    layer: int | None = None
    expert: int | None = None
    projection: str = ""


@dataclass
class Difference:
    """How one weight differs.

    Args:
        unit: which.
        elements, of: how many differ, of how many; all where the shapes do.
        largest: the largest difference, and in scales: of the element's own group; 0 where nothing is quantized.
        scales: see largest.
        row, column, group: of the first element that differs; group None where nothing is quantized.
        problem: shapes that differ, or why one side cannot be read; "" otherwise.
        explained: (id, words) of the mistakes that give exactly B, or of the one that gives nearly all of it.
        share: of the elements that the first of them gives.
    """

    unit: Unit
    elements: int
    of: int
    largest: float = 0.0
    scales: float = 0.0
    row: int = 0
    column: int = 0
    group: int | None = None
    problem: str = ""
    explained: list[tuple[str, str]] = field(default_factory=list)
    share: float = 0.0


@dataclass
class Diff:
    """What a comparison found.

    Args:
        a, b: the checkpoints.
        compared: weights that both have.
        only_a, only_b: names of weights that one lacks.
        rounded: weights that are equal after rounding to the unquantized side's dtype, by how.
        differences: of the others, in order.
    """

    a: Checkpoint
    b: Checkpoint
    compared: int = 0
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    rounded: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    def suspects(self) -> list[tuple[str, str, int, int]]:
        """Return (id, words, weights that it gives, weights that were asked), the best first."""
        asked = [d for d in self.differences if d.explained or d.share]
        counts = Counter(said for d in asked for said in dict.fromkeys(d.explained))
        looked = min(len([d for d in self.differences if not d.problem or d.explained]), MOST_EXPLAINED)
        return [(*said, count, looked) for said, count in counts.most_common()]


def diff(
    a: Checkpoint, b: Checkpoint, layers: tuple[int, ...] = (), tick: Callable[[str, int, int], None] | None = None
) -> Diff:
    """Compare every weight of two checkpoints, exactly.

    Args:
        a, b: quantized or not, in any formats.
        layers: only these; (): all layers and what is outside of them.
        tick: called with what is done, how many weights, and of how many.
    Returns:
        Diff.
    """
    found = Diff(a, b)
    held_a, held_b = units(a, layers), units(b, layers)
    found.only_a = [unit.name for unit in held_a if unit not in held_b]
    found.only_b = [unit.name for unit in held_b if unit not in held_a]
    common = [unit for unit in held_a if unit in held_b]
    for done, unit in enumerate(common):
        difference = _compare(unit, held_a[unit], held_b[unit], found)
        if difference is not None:
            found.differences.append(difference)
        if tick:
            tick("weights", done + 1, len(common))
    found.compared = len(common)
    _explain(found, held_a, held_b)
    if not layers:
        _compare_others(found)
    return found


def _compare_others(found: Diff) -> None:
    """Compare what is no weight of a linear: norms, biases, convolutions."""
    names_a, names_b = others_of(found.a), others_of(found.b)
    for name in [name for name in names_a if name in names_b]:
        a, b = found.a.files.read(names_a[name]).double(), found.b.files.read(names_b[name]).double()
        found.compared += 1
        if a.shape != b.shape:
            said = f"{shown(name)}: is {list(a.shape)} in A, {list(b.shape)} in B"
            found.differences.append(Difference(Unit(name), b.numel(), b.numel(), problem=said))
        elif b.numel():
            flat = _measured(Unit(name), a.reshape(1, -1), b.reshape(1, -1), None)
            found.differences += [] if flat is None else [flat]
    found.only_a += sorted(names_a.keys() - names_b.keys())
    found.only_b += sorted(names_b.keys() - names_a.keys())


def others_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the tensors that are no weight of a linear, by their names without a stem."""
    biases = [linear.parts["bias"] for linear in checkpoint.linears.values() if "bias" in linear.parts]
    found = {}
    for name in (*checkpoint.others, *biases):
        match = _FROM_LAYER.fullmatch(name)
        found[match[1] if match and name.startswith("model.") else name] = name
    return found


def units(checkpoint: Checkpoint, layers: tuple[int, ...] = ()) -> dict[Unit, Rows]:
    """Return every weight of a checkpoint: experts by layer and projection, the others by their names."""
    found: dict[Unit, Rows] = {}
    in_layers = set()
    for n in checkpoint.layers:
        layer = checkpoint.layer(n)
        in_layers |= {linear.module for linear in layer.linears}
        if not layers or n in layers:
            found |= _of_layer(layer)
    for module, linear in checkpoint.linears.items():
        if module in in_layers or (layers and linear.place.layer not in layers):
            continue
        match = _FROM_LAYER.fullmatch(module)
        main = match and (linear.place.stem == "" or linear.place.stem.startswith("model"))
        found[Unit(match[1] if match and main else module, linear.place.layer)] = Rows(linear)
    return found


def _of_layer(layer: Layer) -> dict[Unit, Rows]:
    found = {}
    for e in range(layer.num_experts):
        for projection in PROJECTIONS:
            try:
                rows = layer.rows(e, projection)
            except ValueError:  # a file with some of the experts
                continue
            found[Unit(f"layer {layer.n} expert {e} {projection}", layer.n, e, projection)] = rows
    return found


def _exact(rows: Rows) -> tuple[torch.Tensor, StoredWeight | None]:
    """Return the weights in float64 and their stored form, if they are quantized."""
    stored = rows.stored() if rows.linear.quantized and not rows.transposed else None
    return (rows.dequantize(torch.float64) if stored is None else stored.dequantize(torch.float64)), stored


def _compare(unit: Unit, rows_a: Rows, rows_b: Rows, found: Diff) -> Difference | None:
    try:
        (a, stored_a), (b, stored_b) = _exact(rows_a), _exact(rows_b)
    except ValueError as error:
        return Difference(unit, 0, 0, problem=str(error))
    if a.shape != b.shape:
        return Difference(
            unit, b.numel(), b.numel(), problem=f"{shown(unit.name)}: is {list(a.shape)} in A, {list(b.shape)} in B"
        )
    if torch.equal(a, b):
        return None
    if rows_a.linear.quantized != rows_b.linear.quantized:
        how = _equal_rounded(*((b, rows_b, rows_a) if rows_b.linear.quantized else (a, rows_a, rows_b)))
        if how:
            found.rounded[how] += 1
            return None
    return _measured(unit, a, b, stored_a or stored_b)


def _equal_rounded(exact: torch.Tensor, quantized: Rows, other: Rows) -> str:
    """Say by which roundings exact weights are the unquantized ones; "" if by none."""
    dense, first = other.weight(), quantized.weight().dtype
    dtype = dense.dtype
    name = str(dtype).removeprefix("torch.")
    if torch.equal(exact.to(dtype), dense):
        return f"rounded once to {name}"
    if torch.equal(exact.to(first).to(dtype), dense):
        return f"rounded to {str(first).removeprefix('torch.')}, then to {name}"
    return ""


def _measured(unit: Unit, a: torch.Tensor, b: torch.Tensor, stored: StoredWeight | None) -> Difference | None:
    wrong = ~((a == b) | (a.isnan() & b.isnan()))
    if not bool(wrong.any()):  # equal, NaN included
        return None
    apart = (a - b).abs().nan_to_num(nan=float("inf"))
    row, column = (int(i) for i in wrong.nonzero()[0])
    found = Difference(unit, int(wrong.sum()), wrong.numel(), float(apart.max()), row=row, column=column)
    if stored is not None:
        columns = stored.columns()
        scale = stored.scale.double().abs()[:, columns]
        found.scales = (
            float((apart / scale.clamp(min=torch.finfo(torch.float64).tiny))[wrong & (scale > 0)].max())
            if bool((wrong & (scale > 0)).any())
            else 0.0
        )
        found.group = int(columns[column])
    return found


def _explain(found: Diff, held_a: dict[Unit, Rows], held_b: dict[Unit, Rows]) -> None:
    """Ask every known mistake of some of the weights that differ: does it make B of A, or A of B?"""
    able = [d for d in found.differences if (not d.problem or d.elements) and d.unit in held_a]
    step = max(1, len(able) // MOST_EXPLAINED)
    for difference in able[::step][:MOST_EXPLAINED]:
        unit = difference.unit
        rows_a, rows_b = held_a[unit], held_b[unit]
        best: list[tuple[float, str, str]] = []
        for held, mine, theirs, which in ((held_a, rows_a, rows_b, ""), (held_b, rows_b, rows_a, "A is B with: ")):
            weight, stored = _exact(mine)
            target, dense = _exact(theirs)[0], not theirs.linear.quantized
            if which and stored is None and not rows_a.linear.quantized:
                continue  # both are unquantized: one direction says it all
            for mistake in mistakes(_beside(unit, weight, stored, held)):
                share = _share(mistake.weight, target, theirs.weight().dtype if dense else None)
                if share >= NEARLY:
                    best.append((share, mistake.id, which + words_of(mistake.id, mistake.words)))
            if best:
                break
        unlike = 1 - difference.elements / max(1, difference.of)
        best = [said for said in best if said[0] > unlike + (1 - unlike) / 2]
        if best:
            top = max(share for share, *_ in best)
            difference.share = top
            difference.explained = [(id, words) for share, id, words in best if share == top]


def words_of(id: str, words: str) -> str:
    """Return what a mistake is called: in the fault register's words where it has an id, then in particular."""
    return f"{find_fault(id).title} ({words})" if id else words


def _share(made: torch.Tensor, target: torch.Tensor, dtype: torch.dtype | None) -> float:
    """Return which share of the target's elements a mistake gives, rounded as the target is."""
    if made.shape != target.shape or not target.numel():
        return 0.0
    rounded = made if dtype is None else made.to(dtype).double()
    return float((rounded == target).double().mean())


def _beside(unit: Unit, weight: torch.Tensor, stored: StoredWeight | None, held: dict[Unit, Rows]) -> Beside:
    def at(layer: int | None, expert: int | None, projection: str) -> torch.Tensor | None:
        rows = held.get(Unit(f"layer {layer} expert {expert} {projection}", layer, expert, projection))
        return None if rows is None else _exact(rows)[0]

    def elsewhere() -> Iterator[tuple[str, torch.Tensor]]:
        if unit.expert is None or unit.layer is None:
            return
        near = sorted(
            (
                u.expert
                for u in held
                if u.layer == unit.layer
                and u.projection == unit.projection
                and u.expert is not None
                and u.expert != unit.expert
            ),
            key=lambda e: abs(e - (unit.expert or 0)),
        )
        for e in near[:NEIGHBOURS]:
            w = at(unit.layer, e, unit.projection)
            if w is not None:
                yield "another expert's weights", w
        for n in (unit.layer - 1, unit.layer + 1):
            w = at(n, unit.expert, unit.projection)
            if w is not None:
                yield "another layer's weights", w

    return Beside(weight, stored, unit.projection, lambda name: at(unit.layer, unit.expert, name), elsewhere)
