"""Fitting the model of hopper/tiles/model.py to measurements, and what it then chooses badly.

    python -m moeracle.kernels.tune.fit fixtures/hardware/h200/tile_sweep.json fixtures/hardware/h200/tile_fits.json

prints the constants, and how many times as long as the best tile measured what the model chooses takes, for each layer
once with its own measurements and once with those of the other layers alone. A sweep's file holds under `groups` one
record for each GEMM of a layer at some T: name, which (0 or 1; 2: a linear), E, N, K, G, k, T and `us`, microseconds by
tile.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

from moeracle.files import write_atomically
from moeracle.kernels.common.machine_model import Machine, Work, microseconds
from moeracle.kernels.hopper.tiles import linear
from moeracle.kernels.hopper.tiles.kinds import KINDS, Tile, sizes_of
from moeracle.kernels.hopper.tiles.model import plausible, work_of

DENSE = 2  # which, of a linear
NEAR = 4.0  # a tile that took 1 + d times the best counts exp(-NEAR * d)
CHOICE = 0.6  # what a choice is worth beside the times themselves
TRIES, TRIES_WITHOUT = 4000, 900  # of a fit to all layers, and to all but one
# Where every fit begins: round numbers, which know of no measurement here.
START = Machine(
    latency=0.8, memory=4.5e6, cache=1e8, product=3.5e8, issue_few=0.03, issue_stream=0.03, issue_direct=0.003,
    issue_ring=0.1, issue_duo=0.03, issue_scales=0.3, x=1.0, start_few=1.0, start_stream=1.0, start_direct=1.0,
    start_ring=1.0, start_duo=1.0, launch=1.5, store=0.01, tail=0.8, soft=2.5,
)  # fmt: skip
SOFT = 0.01  # tiles whose times the model has within this share of each other are chosen from as if by chance


def tile_named(text: str) -> Tile | linear.Wide:
    """Return the tile that a sweep's file names by its kind and numbers."""
    kind, *numbers = text.split()
    made: Tile | linear.Wide = (KINDS | {"wide": linear.Wide})[kind](*map(int, numbers))
    return made


@dataclass(frozen=True)
class Group:
    """One GEMM at one T: each tile's work and microseconds.

    Args:
        name: of the layer. which: 0 or 1. T: tokens.
        tiles, works, us: of each tile that the model may choose here.
        best: of all that were measured.
    """

    name: str
    which: int
    T: int
    tiles: tuple[Tile | linear.Wide, ...]
    works: tuple[Work, ...]
    us: tuple[float, ...]
    best: float

    def regret(self, machine: Machine) -> float:
        """Return how many times as long as the best tile the one takes that the model chooses."""
        times = [microseconds(work, machine) for work in self.works]
        return self.us[times.index(min(times))] / self.best


def groups_of(found: Mapping[str, Any]) -> list[Group]:
    """Return the groups of a sweep's file, with the tiles of MENU alone."""
    groups = []
    for g in found["groups"]:
        measured = {tile_named(name): us for name, us in g["us"].items()}
        held: dict[Any, Work] = {}
        if g["which"] == DENSE:
            for tile in linear.plausible(g["T"], g["N"], g["K"]):
                held[tile] = linear.work_of(tile, g["T"], g["N"], g["K"])
        else:
            w, rows = sizes_of(g["N"], g["K"], g["G"]), g["T"] * g["k"]
            held = {tile: work_of(tile, w, rows, g["E"]) for tile in (t.fit(w) for t in plausible(rows, g["E"]))}
        held = {tile: work for tile, work in held.items() if tile in measured}
        us = tuple(measured[tile] for tile in held)
        groups.append(
            Group(g["name"], g["which"], g["T"], tuple(held), tuple(held.values()), us, min(measured.values()))
        )
    return groups


def loss(groups: Iterable[Group], machine: Machine) -> float:
    """Return how far times are from those measured, near ones counting most, and choices from the best."""
    errors, weights, choices = 0.0, 0.0, []
    for group in groups:
        times = [math.log(microseconds(work, machine)) for work in group.works]
        least = min(times)
        chances = [math.exp((least - time) / SOFT) for time in times]
        costs = [min(us / group.best - 1, 0.5) for us in group.us]
        choices.append(sum(map(lambda a, b: a * b, chances, costs)) / sum(chances))
        for time, us, cost in zip(times, group.us, costs, strict=True):
            weight = math.exp(-NEAR * cost)
            errors += weight * (time - math.log(us)) ** 2
            weights += weight
    return errors / weights + CHOICE * mean(choices)


def fitted(groups: Sequence[Group], start: Machine = START, tries: int = TRIES) -> Machine:
    """Return the machine with the least loss that a random walk finds: a few numbers changed at a time.

    Args:
        groups: measured.
        start: where it begins.
        tries: of the walk.
    """
    draw, names = random.Random(0), [f.name for f in fields(Machine) if f.type == "float"]
    best, least, width = start, loss(groups, start), 0.3
    for i in range(tries):
        changed = {
            name: getattr(best, name) * math.exp(draw.gauss(0, width))
            for name in draw.sample(names, draw.randint(1, 3))
        }
        if changed.get("tail", 0) > 1:
            continue
        tried = Machine(**{name: changed.get(name, getattr(best, name)) for name in names})
        value = loss(groups, tried)
        if value < least:
            best, least = tried, value
        if i % (tries // 4) == tries // 4 - 1:
            width *= 0.5
    return best


def main(path: str, left_out: str) -> None:
    """Fit, print what is chosen badly, and write the constants that are fitted without each layer.

    Args:
        path: of a sweep.
        left_out: JSON to write: by layer, the constants fitted to all others.
    """
    every, without = groups_of(json.loads(Path(path).read_text())), {}
    for dense in (False, True):
        groups = [group for group in every if (group.which == DENSE) == dense]
        machine = fitted(groups)
        print(machine, f"loss {loss(groups, machine):.4f}", flush=True)
        for name in dict.fromkeys(group.name for group in groups):
            own = [group for group in groups if group.name == name]
            others = fitted([group for group in groups if group.name != name], tries=TRIES_WITHOUT)
            without[name] = vars(others)
            for what, by in (("all", machine), ("others", others)):
                found = [group.regret(by) for group in own]
                worst = max(zip(found, own, strict=True), key=lambda pair: pair[0])
                print(
                    f"{name} fitted to {what}: mean {mean(found):.3f}, at most {worst[0]:.3f} (T={worst[1].T})",
                    flush=True,
                )
    write_atomically(Path(left_out), json.dumps(without, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
