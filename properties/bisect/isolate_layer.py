"""Probes of what comes after the first sum: activation, GEMM2, and one whole row."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from moeracle.ref.rounding import round_in_fp64

from .isolate import Bench, Probe, hidden
from .suspects import ACTIVATION, GEMM1, GEMM2, REDUCTION, SCALE, UNPACK

VARIANTS = 4
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
    down = [_toward_zero(v, bench.D) for v in ends] if bench.rules.silu_rounding(bench.D) == "rtz" else []
    return list(dict.fromkeys([float(v.to(bench.D)) for v in ends] * (not down) + down))


def _toward_zero(value: torch.Tensor, dtype: torch.dtype) -> float:
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
        layer.w2.u[:] = bench.draw_codes((1, *layer.w2.u.shape[1:]))
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
    if bits is None or rules.adder.in_dtype or "y" not in rules.stores or rules.rounding("y", bench.D) != "rne":
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
