"""Probes of what comes after the first sum: activation, GEMM2, one whole row, routing, and the sum over slots."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .isolate import Bench, Layer, Probe, hidden
from .isolate_weights import ACTIVATION, GEMM1, GEMM2, REDUCTION, ROUTING, SCALE, UNPACK, VARIANTS

GATES = (-3.0, -1.5, -1.25, -1.0, -0.5, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)


def activation(bench: Bench) -> Iterator[Probe]:
    """silu(g) is g from 128 on and 0 below -100; between, a few gates against silu's legal values."""
    a = bench.answer
    first = a(hidden(bench, 128.0, 0.5))
    detail = ""
    for gate, up in ((256.0, 0.25), (512.0, 0.125)):
        detail = detail or bench.differ(a(hidden(bench, gate, up)), first, f"at gate {gate:g}, up {up:g}")
    yield Probe("large gates", ACTIVATION, "silu(128)*1/2 = silu(256)*1/4 = silu(512)*1/8", not detail, detail,
                also=UNPACK if bench.observe == "out" else "")  # fmt: skip
    silent = a(bench.plain(x=torch.zeros(1, bench.H)))
    detail = ""
    for gate, up in ((-128.0, 0.5), (-256.0, 2.0), (-512.0, -1.0)):
        detail = detail or bench.differ(a(hidden(bench, gate, up)), silent, f"at gate {gate:g}, up {up:g}")
    yield Probe("negative gates", ACTIVATION, "silu(-128)*up is 0, as for x = 0", not detail, detail)
    yield _small_gates(bench)
    yield _whole_sums(bench)


def _small_gates(bench: Bench) -> Probe:
    probe = Probe("small gates", ACTIVATION, "silu(g)*1 answers as one of its legal values a does by silu(128)*a/128")
    unit = bench.I // 2 + 1 if bench.I > 2 else 0
    for gate in GATES:
        got = bench.answer(hidden(bench, gate, 1.0, unit))
        legal = [bench.answer(hidden(bench, 128.0, value / 128, unit)) for value in _silu_values(bench, gate)]
        if not any(bool((got == one).all()) for one in legal):
            probe.passed, probe.detail = False, bench.differ(got, legal[0], f"at gate {gate:g}")
            return probe
    return probe


def _silu_values(bench: Bench, gate: float) -> list[float]:
    g = torch.tensor(gate, dtype=torch.float64)
    exact = g * torch.sigmoid(g)
    slack = exact.abs() * (10 + 1.2 * abs(gate)) * 2.0**-23
    ends = [(exact - slack).float(), exact.float(), (exact + slack).float()]
    down = [] if bench.rules.store_rounding == "rne" else [_toward_zero(v, bench.D) for v in ends]
    return list(dict.fromkeys([float(v.to(bench.D)) for v in ends] * (not down) + down))


def _toward_zero(value: torch.Tensor, dtype: torch.dtype) -> float:
    from moeracle.ref.rounding import round_in_fp64

    return float(round_in_fp64(value.double().reshape(1), dtype, "rtz")[0])


