"""Every law of every op, put to legal simulations of every contract on every recipe: what is said is a false alarm.

A simulation adds in an order that is random, and that depends on all that a legal kernel's may depend on. What a case
has besides its recipe (routing, modifiers, layout, sizes) is drawn from the names of op, contract, recipe and seed, so
that a case is the same whoever asks it, and in whatever order.
"""

from __future__ import annotations

import itertools
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from moeracle.ref.activation import ACTIVATIONS
from moeracle.ref.bitmodels.accumulate import accumulate
from moeracle.ref.contracts.contract import CHOICES, YES_OR_NO, Contract, contract

from ..cases.case import Case
from ..cases.optable import OPS, PLACEMENTS, ROW_ORDERS, SCALE_DTYPES, W13_FORMS, WIDTHS
from ..cases.record import record_of
from ..common.processes import Unfinished, call_each, saved_at_times
from ..hunt.must_run import weight_forms
from ..hunt.shard import Shard
from ..hunt.strategies import neighbours
from ..simulate import ALL_ZEROS, LEGAL, SimulatedKernel, simulated_kernel, simulation_of
from ..simulate.orders import ORDERS, next_seed

__all__ = ["LawAnswers", "LawRun", "ask_laws", "contracts_of", "free_kernel", "law_cases", "read_law_run", "run_laws"]

Progress = Callable[[str, int, int], None]

BASE = "grouped,accumulator=fp32"
# Legal values of the fields that hold no choice; those that hold one are in CHOICES, and all of them are asked.
VALUES: dict[str, tuple[str, ...]] = {
    "depth": ("4096",),
    "zero_offset": ("128", "1024"),
    "stores": ("out", "h+out", "a+out", "y+out", "h+a+out"),
    "store_rounding": ("rtz", "rtz_bf16", "a:rtz", "out:rtz"),
    "parts": ("8/up32/dtype", "8/deal16/dtype", "k16/dtype/add=dtype", "k16/join=pairwise", "k32+/dtype/add=dtype"),
    "activation": tuple(ACTIVATIONS),
    "schedule": ("fma", "wgmma.k16.sm90"),
    "sum_schedule": ("fma", "mul_add"),
    **dict.fromkeys(YES_OR_NO, ("true", "false")),
    **{name: tuple(values) for name, values in CHOICES.items()},
}
OF_ALL = (*W13_FORMS, *WIDTHS)  # a kernel that declares one of these takes no case without it
NOT_SHOWN = ("depth", "scale_cast", "batch_invariant")  # fields that matter to a sum, and that no output shows
SIZES: dict[str, tuple[int, ...]] = {
    "T": (5, 2, 7, 1), "E": (4, 6, 8), "k": (2, 3, 1, 4), "N": (8, 16), "K": (64, 96), "H": (64, 96), "I": (32, 64),
    "G": (32, 16, -1), "B": (16, 4), "V": (40, 24),
}  # fmt: skip
SOME = 3  # groups of rows whose order is another


@dataclass
class LawAnswers:
    """What laws said of one legal kernel.

    Args:
        op, contract: whose.
        spoke: by law, on how many cases it said something.
        cases: asked.
        judged: elements that laws compared.
        alarms: "case: law: reason" of each refusal, every one a false alarm.
    """

    op: str
    contract: str
    spoke: Counter[str] = field(default_factory=Counter)
    cases: int = 0
    judged: int = 0
    alarms: list[str] = field(default_factory=list)


@dataclass
class LawRun:
    """What laws said of the legal kernels of one run.

    Args:
        seed, shard: as run_laws'.
        asked: one for each op and contract, in order.
        seconds: of this run and of those that it went on with.
        unfinished: "op, contract: why" of what was given up.
        left: how many were not asked.
    """

    seed: int
    shard: str
    asked: list[LawAnswers]
    seconds: float = 0.0
    unfinished: list[str] = field(default_factory=list)
    left: int = 0

    @property
    def alarms(self) -> list[str]:
        """All that was said, each a false alarm."""
        return [f"[{one.op}] {one.contract} {alarm}" for one in self.asked for alarm in one.alarms]

    @property
    def judged(self) -> int:
        """Elements that laws compared."""
        return sum(one.judged for one in self.asked)

    def rows(self) -> list[dict[str, Any]]:
        """Return what each law said of each op: over how many contracts and cases; those that never spoke, too."""
        found = []
        for op in dict.fromkeys(one.op for one in self.asked):
            of_op = [one for one in self.asked if one.op == op]
            for law in record_of(op).laws:
                spoke = [one.spoke[law.__name__] for one in of_op]
                counts = {"contracts": sum(n > 0 for n in spoke), "of_contracts": len(spoke), "cases": sum(spoke)}
                alarms = sum(f": {law.__name__}: " in alarm for one in of_op for alarm in one.alarms)
                found.append({"op": op, "law": law.__name__, **counts, "alarms": alarms})
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "seed": self.seed, "shard": self.shard, "seconds": round(self.seconds, 3), "left": self.left,
            "unfinished": self.unfinished, "cases": sum(one.cases for one in self.asked), "judged": self.judged,
            "checks": sum(one.spoke.total() for one in self.asked), "alarms": self.alarms, "laws": self.rows(),
            "asked": [{**vars(one), "spoke": dict(one.spoke)} for one in self.asked],
        }  # fmt: skip


