"""The cases every hunt begins with: each recipe, routing, layout and dtype once, and the borders kernels forget."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, cycle, islice
from typing import Any

from ..cases.case import Case
from ..cases.kernel_like import KernelLike, takes_extra, words_read, words_required
from ..cases.optable import IDS, OPS, PLACEMENTS, SCALES, VOCABULARY, W13_FORMS, WIDTHS, Op, zero_forms

# The first that a kernel takes is used: sizes that fill no tile first, then ones that more kernels ask for. The fourth
# and fifth leave K and I one group, for kernels whose tiles are large; the last two are for decode kernels, which take
# a few tokens and blocks of a few slots only.
SIZES: tuple[dict[str, int], ...] = (
    {"T": 9, "E": 5, "k": 2, "N": 40, "K": 96, "H": 96, "I": 160, "G": 32, "B": 16, "V": 40},
    {"T": 9, "E": 8, "k": 2, "N": 64, "K": 128, "H": 128, "I": 64, "G": 32, "B": 16, "V": 64},
    {"T": 9, "E": 8, "k": 2, "N": 128, "K": 256, "H": 256, "I": 128, "G": 32, "B": 16, "V": 128},
    {"T": 9, "E": 8, "k": 2, "N": 128, "K": 256, "H": 256, "I": 128, "G": 64, "B": 32, "V": 128},
    {"T": 9, "E": 8, "k": 2, "N": 256, "K": 256, "H": 256, "I": 256, "G": 128, "B": 64, "V": 256},
    {"T": 3, "E": 5, "k": 2, "N": 40, "K": 96, "H": 96, "I": 160, "G": 32, "B": 2, "V": 40},
    {"T": 5, "E": 6, "k": 2, "N": 128, "K": 256, "H": 256, "I": 128, "G": 64, "B": 4, "V": 128},
)
# For kernels that take one expert a token only, or one scale a row.
NARROW = (*({**sizes, "k": 1} for sizes in SIZES), *({**sizes, "G": -1} for sizes in SIZES))


LATER = ("exllama_k", "sequential_n", "twos_complement", "int8")  # layouts that came later


def must_run(kernel: KernelLike) -> list[Case]:
    """Return the fixed cases of a kernel, the plainest first; the same list on every machine.

    Args:
        kernel: what it declares decides layouts, zero points, dtypes and sizes; a case it still refuses is listed too,
            so that the refusal is counted.
    """
    fields = OPS[kernel.op]
    layouts = weight_forms(kernel)
    dtypes = [d for d in fields.dtypes if d in kernel.dtypes] if fields.dtypes != ("-",) else ["-"]
    if not layouts or not dtypes:
        return []
    no_map = frozenset() if takes_extra(kernel) else frozenset(PLACEMENTS)  # what it does not take is not asked
    forms = cycle(layouts)
    kinds = cycle(dtypes)
    chosen = []
    read = words_read(kernel)
    always = words_required(kernel)
    worded = ({**_plain(fields), **({"G": 64} if word == "short" else {}), "flags": (word,)}
              for word in read if word not in (*W13_FORMS, *WIDTHS))  # fmt: skip
    for seed, variant in enumerate(chain(islice(_variants(kernel.op), 64), worded)):
        if variant.get("dtype", dtypes[0]) not in dtypes or (
            no_map and not no_map.isdisjoint(variant.get("flags", ()))
        ):
            continue
        layout, zero = next(forms)
        if always:
            variant = {**variant, "flags": (*variant.get("flags", ()), *always)}
        chosen.append(_fitting(kernel, {"dtype": next(kinds), "layout": layout, "zero": zero, "seed": seed, **variant}))
    # With more weight forms than variants the rest still get their turn.
    for seed, (layout, zero) in enumerate(layouts[len(chosen) :], len(chosen)):
        wanted = {"dtype": next(kinds), "layout": layout, "zero": zero, "seed": seed, "flags": always}
        chosen.append(_fitting(kernel, wanted))
    early = [case for case in chosen[1:] if not case.flags.isdisjoint({*read} - {*always})]
    return list(dict.fromkeys([*chosen[:1], *early, *chosen[1:]]))  # what a kernel declares to read is asked first


def spread(cases: list[Case], count: int) -> list[Case]:
    """Return `count` of the cases, evenly spaced, the first among them; all of them if there are no more."""
    return [cases[i * len(cases) // count] for i in range(count)] if count < len(cases) else cases


def weight_forms(kernel: KernelLike) -> list[tuple[str, str]]:
    """List the (layout, zero point) pairs that a kernel reads; [("", "")] for an op without int4 weights."""
    if not OPS[kernel.op].weight:
        return [("", "")]
    known = zero_forms(words_read(kernel))
    layouts = [kernel.layout] if kernel.layout else list(known)
    forms = [(layout, zero) for zero in kernel.zeros for layout in layouts if zero in known[layout]]
    return sorted(forms, key=lambda form: form[0] in LATER)  # the first cases stay as they were


def _variants(op: str) -> Iterator[dict[str, Any]]:
    """Yield what differs from the plainest case: recipes paired with routings, then one border at a time."""
    fields = OPS[op]
    plain = _plain(fields)
    yield plain
    others = [r for r in fields.routings if r != plain["routing"]] or [plain["routing"]]
    count = max(len(fields.data) - 1, len(others) if len(others) > 1 else 0)
    data = list(fields.data[1:]) or [fields.data[0]]
    for i in range(count):
        yield {"data": data[i % len(data)], "routing": others[i % len(others)]}
    later = tuple(word for word in (*PLACEMENTS[1:], *IDS) if word in fields.routing_flags)
    later += tuple(word for word in PLACEMENTS if word in fields.routing_flags and fields.extra)
    later += tuple(word for word in (*SCALES, *VOCABULARY) if word in fields.data_flags)
    for flag in fields.routing_flags + fields.data_flags:
        if flag not in later:
            yield {**plain, "flags": (flag,)}
    if "T" in fields.dims:
        yield {**plain, "T": 0}
        yield {**plain, "T": 1}
    if "G" in fields.dims:
        yield {**plain, "G": -1}
    if "E" in fields.optional:
        yield {**plain, "E": None}
    if fields.weight:
        yield {**plain, "pad": 32}
    yield from _other_sizes(fields, plain)
    yield from _exhaustive(fields)
    yield from ({**plain, **wanted} for wanted in fields.also_run)
    if "K" in fields.dims and "G" not in fields.dims:
        yield {**plain, "K": 1}
    yield from ({**plain, "flags": (flag,)} for flag in dict.fromkeys(later))  # last: the seeds of the others stay
    if {"T", "k"} <= set(fields.dims) and "onehot" in fields.routings:  # one expert has all slots of the case before
        yield {**plain, "T": 18, "k": 1, "routing": "onehot"}
    if "repeat" in fields.routings and "T" in fields.dims:  # experts with more slots than there are tokens
        yield {**plain, "E": 2, "k": 5, "routing": "repeat"}
    if "E" in fields.dims and not fields.weight and "T" in fields.dims:  # no whole number of warps
        yield {**plain, "E": 60, "k": 4}
    if "epany" in later:  # every third of many experts, and slots of nobody among them
        yield {**plain, "E": 48, "flags": ("eprobin",)}
        yield {**plain, "routing": "ignored", "flags": ("epany", *(word for word in IDS if word in later))}


def _plain(fields: Op) -> dict[str, Any]:
    """Return the recipe and the routing of the plainest case."""
    return {"data": fields.data[0], "routing": "uniform" if "uniform" in fields.routings else fields.routings[0]}


def _other_sizes(fields: Op, plain: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the plainest case in sizes where kernels take another path."""
    if "k" in fields.dims:
        yield {**plain, "k": 1, "flags": ("renorm",) if "renorm" in fields.routing_flags else ()}
        yield {**plain, "k": 5}  # vLLM sums 2, 3 and 4 slots in another kernel than 5
    if {"T", "G"} <= set(fields.dims):
        yield {**plain, "T": 1, "G": 64}  # decode kernels have their own group arithmetic
    if "E" in fields.dims and "T" in fields.dims:  # one expert with more rows than any tile
        yield {**plain, "T": 130, "routing": "onehot" if "onehot" in fields.routings else plain["routing"]}
    if "E" in fields.dims and not fields.weight and "T" in fields.dims:  # the routers of models in use
        for E, k in ((128, 8), (256, 8), (512, 10)):
            yield {**plain, "E": E, "k": k}


