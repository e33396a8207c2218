"""Probes of many rows together: who meets which expert, whose numbers a token gets, and the sum over its slots."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .isolate import Bench, Layer, Probe
from .suspects import GEMM2, REDUCTION, ROUTING, UNPACK

VARIANTS = 4
MANY = 130  # more than a tile of 128 rows


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
                    w.u[others] = bench.draw_codes(tuple(w.u[others].shape))
                else:
                    w.s[others] *= 2.0 ** bench.draw(1, 3, tuple(w.s[others].shape)).float()
            detail = bench.differ(bench.answer(mixed), bench.answer(known), f"of expert {e}")
            if detail:
                probe.passed, probe.detail = False, detail
                break
        yield probe


def routing(bench: Bench) -> Iterator[Probe]:
    """One token beside others, and the same token alone: experts alike, then different, then many tokens."""
    E, few = bench.E, few_rows(bench)
    for rows, experts, alike in ((few, E, True), (few, E, False), (MANY, 1, True), (MANY, E, False)):
        if not bench.allowed(T=rows, k=bench.k1):
            continue
        words = "alike" if alike else "of different weights"
        asks = f"{rows} tokens of {experts} expert{'s' if experts > 1 else ''} {words}: each gets what it gets alone"
        probe = Probe(f"{rows} tokens, {experts} experts {words}", ROUTING, asks)
        layer = crowd(bench, rows, experts, alike)
        got, want = bench.answer(layer), alone(bench, layer, alike)
        detail = bench.differ(got, want)
        if detail:
            probe.passed, probe.detail = False, detail
            moved = bool((got[:, None] == want[None]).all(2).any(1).all())  # each row is right, for another token
            if alike and experts > 1 and not moved and _reads_other_outputs(bench, layer):
                probe.suspect = GEMM2
        yield probe
        if not probe.passed:
            return
    layer = crowd(bench, 5, 1, True).but(strided=True)
    detail = bench.differ(bench.answer(layer), alone(bench, layer))
    yield Probe(
        "rows with gaps", ROUTING, "rows of x that lie apart in memory are read as they are", not detail, detail
    )


def few_rows(bench: Bench) -> int:
    """Return as many tokens as the case has, within 4 and 16."""
    return min(max(bench.case.sizes.get("T", 4), 4), 16)


def crowd(bench: Bench, rows: int, experts: int, alike: bool, k: int | None = None) -> Layer:
    """Return a problem of many tokens, each with its own x, over some experts."""
    k = bench.k1 if k is None else k
    layer = bench.plain(x=(1 + torch.arange(rows) % 7)[:, None].float().repeat(1, bench.H), k=k)
    first = torch.arange(rows) if experts > 1 else torch.zeros(rows, dtype=torch.long)
    layer.ids = (first[:, None] + torch.arange(k)[None, :]) % max(experts, k)
    if not alike:
        layer.w13.u += (torch.arange(bench.E) % 3)[:, None, None]
        layer.w2.u += (torch.arange(bench.E) // 3 % 3)[:, None, None]
    return layer


def alone(bench: Bench, layer: Layer, alike: bool = False) -> torch.Tensor:
    """Return what each token gets alone, equal tokens asked once; of the first experts where all are alike."""
    seen: dict[tuple[float, ...], torch.Tensor] = {}
    answers = []
    for t in range(len(layer.x)):
        ids = torch.arange(layer.ids.shape[1])[None] if alike else layer.ids[t : t + 1]
        key = (float(layer.x[t, 0]), *ids[0].tolist(), *layer.router[t].tolist())
        if key not in seen:
            one = layer.but(x=layer.x[t : t + 1], ids=ids, router=layer.router[t : t + 1], strided=False)
            seen[key] = bench.answer(one)
        answers.append(seen[key])
    return torch.cat(answers)


def _reads_other_outputs(bench: Bench, layer: Layer) -> bool:
    """Say whether tokens of later experts change with the first expert's w2."""
    changed = layer.but(w2=layer.w2.copy())
    changed.w2.u[0] = bench.Z
    others = (layer.ids != 0).all(1)
    if bench.observe != "out":
        others = others.repeat_interleave(layer.ids.shape[1])
    return bool((bench.answer(changed)[others] != bench.answer(layer)[others]).any())