def read_law_run(plain: dict[str, Any]) -> LawRun:
    """Return the LawRun of plain values that `as_dict` made; what was given up or left is not in it.

    Raises:
        KeyError, TypeError: they have another form.
    """
    asked = [LawAnswers(**{**one, "spoke": Counter(one["spoke"])}) for one in plain["asked"]]
    return LawRun(int(plain["seed"]), str(plain["shard"]), asked, float(plain["seconds"]))


def contracts_of(op: str, shard: Shard | None = None) -> list[str]:
    """Return the contracts under which an op's laws are asked: presets, LEGAL's, one field changed, then two fields.

    Where no contract has a say, the op's default alone.

    Args:
        op: one of OPS.
        shard: the part of those with two fields; the others are in every part.
    """
    record = record_of(op)
    if not record.inferred:
        return [OPS[op].default_contract]
    one = _changes(op)
    two = [f"{a},{b}" for a, b in itertools.combinations(one, 2) if a.partition("=")[0] != b.partition("=")[0]]
    pairs = [pair for pair in map(_on_base, two) if shard is None or shard.has(f"{op} {pair}")]
    texts = [*record.presets, *(text for text, _ in LEGAL), *map(_on_base, one), *pairs]
    return [text for text in dict.fromkeys(texts) if _legal(text) is not None]


def _changes(op: str) -> list[str]:
    """Return each "field=value" that makes another contract of the base, of fields that matter to an op."""
    record, plain = record_of(op), contract(BASE)
    hidden = NOT_SHOWN if record.sums_products else ("batch_invariant",)
    shown = [name for name in (*record.inferred, *hidden, *record.sums) if name in VALUES]
    return [f"{name}={value}" for name in shown for value in VALUES[name] if not _same(plain, f"{name}={value}")]


def _on_base(fields: str) -> str:
    return f"grouped,{fields}" if "accumulator=" in fields else f"{BASE},{fields}"


def _same(plain: Contract, field: str) -> bool:
    made = _legal(_on_base(field))
    return made is not None and not made.differences(plain)


def _legal(text: str) -> Contract | None:
    try:
        return contract(text)
    except ValueError:
        return None


def free_kernel(op: str, text: str, seed: int) -> SimulatedKernel:
    """Return a legal kernel that adds in a random order: another one for each shape, and for rows at other places.

    Args:
        op: one of OPS.
        text: its contract.
        seed: of the order.
    """
    rules = contract(text)
    order = "ftz" if rules.ftz else rules.accumulator
    simulation = simulation_of(op, rules, block_m=128)
    step = _as_scheduled if rules.schedule is not None else partial(_in_any_order, order=order, seed=seed)
    simulation.replace_step("accumulate", step)
    for name in ("topk_sum", "join"):
        if hasattr(simulation, name):
            simulation.replace_step(name, partial(_terms_in_any_order, seed=seed))
    draw = random.Random(f"{seed} {op} {text}")
    known = [word for word in OPS[op].weight_flags if word not in ROW_ORDERS]
    words = [word for word in known if word not in OF_ALL or draw.random() < 0.25]
    kernel = replace(
        simulated_kernel(op, rules), fn=getattr(simulation, op), name=f"{text}/any order", weights=tuple(words)
    )
    fewer = replace(kernel, zeros=tuple(draw.sample(ALL_ZEROS, 2)))  # all of them make law_layouts_agree long
    return fewer if record_of(op).inferred and weight_forms(fewer) else kernel