def _exhaustive(fields: Op) -> Iterator[dict[str, Any]]:
    """Yield exact cases that leave nothing out: every weight of every expert read, every column summed, every gate."""
    K = "H" if "H" in fields.dims else "K"
    every = {"E": 3, "k": 3, "routing": "balanced"} if "E" in fields.dims else {}  # each token goes to each expert
    if "onehot" in fields.data:
        yield {**every, "data": "onehot", "T": K}  # as many tokens as columns
    if "sweep" in fields.data:  # a whole layer is exact for sparse x only
        yield {**every, "data": "sweep", "T": K}
        yield {**every, "data": "onehot2", "T": "I"}
    elif "onehot" in fields.data:
        yield {**every, "data": "integers", "T": 16, "seed": 100}  # dense: even seeds
        yield {**every, "data": "integers", "T": K, "seed": 101}  # sparse
    if "allgates" in fields.data:
        yield {"data": "allgates", "T": 255, "I": 256, "dtype": "bf16"}
        yield {"data": "allgates", "T": 248, "I": 256, "dtype": "fp16"}


def _fitting(kernel: KernelLike, wanted: dict[str, Any]) -> Case:
    """Return a wanted case in the first sizes that a kernel takes; in the plainest if it takes none."""
    plainest = None
    for usual in (*SIZES, *NARROW):
        sizes = {**usual, **OPS[kernel.op].plain_sizes}
        dims = {letter: wanted.get(letter, sizes[letter]) for letter in OPS[kernel.op].dims}
        if isinstance(dims.get("T"), str):  # as many as another dimension's size
            dims["T"] = dims[dims["T"]]
        rest = {name: value for name, value in wanted.items() if name not in sizes}
        short = "short" in wanted.get("flags", ())
        if wanted.get("G", -1) > 0 and not short and any(n and n % dims["G"] for d, n in dims.items() if d in "KHI"):
            continue  # the wanted groups do not divide these sizes
        case = Case.of(kernel.op, **{d: n for d, n in dims.items() if n is not None}, **rest)
        if kernel.why_not(case) is None:
            return case
        plainest = plainest or case
    assert plainest is not None
    return plainest
