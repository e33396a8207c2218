"""Probes of what comes before the first sum: unwritten memory, zero points, codes, scales, and GEMM1 itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .isolate import Bench, Layer, Probe, Weight, hidden

ACTIVATION, GEMM1, GEMM2, REDUCTION = "activation", "gemm1", "gemm2", "reduction"
UNPACK, ZERO, SCALE, ROUTING = "unpack", "zero point", "scale", "routing"
MOST_COLUMNS = 24
VARIANTS = 4


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
        room = 0.1 * slopes[0].abs()
        additive = ((slopes[1] - slopes[0]).abs() <= room) & ((at_rest[1] - 2 * at_rest[0]).abs() <= room)
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


def zero_weights(bench: Bench) -> Iterator[Probe]:
    """Codes equal to their zero point are weights of 0."""
    for rows in (1, 4):
        for name in ("w13", "w2"):
            if (name == "w2" and bench.observe == "h") or not bench.allowed(T=rows):
                continue
            layer = bench.plain(rows)
            getattr(layer, name).u[:] = bench.Z
            asks = f"where every code of {name} equals its zero point, the answer is that of x = 0"
            silent = bench.answer(bench.plain(x=torch.zeros(rows, bench.H)))
            detail = bench.differ(bench.answer(layer), silent)
            yield Probe(f"u = z, {name}, {rows} row{'s' if rows > 1 else ''}", ZERO, asks, not detail, detail)


def w2_alone(bench: Bench) -> Iterator[Probe]:
    """What only concerns the weight of GEMM2: its zero points, the rows of its codes and scales."""
    yield from (probe for probe in zero_weights(bench) if "w2" in probe.name)
    yield from own_rows(bench, UNPACK, "codes", lambda w, v: w.u.fill_(bench.Z + v), (1, 2, -3), _mix_codes)
    yield from (probe for probe in (*zero_points(bench), *_compensated(bench)) if "w2" in probe.name)
    yield from own_rows(bench, SCALE, "scales", lambda w, v: w.s.mul_(2.0**v), (0, 1, -1), _mix_scales)


def signs(bench: Bench) -> Iterator[Probe]:
    """(-1)*(-1) = (-1/2)*(-2) = 1: weights below their zero point, then weights above it."""
    answers: dict[int, torch.Tensor] = {}
    for sign, suspect in ((-1, ZERO), (1, UNPACK)):
        first: torch.Tensor | None = None
        word = "below" if sign < 0 else "above"
        probe = Probe(f"codes {word} z", suspect, f"q*x is the same for q = {sign}, {2 * sign}, {4 * sign} and x = 1/q")
        for q in (1, 2, 4):
            layer = bench.plain(x=torch.full((1, bench.H), sign / q))
            layer.w13.u[:] = bench.Z + sign * q
            got = bench.answer(layer)
            first = got if first is None else first
            probe.detail = probe.detail or bench.differ(got, first, f"at q = {sign * q}")
        assert first is not None
        answers[sign] = first
        probe.passed = not probe.detail
        yield probe
    detail = bench.differ(answers[1], answers[-1])
    yield Probe("both signs", UNPACK, "(-1)*(-1) and 1*1 are the same", not detail, detail)


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
    if rules.accumulator == "dtype":
        return
    bits = {torch.bfloat16: 8, torch.float16: 11}.get(bench.D)
    if bits is None:
        return
    stored = "h" in rules.stores
    big = 2**12
    unit = 2 ** (12 - bits + 1)  # one ulp of D at `big`
    small = unit // 2 + 1 if stored else unit
    asks = f"{big} + {small} * 1 over K gives what {'its rounded sum' if stored else 'the sum'} gives in one column"
    rounded = big + unit if rules.store_rounding == "rne" or not stored else big
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
    codes = bench.draw(0, 15, (bench.E, 2 * bench.I, bench.H))
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


def unpacking(bench: Bench) -> Iterator[Probe]:
    """Every code is the number it says; only the column that x reads is known, all others are random."""
    yield _every_code(bench)
    asks = "x reads one column of K; the codes of all other columns do not matter"
    probe = Probe("codes of other columns, w13", UNPACK, asks)
    for i, c in enumerate(columns_to_try(bench)):
        q = (1, 2, -3)[i % 3]
        known, mixed = (bench.plain(x=bench.onehot(c), scale=1.0) for _ in range(2))
        known.w13.u[:] = bench.Z + q
        mixed.w13.u[:] = bench.draw(0, 15, (1, *mixed.w13.u.shape[1:]))  # experts alike
        mixed.w13.u[:, :, c] = bench.Z + q
        detail = bench.differ(bench.answer(mixed), bench.answer(known), f"from column {c} of K")
        if detail:
            probe.passed, probe.detail = False, detail
            if not bench.steady(mixed, 12):
                probe.suspect, probe.detail = GEMM1, f"different every time: {detail}"
            break
    yield probe
    if probe.passed:
        yield from own_rows(bench, UNPACK, "codes", lambda w, v: w.u.fill_(bench.Z + v), (1, 2, -3), _mix_codes)


def _every_code(bench: Bench) -> Probe:
    probe = Probe("every code", UNPACK, "q with scale s answers as 1 (or -1) with scale |q|*s does, for every code")
    for q in bench.quanta():
        got, want = bench.plain(), bench.plain()
        got.w13.u[:] = bench.Z + q
        want.w13.u[:] = bench.Z + (1 if q > 0 else -1)
        want.w13.s *= abs(q)
        probe.detail = probe.detail or bench.differ(bench.answer(got), bench.answer(want), f"at code {bench.Z + q}")
    probe.passed = not probe.detail
    if probe.detail:
        halved = bench.plain(x=torch.full((1, bench.H), 0.5))
        halved.w13.s *= 2
        if bench.differ(bench.answer(halved), bench.answer(bench.plain())):
            probe.suspect = SCALE  # not even a scale twice as large is noticed
    return probe


def experts_apart(bench: Bench) -> Iterator[Probe]:
    """One expert is known, the others' scales, then their codes are random: neither may matter."""
    shape = (1, bench.H)
    if bench.k1 >= bench.E:
        return
    for what, suspect in (("scales", ROUTING), ("codes", UNPACK)):
        probe = Probe(
            f"{what} of other experts", suspect, f"a token's answer does not depend on the {what} of other experts"
        )
        for e in dict.fromkeys((0, 1, bench.E // 2, bench.E - 1)):
            if not 0 <= e <= bench.E - bench.k1:
                continue
            known, mixed = bench.plain(x=torch.ones(shape)), bench.plain(x=torch.ones(shape))
            known.ids = mixed.ids = known.ids + e
            others = torch.ones(bench.E, dtype=torch.bool)
            others[e : e + bench.k1] = False
            for w in (mixed.w13, mixed.w2):
                if what == "codes":
                    w.u[others] = bench.draw(0, 15, tuple(w.u[others].shape))
                else:
                    w.s[others] *= 2.0 ** bench.draw(1, 3, tuple(w.s[others].shape)).float()
            detail = bench.differ(bench.answer(mixed), bench.answer(known), f"of expert {e}")
            if detail:
                probe.passed, probe.detail = False, detail
                break
        yield probe


Fill = Callable[[Weight, int], object]
Mix = Callable[[Bench, Weight, list[int]], None]


def own_rows(bench: Bench, suspect: str, what: str, fill: Fill, values: tuple[int, ...], mix: Mix) -> Iterator[Probe]:
    """Each column of a stored GEMM depends on its own row of the weight: mixed rows give what uniform ones gave."""
    name, result = ("w13", "h") if bench.observe == "h" else ("w2", "the output")
    asks = f"a column of {result} depends on the {what} of its own row of {name} alone"
    answers = []
    for value in values:
        layer = bench.plain()
        fill(getattr(layer, name), value)
        answers.append(bench.answer(layer))
    probe = Probe(f"{what} of other rows, {name}", suspect, asks)
    for _ in range(VARIANTS):
        layer = bench.plain()
        w = getattr(layer, name)
        choice = bench.draw(0, len(values) - 1, (w.u.shape[1],))
        mix(bench, w, [values[i] for i in choice.tolist()])
        want = torch.stack(answers).gather(0, choice.expand_as(answers[0])[None])[0]
        probe.detail = bench.differ(bench.answer(layer), want)
        if probe.detail:
            probe.passed = False
            break
    yield probe


def _mix_codes(bench: Bench, w: Weight, of_row: list[int]) -> None:
    w.u[:] = bench.Z + torch.tensor(of_row)[None, :, None]


def zero_points(bench: Bench) -> Iterator[Probe]:
    """Zero points differ by group and row, codes with them: u - z stays 1."""
    if bench.case.zero_layout is None:
        return
    asks = "zero points differ by row and group, codes lie 1 above them: the answer is that of equal zero points"
    probe = Probe("zero points, w13", ZERO, asks)
    alike = bench.answer(bench.plain())
    low, high = (1, 14) if bench.case.zero == "v1" else (0, 14)
    for variant in range(2 * VARIANTS):
        layer = bench.plain()
        for w in (layer.w13,):
            w.z[:] = bench.draw(0 if variant % 2 else low, high, tuple(w.z.shape))
            w.u[:] = w.z.repeat_interleave(bench.groups(w), 2) + 1
        detail = bench.differ(bench.answer(layer), alike)
        if detail:
            probe.passed, probe.detail = False, detail
            break
    yield probe
    if probe.passed and bench.observe != "h":
        layer = bench.plain()
        layer.w2.z[:] = bench.draw(0, high, tuple(layer.w2.z.shape))
        layer.w2.u[:] = layer.w2.z.repeat_interleave(bench.groups(layer.w2), 2) + 1
        detail = bench.differ(bench.answer(layer), alike)
        yield Probe("zero points, w2", ZERO, asks, not detail, detail)


def scales(bench: Bench) -> Iterator[Probe]:
    """Scales of other groups do not matter; q*s is what counts; each row has its own."""
    yield from _other_groups(bench)
    yield from _compensated(bench)
    yield from own_rows(bench, SCALE, "scales", lambda w, v: w.s.mul_(2.0**v), (0, 1, -1), _mix_scales)


def _mix_scales(bench: Bench, w: Weight, of_row: list[int]) -> None:
    w.s *= torch.tensor([2.0**v for v in of_row])[None, :, None]


def _other_groups(bench: Bench) -> Iterator[Probe]:
    asks = "x reads one column; scales of other groups, up to 128 times larger, do not matter"
    probe = Probe("scales of other groups, w13", SCALE, asks)
    for c in columns_to_try(bench, 8):
        known = bench.plain(x=bench.onehot(c), scale=1.0)
        mixed = bench.plain(x=bench.onehot(c), scale=1.0)
        own = c // bench.groups(mixed.w13)
        mixed.w13.s[:] = 2.0 ** bench.draw(-2, 7, (1, *mixed.w13.s.shape[1:])).float()  # experts alike
        mixed.w13.s[:, :, own] = 1.0
        detail = bench.differ(bench.answer(mixed), bench.answer(known), f"from column {c} of K")
        if detail:
            probe.passed, probe.detail = False, detail
            break
    yield probe


def _compensated(bench: Bench) -> Iterator[Probe]:
    asks = "scales differ by row and group, codes against them: q*s is the same everywhere, and so is the answer"
    for name in ("w13", "w2"):
        if name == "w2" and bench.observe == "h":
            continue
        probe = Probe(f"q * s, {name}", SCALE, asks)
        for _ in range(VARIANTS):
            layer, alike = bench.plain(), bench.plain()
            getattr(alike, name).u[:] = bench.Z + 4
            w = getattr(layer, name)
            power = bench.draw(0, 2, (1, *w.s.shape[1:]))
            w.u[:] = bench.Z + (2**power).repeat_interleave(bench.groups(w), 2)
            w.s *= 2.0 ** (2 - power.float())
            detail = bench.differ(bench.answer(layer), bench.answer(alike))
            if detail:
                probe.passed, probe.detail = False, detail
                break
        yield probe


def rounding(bench: Bench) -> Iterator[Probe]:
    """Weights q*s that D cannot hold against weights 1*D(q*s)."""
    if bench.rules.weight != "cast" or bench.rules.weight_rounding != "rne" or bench.case.op == "unpack_int4":
        return
    asks = "a weight 3*s is rounded to the activation dtype, to nearest: it answers as 1*D(3*s) does"
    probe = Probe("rounding of q * s", SCALE, asks)
    for q in (3, 5, 7):
        for c in columns_to_try(bench, 2)[:6]:
            layer, want = bench.plain(x=bench.onehot(c), scale=1.0), bench.plain(x=bench.onehot(c), scale=1.0)
            s = (1 + torch.rand(layer.w13.s.shape, generator=bench.random)).to(bench.D)
            if bench.case.zero_layout is not None:  # u*s and z*s must not be rounded apart
                layer.w13.z[:] = bench.draw(1, 15 - q, tuple(layer.w13.z.shape))
            layer.w13.u[:] = layer.w13.z.repeat_interleave(bench.groups(layer.w13), 2) + q
            if not bench.rules.deterministic:  # sums of rounded values may come in any order: let only one be not 0
                other = torch.arange(2 * bench.I) % bench.I != c % bench.I
                layer.w13.u[:, other] = layer.w13.z.repeat_interleave(bench.groups(layer.w13), 2)[:, other]
                want.w13.u[:, other] = bench.Z
            layer.w13.s = s.float()
            want.w13.s = (s.float() * q).to(bench.D).float()
            detail = bench.differ(bench.answer(layer), bench.answer(want), f"at q = {q}")
            if detail:
                probe.passed, probe.detail = False, detail
                break
        if probe.detail:
            break
    yield probe
