"""Hypothesis strategies: they draw the description of a case, never data, and shrink to the smallest sizes and names.

Every drawn case is legal by construction. Where a kernel's `supports` refuses one, the nearest case that it takes is
looked for (sizes rounded up, modifiers dropped), so that kernels with narrow demands still get examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, Verbosity, given, reject, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st

from moeracle.ref.errors import require, unknown
from moeracle.ref.weights.layouts import PACKINGS_OF

from ..cases.case import Case, zeros_per_word
from ..cases.optable import (
    NONE,
    OPS,
    PLACEMENTS,
    SCALE_DTYPES,
    VOCABULARY,
    W13_FORMS,
    WIDTHS,
    ZERO_LAYOUT,
    Op,
    code_bits,
    words_of_bits,
    zero_forms,
)

Supports = Callable[[Case], "bool | str | None"]
Draw = Callable[[Any], Any]
STANDARD_GROUPS = (32, 64, 128)
ROUND_UP = (16, 32, 64, 128, 256)  # multiples that kernels commonly ask for
FEW_TOKENS, FEW_SLOTS = 5, (1, 2, 4)  # what decode kernels commonly take


@dataclass(frozen=True)
class Sizes:
    """The largest sizes of a profile, and special intermediate sizes, which real models have."""

    T: int
    K: int
    N: int
    I: int
    E: int
    k: int
    V: int
    special: tuple[int, ...] = ()


PROFILES = {
    "smoke": Sizes(T=8, K=128, N=64, I=64, E=4, k=2, V=64),
    "ci": Sizes(T=64, K=512, N=256, I=256, E=8, k=4, V=256),
    "nightly": Sizes(T=256, K=2048, N=1536, I=1536, E=64, k=10, V=4096, special=(704, 768, 1408)),
}


def each_drawn(
    strategy: st.SearchStrategy[Any], examples: int, seed: int, visit: Callable[[Any], object], *, shrink: bool = False
) -> None:
    """Call a function with each value that Hypothesis draws: a seed's are the same whatever else is imported.

    Args:
        strategy: what to draw from.
        examples: how many.
        seed: of the draws.
        visit: called with each.
        shrink: where it raises, go on with smaller values as long as it does.
    Raises:
        Exception: what `visit` raised of the last of them.
        hypothesis.errors.HypothesisException: Unsatisfiable if nothing can be drawn, Flaky if it raised but once.
    """

    @with_seed(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
    )
    @given(strategy)
    def visited(value: Any) -> None:
        visit(value)

    with _no_constants_of_modules():
        visited()


@contextmanager
def _no_constants_of_modules() -> Iterator[None]:
    """Keep Hypothesis from drawing the numbers that stand in the source of whatever local modules are loaded."""
    from hypothesis.internal.conjecture import providers

    if not hasattr(providers, "_get_local_constants"):  # an older Hypothesis, which draws none
        yield
        return
    providers.CONSTANTS_CACHE.cache.clear()
    try:
        with mock.patch.object(providers, "_get_local_constants", providers.Constants):
            yield
    finally:
        providers.CONSTANTS_CACHE.cache.clear()


def cases(
    op: str,
    *,
    layouts: Iterable[str] = tuple(ZERO_LAYOUT),
    zeros: Iterable[str] = ("sym",),
    dtypes: Iterable[str] = ("bf16", "fp16"),
    supports: Supports | None = None,
    profile: str = "ci",
    without: Iterable[str] = (),
    weights: Iterable[str] = (),
) -> st.SearchStrategy[Case]:
    """Return a strategy of legal cases for an op.

    Args:
        op: one of OPS.
        layouts, zeros: weight layouts and zero-point forms; combinations that do not exist are left out.
        dtypes: activation dtypes.
        supports: returns True for a case that the kernel takes; False or a reason otherwise.
        profile: "smoke", "ci" or "nightly": how large.
        without: modifiers that no case has.
        weights: words of the layout field that a case may have; each case has w8, and one of w13's row orders.
    Raises:
        ValueError: an unknown op, layout or profile, or nothing left to draw from.
    """
    if op not in OPS:
        raise unknown("op", op, OPS)
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    fields = OPS[op]
    weights = tuple(weights)
    forms = _weight_forms(fields, list(layouts), list(zeros), zero_forms(weights))
    asked = list(dtypes)
    kinds = [d for d in fields.dtypes if d in asked or fields.dtypes == NONE]
    require(bool(kinds), f"dtypes: got {', '.join(asked) or 'none'}, {op} must have one of {', '.join(fields.dtypes)}")
    left_out = (*without, *VOCABULARY)  # padding is a fixed case, for few kernels notice it
    words = tuple(word for word in fields.routing_flags + fields.data_flags if word not in left_out)
    return _cases(op, fields, forms, kinds, supports, PROFILES[profile], words, weights)


def _weight_forms(
    fields: Op, layouts: list[str], zeros: list[str], known: dict[str, dict[str, str | None]]
) -> list[tuple[str, str]]:
    if not fields.weight:
        return [("-", "-")]
    for layout in layouts:
        if layout not in known:
            raise unknown("layout", layout, known)
    forms = [(layout, zero) for zero in zeros for layout in layouts if zero in known[layout]]
    offered = {zero: None for layout in layouts for zero in known[layout]}
    wrong = f"zeros: got {', '.join(zeros) or 'none'}, {', '.join(layouts)} must have one of {', '.join(offered)}"
    require(bool(forms), wrong)
    return forms


@st.composite
def _cases(
    draw: Draw,
    op: str,
    fields: Op,
    forms: Sequence[tuple[str, str]],
    dtypes: Sequence[str],
    supports: Supports | None,
    top: Sizes,
    words: tuple[str, ...],
    weights: tuple[str, ...],
) -> Case:
    layout, zero = draw(st.sampled_from(forms))
    routing = draw(st.sampled_from(_plainest_first(fields.routings)))
    dims = _columns(draw, op, layout, zero, top, code_bits(weights)) | _counts(draw, fields, routing, top)
    for letter in fields.dims:
        if legal := fields.sizes_of(letter, dims):
            dims[letter] = draw(st.sampled_from(legal))
    rarely = st.sampled_from((False, False, False, True))
    flags = [flag for flag in words if flag not in PLACEMENTS and draw(rarely)]
    flags += [word for word in weights if word in WIDTHS]
    flags += [word for word in weights if word not in (*WIDTHS, *SCALE_DTYPES, *W13_FORMS) and draw(rarely)]
    for one_of, always in ((SCALE_DTYPES, False), (W13_FORMS, True)):
        some = [word for word in weights if word in one_of]
        flags += [draw(st.sampled_from(some))] if some and (always or draw(rarely)) else []
    if "short" in flags:
        shortest = min(dims[letter] for letter in "KHI" if letter in dims)
        dims["G"] = draw(st.sampled_from([g for g in (*STANDARD_GROUPS, 1) if g <= shortest]))
    placed = [flag for flag in words if flag in PLACEMENTS]
    flags += [draw(st.sampled_from(placed))] if placed and draw(rarely) else []
    case = Case.of(
        op,
        dtype=draw(st.sampled_from(dtypes)),
        layout=layout,
        zero=zero,
        routing=routing,
        data=draw(st.sampled_from(fields.data)),
        seed=draw(st.one_of(st.integers(0, 31), st.integers(0, 2**31 - 1))),
        flags=flags,
        pad=32 if fields.weight and draw(rarely) else 0,
        **{letter: dims[letter] for letter in fields.dims if letter in dims},
    )
    if supports is None:
        return case
    return next((near for near in neighbours(case) if is_supported(supports, near)), None) or reject()


def _plainest_first(routings: tuple[str, ...]) -> list[str]:
    return sorted(routings, key=lambda name: name != "uniform")


def _counts(draw: Draw, fields: Op, routing: str, top: Sizes) -> dict[str, int]:
    """Tokens, experts, top_k, block size; and unconstrained columns of ops without a weight."""
    dims = {}
    if "T" in fields.dims:
        dims["T"] = draw(_sizes(top.T))  # T = 0 is a fixed case
    if "E" in fields.optional:
        experts = draw(st.integers(0, top.E))
        dims |= {"E": experts} if experts else {}
    elif "E" in fields.dims:
        dims["E"] = draw(st.integers(1, top.E))
    if "k" in fields.dims:
        dims["k"] = draw(st.integers(1, top.k if routing == "repeat" else min(top.k, dims["E"])))
    if "B" in fields.dims:
        sizes = (16, 32, 64) if fields.weight else (16, 1, 4, 8, 32, 64, 128)
        dims["B"] = draw(st.sampled_from(sizes))
    if "V" in fields.dims:
        dims["V"] = draw(_sizes(top.V))
    if "K" in fields.dims and "G" not in fields.dims:
        dims["K"] = draw(_sizes(top.K, 2))  # K = 1 is one, too
    if "I" in fields.dims and not fields.layer:
        dims["I"] = draw(st.one_of(st.integers(1, top.I), *([st.sampled_from(top.special)] if top.special else [])))
    return dims


def _columns(draw: Draw, op: str, layout: str, zero: str, top: Sizes, bits: int) -> dict[str, int]:
    """N, K and G (H, I and G) of an op with groups: whole words, whole zero-point words, whole groups."""
    if "G" not in OPS[op].dims:
        return {}
    stored = zero_forms(words_of_bits(bits))[layout][zero] if layout != "-" else None
    packing = PACKINGS_OF[bits].get(layout)
    along_n = packing is not None and packing.along == "N"
    unit_k = 1 if packing is None else 2 if along_n else max(2, len(packing.shifts))
    unit_n = math.lcm(8 if along_n else 1, zeros_per_word(stored, bits))
    kind = draw(st.sampled_from((-1, 0, *(g for g in STANDARD_GROUPS if g <= min(top.K, top.I)))))
    unit_k = math.lcm(unit_k, max(kind, 1))
    if OPS[op].layer:  # one weight is [2I, H], the other [H, I]
        unit_h, unit_i = math.lcm(unit_k, unit_n), math.lcm(unit_k, unit_n // math.gcd(unit_n, 2))
        named = [n for n in top.special if n % unit_i == 0]
        sizes = _multiples(unit_i, top.I)
        dims = {
            "H": draw(_multiples(unit_h, top.K)),
            "I": draw(st.one_of(sizes, st.sampled_from(named)) if named else sizes),
        }
        whole = math.gcd(dims["H"], dims["I"])
    else:
        dims = {"K": draw(_multiples(unit_k, top.K))}
        whole = dims["K"]
        if "N" in OPS[op].dims:
            dims["N"] = draw(_multiples(unit_n, top.N))
    dims["G"] = kind or draw(st.sampled_from([g for g in range(whole, 0, -1) if whole % g == 0]))
    return dims


def _sizes(top: int, least: int = 1) -> st.SearchStrategy[int]:
    """Sizes from the least to `top`: powers of two and their neighbours, and any other."""
    powers = {n for e in range(top.bit_length()) for n in ((1 << e) - 1, 1 << e, (1 << e) + 1) if least <= n <= top}
    return st.one_of(st.sampled_from(sorted(powers)), st.integers(least, top), st.integers(least, top))


def _multiples(unit: int, top: int) -> st.SearchStrategy[int]:
    """Multiples of `unit` up to `top`. Drawn as sizes, not as factors: a plainer group then keeps the size."""
    return st.integers(1, top // unit * unit).map(lambda n: -(-n // unit) * unit)


def is_supported(supports: Supports, case: Case) -> bool:
    """Say whether `supports` takes a case: anything true but a reason (a string)."""
    answer = supports(case)
    return bool(answer) and not isinstance(answer, str)


def neighbours(case: Case, *, few: bool = True) -> Iterator[Case]:
    """Yield a case, then ones near it that a narrower kernel may take: plainer, larger and rounder, then few tokens.

    Args:
        case: any.
        few: also with few tokens.
    """
    yield from _rounder(case)
    if few and "T" in case.sizes:  # decode kernels take a few tokens, in blocks of a few slots
        blocks = {"B": FEW_SLOTS[case.seed % len(FEW_SLOTS)]} if "B" in case.sizes else {}
        yield from _rounder(case.replace(T=case.T % (FEW_TOKENS + 1), **blocks))


def _rounder(case: Case) -> Iterator[Case]:
    yield case
    try:
        plain = case.replace(flags=case.flags & {*W13_FORMS, *WIDTHS}, pad=0)
    except ValueError:  # without its short group these do not divide K
        plain = case
    if plain != case:
        yield plain
    sizes = case.sizes
    for multiple in ROUND_UP:
        rounder = {letter: -(-sizes[letter] // multiple) * multiple for letter in "NKHIV" if letter in sizes}
        groups = dict.fromkeys((sizes["G"], *STANDARD_GROUPS, -1)) if "G" in sizes else [None]
        for G in groups:
            for start in (case, plain) if plain != case else (case,):
                try:
                    yield start.replace(**rounder, **({} if G is None else {"G": G}))
                except ValueError:
                    continue  # K is no multiple of G