def _whole_sums(bench: Bench) -> Probe:
    """The gate comes from the first half of K, the up from the second: a is their product all the same."""
    asks = "the gate summed over the first half of K and the up over the second: as if both came from one column"
    K, want = bench.H, bench.answer(hidden(bench, 1.0, 1.0))
    layer = hidden(bench, 1.0, 1.0)
    layer.x[:] = 0
    layer.x[:, [0, K - 1]] = 1
    layer.w13.u[:, : bench.I, K // 2 :] = bench.Z
    layer.w13.u[:, bench.I :, : K // 2] = bench.Z
    detail = bench.differ(bench.answer(layer), want)
    return Probe("silu of whole sums", ACTIVATION, asks, not detail, detail)


def gemm2(bench: Bench) -> Iterator[Probe]:
    """One hidden unit at a time: all units count the same, other columns of w2 do not matter, long sums are kept."""
    I = bench.I
    every = range(I) if I <= 256 else sorted({*range(8), *bench.draw(0, I - 1, (64,)).tolist(), I // 3, I - 1})
    answers = {i: bench.answer(hidden(bench, 128.0, 1 / 128, i)) for i in every}
    usual = torch.stack(list(answers.values())).mode(0).values
    wrong = [i for i, got in answers.items() if bool((got != usual).any())]
    detail = ""
    if wrong:
        shown = bench.differ(answers[wrong[0]], usual, f"from hidden unit {wrong[0]}")
        detail = f"{len(wrong)} of {len(answers)} hidden units differ; {shown}"
    yield Probe("columns of I, GEMM2", GEMM2, "all weights alike, each hidden unit counts the same", not detail, detail,
                also=UNPACK if bench.observe == "out" else "")  # fmt: skip
    yield from _other_columns(bench, usual)
    yield from _long_sums(bench)


def _other_columns(bench: Bench, alone: torch.Tensor) -> Iterator[Probe]:
    asks = "one hidden unit is on; {} of other columns of w2 do not matter"
    codes, scales = (Probe(f"{what} of other columns, w2", suspect, asks.format(what)) for what, suspect in
                     (("codes", UNPACK), ("scales", SCALE)))  # fmt: skip
    units = [i for i in (0, 1, 2, 3, 5, 6, bench.I // 3, bench.I // 2, bench.I - 2, bench.I - 1) if i < bench.I]
    for i in dict.fromkeys(units):
        layer = hidden(bench, 128.0, 1 / 128, i)
        layer.w2.u[:] = bench.draw(0, 15, (1, *layer.w2.u.shape[1:]))
        layer.w2.u[:, :, i] = bench.Z + 1
        codes.detail = codes.detail or bench.differ(bench.answer(layer), alone, f"from hidden unit {i}")
        layer = hidden(bench, 128.0, 1 / 128, i)
        own, kept = i // bench.groups(layer.w2), float(layer.w2.s[0, 0, 0])
        layer.w2.s *= 2.0 ** bench.draw(-2, 5, (1, *layer.w2.s.shape[1:])).float()
        layer.w2.s[:, :, own] = kept
        scales.detail = scales.detail or bench.differ(bench.answer(layer), alone, f"from hidden unit {i}")
    for probe in (codes, scales):
        probe.passed = not probe.detail
        yield probe


def _long_sums(bench: Bench) -> Iterator[Probe]:
    """a = 2^12 in one unit and 1 in some: the sum over I loses none."""
    bits = {torch.bfloat16: 8, torch.float16: 11}.get(bench.D)
    rules = bench.rules
    if bits is None or rules.accumulator == "dtype" or "y" not in rules.stores or rules.store_rounding != "rne":
        return
    big, unit = 2.0**12, 2 ** (12 - bits + 1)
    small = unit // 2 + 1
    probe = Probe(
        "long sums, GEMM2", GEMM2, f"{big:g} + {small} * 1 over the hidden units gives what its rounded sum gives"
    )

    def answered(units: list[int], values: list[float]) -> torch.Tensor:
        layer = hidden(bench, 128.0, 1 / 128, units[0])
        for i, value in zip(units, values, strict=True):
            layer.w13.u[:, [i, bench.I + i]] = bench.Z + 1
            layer.w13.s[:, bench.I + i] = value / 128
        layer.w2.s[:] = 2.0**-12
        return bench.answer(layer)

    for _ in range(VARIANTS):
        if small >= bench.I:
            return
        units = torch.randperm(bench.I, generator=bench.random).tolist()[: small + 1]
        got, want = answered(units, [big, *[1.0] * small]), answered(units[:1], [big + unit])
        probe.detail = probe.detail or bench.differ(got, want)
    probe.passed = not probe.detail
    yield probe


def whole_row(bench: Bench) -> Iterator[Probe]:
    """One token, one expert, everything upstream acquitted: the right value at last."""
    reason = bench.is_legal(hidden(bench, 128.0, 1 / 128))
    suspect = REDUCTION if bench.observe == "out" else GEMM1
    yield Probe(
        "one row", suspect, "one token of one expert with router weight 1 gets the right value", not reason, reason
    )


def routing(bench: Bench) -> Iterator[Probe]:
    """One token beside others, and the same token alone: experts alike, then different, then many tokens."""
    E, few = bench.E, min(max(bench.case.sizes.get("T", 4), 4), 16)
    for rows, experts, alike in ((few, E, True), (few, E, False), (130, 1, True), (130, E, False)):
        if not bench.allowed(T=rows, k=bench.k1):
            continue
        words = "alike" if alike else "of different weights"
        asks = f"{rows} tokens of {experts} expert{'s' if experts > 1 else ''} {words}: each gets what it gets alone"
        probe = Probe(f"{rows} tokens, {experts} experts {words}", ROUTING, asks)
        layer = crowd(bench, rows, experts, alike)
        detail = bench.differ(bench.answer(layer), alone(bench, layer, alike))
        if detail:
            probe.passed, probe.detail = False, detail
            if alike and experts > 1 and _reads_other_outputs(bench, layer):
                probe.suspect = GEMM2
        yield probe
        if not probe.passed:
            return
    layer = crowd(bench, 5, 1, True).but(strided=True)
    detail = bench.differ(bench.answer(layer), alone(bench, layer))
    yield Probe(
        "rows with gaps", ROUTING, "rows of x that lie apart in memory are read as they are", not detail, detail
    )


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
    if not bench.allowed(T=3) or bench.E == 1:
        return
    layer = crowd(bench, 3, bench.E, False, k)
    base = bench.answer(layer)
    row = slice(-1, None) if bench.observe == "out" else slice(-k, None)
    others = layer.ids[:2].roll(1, 0) if k >= bench.E else (layer.ids[:2] + 1) % bench.E
    moved = {
        "x": layer.but(x=torch.cat([layer.x[:2] * 2, layer.x[2:]])),
        "expert ids": layer.but(ids=torch.cat([others, layer.ids[2:]])),
        "router weights": layer.but(router=torch.cat([layer.router[:2] / 2, layer.router[2:]])),
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
        rows = 3 if variant else 1
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
        layer = crowd(bench, 4, bench.E, False, bench.case.k)
        layer.router = torch.rand(layer.router.shape, generator=bench.random) + 0.25
        layer.w2.s *= 1 + torch.rand(layer.w2.s.shape, generator=bench.random)
        reason = bench.is_legal(layer)
        if reason:
            asks = "with every other stage acquitted, router weights that are no powers of two leave the sum legal"
            yield Probe("rounding of the sum", REDUCTION, asks, False, reason)
            return
    yield Probe("rounding of the sum", REDUCTION, "router weights that are no powers of two leave the sum legal")


__all__ = ["GEMM1", "activation", "gemm2", "last_word", "routing", "slots", "whole_row"]