def slots(bench: Bench) -> Iterator[Probe]:
    """k experts a token: what another token brings does not matter; ignored slots count nothing; then the sum."""
    k = bench.case.sizes.get("k", 1)
    if not bench.allowed(T=few_rows(bench)) or bench.E == 1:
        return
    layer = crowd(bench, few_rows(bench), bench.E, False, k)
    base = bench.answer(layer)
    row = slice(-1, None) if bench.observe == "out" else slice(-k, None)
    others = layer.ids[:-1].flip(1) if k >= bench.E else (layer.ids[:-1] + 1) % bench.E
    moved = {
        "x": layer.but(x=torch.cat([layer.x[:-1] * 2, layer.x[-1:]])),
        "expert ids": layer.but(ids=torch.cat([others, layer.ids[-1:]])),
        "router weights": layer.but(router=torch.cat([layer.router[:-1] / 2, layer.router[-1:]])),
    }
    for what, other in moved.items():
        suspect = REDUCTION if what == "router weights" else ROUTING
        detail = bench.differ(bench.answer(other)[row], base[row])
        yield Probe(
            f"{what} of other tokens", suspect, f"a token does not depend on the {what} of others", not detail, detail
        )
    yield from _ignored(bench, k)
    if bench.observe == "out":
        yield from _sum(bench, k)


def _ignored(bench: Bench, k: int) -> Iterator[Probe]:
    if not bench.allowed(T=2, routing="ignored") or bench.E < 2:
        return
    layer = bench.plain(2, k=k)
    layer.ids[0, -1] = -1
    if k == 1:
        layer.ids[:] = torch.tensor([[-1], [0]])
    used = layer.ids[layer.ids >= 0].unique()
    other = layer.but(w13=layer.w13.copy())
    unused = torch.ones(bench.E, dtype=torch.bool)
    unused[used] = False
    other.w13.u[unused] = bench.Z + 3
    live = slice(None) if bench.observe == "out" else (layer.ids >= 0).flatten()
    detail = bench.differ(bench.answer(other)[live], bench.answer(layer)[live])
    if not detail and bench.observe == "out" and k == 1:
        detail = bench.differ(bench.answer(layer)[:1], torch.zeros(()), "of a token without experts")
    yield Probe("ignored slots", ROUTING, "a slot whose id is -1 meets no expert", not detail, detail)


def _sum(bench: Bench, k: int) -> Iterator[Probe]:
    """The sum over slots against what each slot gives alone."""
    asks = "the output is the sum over slots of router weight times what the expert gives alone"
    probe = Probe("sum over slots", REDUCTION, asks)
    for variant in range(VARIANTS):
        rows = few_rows(bench) if variant else 1
        layer = crowd(bench, rows, bench.E, False, k)
        step = (torch.arange(k)[None, :] + torch.arange(rows)[:, None] + variant) % 3
        layer.router = 2.0 ** -(1.0 + step)
        reason = bench.is_legal(layer)
        if reason:
            probe.passed, probe.detail = False, reason
            break
    yield probe


def last_word(bench: Bench) -> Iterator[Probe]:
    """Ordinary data end to end, for what only shows in rounding: the sum over slots and the stores."""
    for _ in range(VARIANTS):
        layer = crowd(bench, few_rows(bench), bench.E, False, bench.case.k)
        layer.router = torch.rand(layer.router.shape, generator=bench.random) + 0.25
        layer.w2.s *= 1 + torch.rand(layer.w2.s.shape, generator=bench.random)
        reason = bench.is_legal(layer)
        if reason:
            asks = "with every other stage acquitted, router weights that are no powers of two leave the sum legal"
            yield Probe("rounding of the sum", REDUCTION, asks, False, reason)
            return
    yield Probe("rounding of the sum", REDUCTION, "router weights that are no powers of two leave the sum legal")


def many_slots(bench: Bench) -> Iterator[Probe]:
    """As many tokens as fill a tile, each with k experts: weights alike ask who meets whom, others the sum."""
    k = bench.case.sizes.get("k", 1)
    if not bench.allowed(T=MANY):
        return
    layer = crowd(bench, MANY, bench.E, False, k)
    reason = bench.is_legal(layer)
    asks = f"{MANY} tokens of {k} slots with equal router weights get the right sums"
    yield Probe(f"{MANY} tokens, k slots", ROUTING, asks, not reason, reason)
    layer.router = 2.0 ** -(1.0 + (torch.arange(k)[None, :] + torch.arange(MANY)[:, None]) % 3)
    reason = bench.is_legal(layer)
    asks = f"{MANY} tokens of {k} slots with other router weights each get the right sums"
    yield Probe(f"sum over slots, {MANY} tokens", REDUCTION, asks, not reason, reason)
