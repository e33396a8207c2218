"""What may be wrong with a kernel, each as a simulation that does it: the known faults, and other people's conventions.

The conventions are other contracts, layouts, group sizes, zero points, operand orders and slot orders than the case's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from moeracle.ref.contracts.contract import PRESETS, Contract
from moeracle.ref.weights.layouts import PACKINGS_OF, unpack_codes

from ..cases.case import Case
from ..cases.optable import NONE, OPS
from ..faults import FAULTS
from ..faults.base import GEMMS, SCALED, WEIGHED, Fault
from ..faults.gemm import added_in_parts, truncated_in_a_wave
from ..faults.ranks import OF_RANK, ORDERS_OF_RANKS, reordered
from ..simulate import Simulation, simulation_of
from ..simulate.weights import one

T = torch.Tensor
TILES = (16, 32, 64, 128)  # rows of a tile, or columns of K in one
PARTS = (64, 128, 256, 512, 1024)  # inputs of a part of K
GROUPS = (16, 32, 64, 128, 256)
ZEROS = {"7": "7", "8": "8", "0": "0 (none subtracted)", "z-1": "one too small", "z+1": "one too large"}


@dataclass(frozen=True)
class Candidate:
    """One explanation: an id ("F29", "layout:gptq"), what is printed after it, and a fresh simulation that has it.

    `in_any_order`: each run of the simulation adds in another order, and a kernel's result is one of many.
    """

    id: str
    title: str
    simulation: Callable[[], Simulation]
    in_any_order: bool = False

    @property
    def name(self) -> str:
        """The id and title of a fault; the title alone of anything else, which says it all."""
        return f"{self.id} {self.title}" if self.id in FAULTS else self.title


def candidates(case: Case, rules: Contract, *, varies: bool = False) -> list[Candidate]:
    """Return every explanation that an op has under a contract, known faults first; earlier ones win ties.

    `varies`: a kernel's runs differ, so that parts of K are added in any order; so they are where a contract lets runs
    differ.
    """
    made = [*_faults(case, rules)]
    if OPS[case.op].weight:
        made += [*_layouts(case, rules), *_transposed(rules)]
    if case.op in SCALED:
        made += [*_zeros(rules), *_groups(case, rules)]
    if OPS[case.op].weight and OPS[case.op].routings != NONE:
        made += [
            _changed("expert:next", "each expert's rows meet the next expert's weight", rules, "load", _next_expert)
        ]
    if case.op in ("padded_gemm", "moe_w4a16"):
        made += [*_slots(case, rules)]
    last_tile = FAULTS["F23"]
    if case.op in last_tile.ops:
        widths = [tile for tile in TILES if tile < case.K]
        made += [_changed("F23", last_tile.title, rules, "operand", _without_last_tile(tile)) for tile in widths]
    narrowed, truncated = FAULTS["F201"], FAULTS["F171"]
    if narrowed.why_not(case.op, rules) is None:
        lengths = [length for length in PARTS if length < case.K]
        made += [_changed("F201", narrowed.title, rules, "dot_part", _in_parts(n)) for n in lengths]
        if varies or not rules.deterministic:
            shuffled = [_changed("F201", narrowed.title, rules, "dot_part", _in_parts(n, True)) for n in lengths]
            made += [replace(candidate, in_any_order=True) for candidate in shuffled]
    if truncated.why_not(case.op, rules) is None:
        of_lanes = () if OPS[case.op].layer else (1, 2, 4, 8, 16, 32)  # a layer has many candidates already
        ways = [(n, shifted) for shifted in (False, True) for n in of_lanes]
        made += [_changed("F171", truncated.title, rules, *_truncated(case.op, *way)) for way in ways]
    return [*made, *_contracts(case, rules)]


def _changed(id: str, title: str, rules: Contract, step: str, fn: Callable[..., Any], *also: str) -> Candidate:
    def simulation() -> Simulation:
        made = Simulation(rules)
        for name in (step, *also):
            made.replace_step(name, fn)
        return made

    return Candidate(id, title, simulation)


def _faults(case: Case, rules: Contract) -> Iterator[Candidate]:
    for fault in FAULTS.values():
        if fault.why_not(case.op, rules) is not None or not case.flags.issuperset(fault.weights):
            continue
        if fault.id in OF_RANK and rules.ranks is not None:
            step, of = OF_RANK[fault.id]
            for rank in range(rules.ranks.count):
                yield _changed(fault.id, f"{fault.title} (rank {rank})", rules, step, of(rank))
            continue
        if fault.id == "F251":
            for name, source in ORDERS_OF_RANKS.items():
                yield _changed(fault.id, f"{fault.title} ({name})", rules, "gathered", reordered(source))
            continue
        words = tuple(word for word in OPS[case.op].weight_flags if word in case.flags)
        if replace(fault.kernel(case.op, rules), weights=words).why_not(case) is not None:
            continue
        # What goes wrong tile by tile depends on a tile's rows, which nothing here says.
        for rows in TILES if "blocks" in fault.steps else TILES[:1]:
            yield Candidate(fault.id, fault.title, partial(_planted, fault, case.op, rules, rows))


def _planted(fault: Fault, op: str, rules: Contract, rows: int) -> Simulation:
    return fault.plant(simulation_of(op, rules, block_m=rows))


def _without_last_tile(tile: int) -> Callable[..., Any]:
    def operand(sim: Any, base: Any, a: T, which: str) -> T:
        a = base(a, which).clone()
        a[:, (a.shape[1] - 1) // tile * tile :] = 0
        return a

    return operand


def _in_parts(length: int, any_order: bool = False) -> Callable[..., Any]:
    return lambda sim, base, a, w, dtype: added_in_parts(a, w, dtype, base, length, any_order)


def _truncated(op: str, width: int, shifted: bool) -> tuple[str, Callable[..., Any]]:
    """Return the step and its stand-in: a lane scales what it has summed before it hands it on."""

    def of_loaded(sim: Any, base: Any, a: T, w: Any, dtype: torch.dtype) -> T:
        return truncated_in_a_wave(a.shape[1], width, lambda at: base(a[:, at], w.inputs(at), dtype), shifted)

    def of_matrix(sim: Any, base: Any, a: T, w: T, dtype: torch.dtype) -> T:
        return truncated_in_a_wave(a.shape[1], width, lambda at: base(a[:, at], w[:, at], dtype), shifted)

    return ("dot_part", of_loaded) if op in GEMMS else ("accumulate", of_matrix)


def _layouts(case: Case, rules: Contract) -> Iterator[Candidate]:
    if case.packing is None:  # dequantized weights hold no words
        return
    for layout, packing in PACKINGS_OF[case.bits].items():
        if layout == case.layout or packing.bits_a_code != case.packing.bits_a_code:
            continue

        def codes(sim: Any, base: Any, w: Any, e: int | None, which: str, layout: str = layout) -> T:
            read = PACKINGS_OF[w.bits][layout]
            words = one(w, e).packed.contiguous().flatten().view(read.dtype)
            return unpack_codes(words.reshape(read.packed_shape((w.N, w.K))), layout, w.bits)

        yield _changed(f"layout:{layout}", f"words of layout '{case.layout}' read as '{layout}'", rules, "codes", codes)


def _transposed(rules: Contract) -> Iterator[Candidate]:
    def codes(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
        return base(w, e, which).reshape(w.K, w.N).T

    yield _changed("transposed", "weight read as if [K, N] were stored", rules, "codes", codes)


def _zeros(rules: Contract) -> Iterator[Candidate]:
    for name, words in ZEROS.items():

        def zeros(sim: Any, base: Any, w: Any, e: int | None, which: str, name: str = name) -> T:
            zero = base(w, e, which)
            return zero + {"z-1": -1, "z+1": 1}[name] if "z" in name else torch.full_like(zero, int(name))

        yield _changed(f"zero:{name}", f"zero point {words}", rules, "zeros", zeros)


def _groups(case: Case, rules: Contract) -> Iterator[Candidate]:
    for size in (*GROUPS, -1):

        def group(sim: Any, base: Any, K: int, G: int, which: str, size: int = size) -> T:
            other = K if size == -1 or K % size else size
            return (torch.arange(K) // other).clamp(max=K // G - 1)

        if size != case.G:
            words = "one group over all of K" if size == -1 else f"group size {size}"
            yield _changed(f"group:{size}", f"{words} in place of {case.G}", rules, "scale_group", group, "zero_group")


def _next_expert(sim: Any, base: Any, w: Any, e: int | None, dtype: torch.dtype, which: str) -> Any:
    return base(w, e if e is None else (e + 1) % w.E, dtype, which)


def _slots(case: Case, rules: Contract) -> Iterator[Candidate]:
    k = case.k
    if k < 2:
        return

    def swapped(sim: Any, base: Any, out: T, stage: str) -> T:
        out = base(out, stage)
        return out if len(out) != case.T * k else out.reshape(-1, k, out.shape[1]).flip(1).flatten(0, 1)

    def by_slot(sim: Any, base: Any, out: T, stage: str) -> T:
        out = base(out, stage)
        return out if len(out) != case.T * k else out.reshape(-1, k, out.shape[1]).transpose(0, 1).flatten(0, 1)

    def spans(sim: Any, base: Any, experts: T) -> Any:
        sim.slots_by_expert = [block.rows for block in base(experts)]
        return base(experts)

    def by_expert(sim: Any, base: Any, out: T, stage: str) -> T:
        out, order = base(out, stage), torch.cat(sim.slots_by_expert) if getattr(sim, "slots_by_expert", None) else None
        if order is None or len(out) < len(order) or stage == "out":
            return out
        moved = torch.zeros_like(out)
        moved[: len(order)] = out[order]
        return moved

    def sorted_rows() -> Simulation:
        return Simulation(rules).replace_step("spans", spans).replace_step("stored", by_expert)

    yield _changed("slots:swapped", "rows of a token's slots in reverse order", rules, "stored", swapped)
    yield _changed("slots:major", "rows ordered slot by slot in place of token by token", rules, "stored", by_slot)
    if OPS[case.op].layer:
        yield Candidate("slots:expert", "rows ordered by expert in place of by slot", sorted_rows)


def _contracts(case: Case, rules: Contract) -> Iterator[Candidate]:
    if case.op not in (*GEMMS, *WEIGHED, "silu_and_mul", "int8_lm_head"):
        return
    seen = [rules]
    for name, preset in PRESETS.items():
        preset = preset if rules.ranks is None else replace(preset, ranks=rules.ranks)
        if all(preset.differences(other) for other in seen):
            seen.append(preset)
            order = "chains" if preset.adder.chain else "eights" if preset.adder.in_dtype else "matmul"
            yield Candidate(
                f"contract:{name}",
                f"contract '{name}' kept in place of '{rules.name}'",
                partial(Simulation, preset, order),
            )