def _as_scheduled(sim: Any, base: Any, a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return accumulate(a.to(dtype), w.to(dtype), sim.contract.schedule)


def _terms_in_any_order(sim: Any, base: Any, terms: Any, dtype: torch.dtype, *more: Any, seed: int) -> torch.Tensor:
    """Add the slots [T, k, H] of each token, or the parts of K, in a random order where the contract leaves it open."""
    rules, of_slots = sim.contract, isinstance(terms, torch.Tensor)
    count = terms.shape[1] if of_slots else len(terms)
    declared = rules.sum_in_dtype(count) and rules.slot_order != "any" if of_slots else rules.parts.join != "any"
    if declared or (of_slots and rules.sum_schedule is not None):
        return base(terms, dtype, *more)
    shape = terms.shape[2 if rules.batch_invariant else 0 :] if of_slots else terms[0].shape[rules.batch_invariant :]
    order = _draw(rules, seed, tuple(shape)).sample(range(count), count)
    return base(terms[:, order] if of_slots else [terms[i] for i in order], dtype, *more)


def _draw(rules: Contract, *what: Any) -> random.Random:
    """Return the generator of an order: the same for the same things, another one at each call where atomics add."""
    return random.Random(str((what, 0 if rules.deterministic else next_seed())))


def _in_any_order(
    sim: Any, base: Any, a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype, *, order: str, seed: int
) -> torch.Tensor:
    """Add up products in random orders: one for every third row, of this shape; of this call, where atomics add."""
    rules, (rows, K), N = sim.contract, a.shape, w.shape[0]
    out = a.new_zeros(rows, N)
    for turn in range(1 if rules.batch_invariant else min(SOME, rows)):
        at = slice(None) if rules.batch_invariant else slice(turn, None, SOME)
        shape = (N, K) if rules.batch_invariant else (rows, N, K)
        draw = _draw(rules, seed, turn, shape)
        columns = torch.tensor(draw.sample(range(K), K), dtype=torch.int64)
        mine, theirs = a[at][:, columns], w[:, columns]
        modelled = ORDERS.get(order)
        kept = dtype if order == "dtype" else torch.float32
        out[at] = modelled(mine, theirs, dtype) if modelled else _any_tree(mine, theirs, draw, kept)
    return out


def _any_tree(a: torch.Tensor, w: torch.Tensor, draw: random.Random, kept: torch.dtype) -> torch.Tensor:
    """Add products a random number of pairs at a time, the pairs at random places, each sum rounded to a dtype."""
    sums = (a.T[:, :, None] * w.T[:, None, :]).to(kept).float()
    while len(sums) > 1:
        pairs = draw.randint(1, len(sums) // 2)
        start = draw.randint(0, len(sums) - 2 * pairs)
        left, right = sums[start : start + pairs], sums[start + pairs : start + 2 * pairs]
        sums = torch.cat([sums[:start], sums[start + 2 * pairs :], (left + right).to(kept).float()])
    return sums[0]


def law_cases(kernel: SimulatedKernel, seed: int) -> Iterator[Case]:
    """Yield a case for each recipe and dtype of a kernel's op; whatever else it has is drawn by name.

    Args:
        kernel: what it takes decides.
        seed: of the draw.
    """
    op = OPS[kernel.op]
    for data in op.data:
        for dtype in op.dtypes:
            name = f"{seed} {kernel.op} {kernel.contract.name} {data} {dtype}"
            draw = random.Random(name)
            wanted = _drawn(kernel, draw, data, dtype, zlib.crc32(name.encode()))
            case = next((near for near in neighbours(wanted, few=False) if kernel.why_not(near) is None), None)
            if case is not None:
                yield case


def _drawn(kernel: SimulatedKernel, draw: random.Random, data: str, dtype: str, seed: int) -> Case:
    op = OPS[kernel.op]
    dims: dict[str, Any] = {}
    for letter in op.dims:
        dims[letter] = draw.choice(SIZES.get(letter) or op.sizes_of(letter, dims))
    routing = draw.choice(op.routings)
    if "k" in dims and "E" in dims and routing != "repeat":
        dims["k"] = min(dims["k"], dims["E"])
    if "E" in op.optional and draw.random() < 0.3:
        del dims["E"]
    flags = [flag for flag in (*op.routing_flags, *op.data_flags) if flag not in PLACEMENTS and draw.random() < 0.3]
    words = [word for word in kernel.weights if word not in (*SCALE_DTYPES, *OF_ALL) and draw.random() < 0.15]
    words += [word for word in kernel.weights if word in OF_ALL]
    placed = [flag for flag in op.routing_flags if flag in PLACEMENTS]
    flags += [draw.choice(placed)] if placed and draw.random() < 0.2 else []
    flags += [draw.choice(SCALE_DTYPES)] if op.weight and draw.random() < 0.2 else []
    if "short" in words and "G" in dims:
        dims["G"] = 64 if draw.random() < 0.5 else 16
    layout, zero = draw.choice(weight_forms(kernel)) if op.weight else ("-", "-")
    flags += words
    always = [word for word in words if word in OF_ALL]

    def made(kept: list[str], **sizes: int) -> Case:
        return Case.of(
            kernel.op, dtype=dtype, data=data, routing=routing, layout=layout, zero=zero, seed=seed, flags=kept,
            **{**dims, **sizes},
        )  # fmt: skip

    for kept in (flags, [f for f in flags if f not in words or f in always], always):
        with suppress(ValueError):
            return made(kept)
    return made(always, G=32)


def ask_laws(op: str, text: str, seed: int = 0, most: int | None = None) -> LawAnswers:
    """Put each law of an op to a legal kernel of one contract, on a case of each recipe and dtype.

    Args:
        op: one of OPS.
        text: a contract, one of contracts_of(op).
        seed: of the cases and of the orders of summation.
        most: so many of the cases, drawn by the contract's name; None: all.
    """
    kernel, asked = free_kernel(op, text, seed), LawAnswers(op, text)
    cases = list(law_cases(kernel, seed))
    for case in cases if most is None else random.Random(text).sample(cases, min(most, len(cases))):
        asked.cases += 1
        for law in record_of(op).laws:
            verdict = law(kernel, case)
            if verdict is None:
                continue
            asked.judged += verdict.judged
            asked.spoke[law.__name__] += 1
            if not verdict.ok:
                asked.alarms.append(f"{case}: {verdict.stage}: {' '.join(verdict.summary)}")
    return asked


def run_laws(
    ops: Sequence[str] | None = None,
    *,
    seed: int = 0,
    shard: Shard | None = None,
    progress: Progress | None = None,
    jobs: int = 1,
    setup: Callable[[], None] | None = None,
    limit: float | None = None,
    earlier: LawRun | None = None,
    save: Callable[[LawRun], None] | None = None,
) -> LawRun:
    """Put every law of these ops to legal kernels of every contract, on every recipe and dtype.

    Args:
        ops: names of OPS; None: all.
        seed: of the cases and of the orders of summation.
        shard: the part of the contracts of two fields; every part has all others. None: all of them.
        progress: called with what is being asked, how many contracts are done and how many there are.
        jobs: processes that share the work; what is asked, and said, is the same.
        setup: called first in each process.
        limit: seconds that one contract of one op may take; it is then given up, in a process of its own.
        earlier: of a run with the same seed and shard: what is in it is not asked again.
        save: called with what there is every minute, and when an exception ends the run.
    Returns:
        LawRun.
    """
    began, shard = time.monotonic(), shard or Shard()
    places = [(i, op, text) for op in ops or OPS for i, text in enumerate(contracts_of(op, shard))]
    work = [(op, text) for _, op, text in sorted(places, key=lambda place: place[0])]  # cut short, all ops have a share
    found = {(one.op, one.contract): one for one in (earlier.asked if earlier else [])}
    before, given_up = earlier.seconds if earlier else 0.0, dict[tuple[str, str], str]()
    calls = [(*piece, seed) for piece in work if piece not in found]

    def so_far() -> LawRun:
        unfinished = [f"{op}, {text}: {why}" for (op, text), why in given_up.items()]
        asked, seconds = [found[piece] for piece in work if piece in found], before + time.monotonic() - began
        return LawRun(
            seed, f"{shard.place}/{shard.of}", asked, seconds, unfinished, len(work) - len(asked) - len(given_up)
        )

    with saved_at_times(save, so_far) as done:
        for (op, text, _), one in call_each(ask_laws, calls, jobs, setup, limit=limit):
            if isinstance(one, Unfinished):
                given_up[op, text] = one.why
            else:
                found[op, text] = one
            if progress:
                progress(f"{op} {text}", len(found) + len(given_up), len(work))
            done()
    return so_far()
