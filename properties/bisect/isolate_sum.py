"""Probes of the first GEMM's sum: unwritten memory, rows that mix, columns, narrow accumulators, races."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .isolate import Bench, Layer, Probe, hidden
from .suspects import ACTIVATION, GEMM1, GEMM2, REDUCTION, SCALE

VARIANTS = 4
MOST_COLUMNS = 24


def columns_to_try(bench: Bench, most: int = MOST_COLUMNS) -> list[int]:
    """Return columns of K: the first word, both sides of each quarter, the last word, and some in between."""
    K = bench.H
    near = [c for q in (0, K // 4, K // 3, K // 2, 3 * K // 4, K) for c in (q - 1, q, q + 1)]
    wanted = [*range(8), *near, *bench.draw(0, K - 1, (most,)).tolist()]
    return [c for c in dict.fromkeys(wanted) if 0 <= c < K][: most + 8]


def silence(bench: Bench) -> Iterator[Probe]:
    """Zero activations: whatever is not 0 was in memory before."""
    silent = hidden(bench, 128.0, 1 / 128)
    silent.x[:] = 0
    asks = "x = 0 gives 0, whatever fresh memory holds"
    answers = {poison: bench.answer(silent, poison) for poison in (float("nan"), 0.0, 1.0, 2.0)}
    failed = next((p for p, got in answers.items() if bool((got != 0).any())), None)
    if failed is None:
        yield Probe("silence", REDUCTION, asks)
        return
    detail = bench.differ(answers[failed], torch.zeros(()), f"with {failed:g} in fresh memory")
    if bench.observe != "out":
        yield Probe("silence", GEMM1, asks, False, detail)
        return
    yield Probe("silence", _who_left_it(bench, silent, answers), asks, False, detail)


def _who_left_it(bench: Bench, silent: Layer, answers: dict[float, torch.Tensor]) -> str:
    """Say which stage leaves memory as it was: how the answer moves with what the memory holds tells."""
    if bool((answers[0.0] != 0).any()):
        return REDUCTION  # it does not come from memory: the output itself is wrong
    alive, late = hidden(bench, 128.0, 1 / 128), hidden(bench, 128.0, 1 / 128)
    late.x[:], late.w2.u[:] = 0, bench.Z  # GEMM2 adds up zeros: what is left comes after it
    after = {p: bench.answer(late, p) for p in (1.0, 2.0)}
    at_rest = [answers[p] - after[p] for p in (1.0, 2.0)]  # what comes from memory before GEMM2
    moving = [bench.answer(alive, p) - after[p] for p in (1.0, 2.0)]
    slopes = at_rest[1] - at_rest[0], moving[1] - moving[0]
    if bool(slopes[0].any()) or bool(slopes[1].any()):
        margin = 0.1 * slopes[0].abs()
        additive = ((slopes[1] - slopes[0]).abs() <= margin) & ((at_rest[1] - 2 * at_rest[0]).abs() <= margin)
        return ACTIVATION if bool(additive.all()) else GEMM1  # an unwritten gate or up is multiplied by the other
    halved = late.but(router=late.router / 2)
    return REDUCTION if bool((bench.answer(halved, 1.0) == after[1.0]).all()) else GEMM2


def leaks(bench: Bench) -> Iterator[Probe]:
    """A row of zeros stays 0 beside rows that are not, all of one expert."""
    for rows in (2, 4, 130):
        asks = f"among {rows} rows of one expert, those with x = 0 give 0"
        probe = Probe(f"rows apart, {rows}", GEMM1, asks)
        if bench.allowed(T=rows):
            for alive in _alive_patterns(bench, rows):
                x = torch.zeros(rows, bench.H)
                x[alive] = 1
                got = bench.answer(bench.plain(x=x), 0.0)[_rows_of(bench, ~alive)]
                if bool((got != 0).any()):
                    probe.passed, probe.detail = False, bench.differ(got, torch.zeros(()), "of silent rows")
                    break
            yield probe


def _rows_of(bench: Bench, tokens: torch.Tensor) -> torch.Tensor:
    return tokens if bench.observe == "out" else tokens.repeat_interleave(bench.k1)


def _alive_patterns(bench: Bench, rows: int) -> Iterator[torch.Tensor]:
    every = torch.arange(rows)
    yield every % 2 == 1
    yield every % 2 == 0
    if rows > 16:
        yield every // 16 % 2 == 1
        yield every // 16 % 2 == 0


def gemm1_columns(bench: Bench) -> Iterator[Probe]:
    """All weights alike: each column of x counts the same, and sums do not depend on who brings the terms."""
    K = bench.H
    every = range(K) if K <= 256 else columns_to_try(bench, 96)
    asks = "all weights alike, each column of K counts the same"
    probe = Probe("columns of K, GEMM1", GEMM1, asks)
    answers = {c: bench.answer(bench.plain(x=bench.onehot(c), scale=1.0)) for c in every}
    values = torch.stack(list(answers.values()))
    usual = values.mode(0).values
    wrong = [c for c, got in answers.items() if bool((got != usual).any())]
    if wrong:
        c = wrong[0]
        shown = bench.differ(answers[c], usual, f"from column {c} of K")
        probe.passed, probe.detail = False, f"{len(wrong)} of {len(answers)} columns differ; {shown}"
        if _other_scales_matter(bench, c):
            probe.suspect = SCALE
    yield probe
    yield from sums_of_k(bench)


def _other_scales_matter(bench: Bench, c: int) -> bool:
    """Say whether the answer from one column moves with other groups' scales: then it is not the sum that loses it."""
    known, mixed = (bench.plain(x=bench.onehot(c), scale=1.0) for _ in range(2))
    own = c // bench.groups(mixed.w13)
    mixed.w13.s *= 2.0 ** bench.draw(1, 5, (1, *mixed.w13.s.shape[1:])).float()
    mixed.w13.s[:, :, own] = 1.0
    return bool(bench.differ(bench.answer(mixed), bench.answer(known)))


def sums_of_k(bench: Bench) -> Iterator[Probe]:
    """One large and many small terms, where a narrow accumulator loses the small ones."""
    rules, K = bench.rules, bench.H
    if rules.adder.in_dtype:
        return
    bits = {torch.bfloat16: 8, torch.float16: 11}.get(bench.D)
    if bits is None:
        return
    stored = "h" in rules.stores
    big = 2**12
    unit = 2 ** (12 - bits + 1)  # one ulp of D at `big`
    small = unit // 2 + 1 if stored else unit
    asks = f"{big} + {small} * 1 over K gives what {'its rounded sum' if stored else 'the sum'} gives in one column"
    rounded = big + unit if rules.rounding("h", bench.D) == "rne" or not stored else big
    probe = Probe("long sums, GEMM1", GEMM1, asks)
    for half in (range(K // 2), range(K // 2, K)):
        spread = list(half)
        for variant in range(VARIANTS):
            if len(spread) <= small:
                continue
            order = torch.randperm(len(spread), generator=bench.random).tolist()
            chosen = [spread[i] for i in order]
            if variant == 0:
                chosen = [spread[0], *spread[1:]]  # the large one first, the small ones right behind it
            x = torch.zeros(1, K)
            x[0, chosen[0]] = big
            x[0, chosen[1 : small + 1]] = 1
            got = bench.answer(bench.plain(x=x, scale=2.0**-12))
            want = bench.answer(bench.plain(x=bench.onehot(chosen[0], rounded), scale=2.0**-12))
            detail = bench.differ(got, want)
            if detail:
                probe.passed, probe.detail = False, detail
                break
    yield probe


def races(bench: Bench) -> Iterator[Probe]:
    """One hidden unit with long sums of rounded terms, GEMM2 then exact: two runs give the same bits."""
    if not bench.rules.deterministic:
        return
    x = torch.randn(1, bench.H, generator=bench.random)
    layer = bench.plain(x=x)
    codes = bench.draw_codes((bench.E, 2 * bench.I, bench.H))
    live = torch.zeros(2 * bench.I, dtype=torch.bool)
    live[[0, bench.I]] = True
    layer.w13.u[:] = torch.where(live[None, :, None], codes, bench.Z)
    ok = bench.steady(layer, 12)
    if ok:
        layer.w13.u[:] = codes
        layer.w2.u[:] = bench.Z
        layer.w2.u[:, :, 0] = bench.Z + 1  # one term in GEMM2
        ok = all(bench.steady(layer, 6) for _ in range(2))
    detail = "" if ok else "the same problem gets different answers"
    yield Probe("again and again, GEMM1", GEMM1, "the same problem gets the same answer every time", ok, detail)
