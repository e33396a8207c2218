"""Probes of how a weight is read: zero points, signs, codes, scales, their rounding, and which expert's they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .isolate import Bench, Probe, Weight
from .isolate_sum import columns_to_try
from .made import Layer
from .suspects import GEMM1, SCALE, UNPACK, ZERO

VARIANTS = 4
Fill = Callable[[Weight, int], object]
Mix = Callable[[Bench, Weight, list[int]], None]


def zero_weights(bench: Bench) -> Iterator[Probe]:
    """Codes equal to their zero point are weights of 0."""
    for rows in (1, 4):
        for name in ("w13", "w2"):
            if (name == "w2" and bench.observe == "h") or not bench.allowed(T=rows):
                continue
            layer, silent_layer = bench.plain(rows), bench.plain(x=torch.zeros(rows, bench.H))
            for made in (layer, silent_layer):  # far from 0, or a zero point off by one would silence the other weight
                (made.w2 if name == "w13" else made.w13).u[:] = bench.Z + 3
            getattr(layer, name).u[:] = bench.Z
            asks = f"where every code of {name} equals its zero point, the answer is that of x = 0"
            silent = bench.answer(silent_layer)
            answer = bench.answer(layer)
            detail = bench.differ(answer, silent)
            probe = Probe(f"u = z, {name}, {rows} row{'s' if rows > 1 else ''}", ZERO, asks, not detail, detail)
            if detail:
                getattr(layer, name).u[:] = bench.Z - 16
                _cut_to_nibbles(bench, probe, answer, layer)
            yield probe


def _cut_to_nibbles(bench: Bench, probe: Probe, answer: torch.Tensor, layer: Layer) -> None:
    """Suspect the unpacking where 8-bit codes that are 16 apart answer alike: their upper four bits are not read."""
    if bench.case.bits == 8 and not bench.differ(bench.answer(layer), answer):
        probe.suspect, probe.detail = UNPACK, f"{probe.detail}; codes 16 apart answer alike"


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
        if probe.detail and sign < 0:
            layer = bench.plain(x=torch.full((1, bench.H), -1.0))
            layer.w13.u[:] = bench.Z - 17
            _cut_to_nibbles(bench, probe, first, layer)
        probe.passed = not probe.detail
        yield probe
    detail = bench.differ(answers[1], answers[-1])
    yield Probe("both signs", UNPACK, "(-1)*(-1) and 1*1 are the same", not detail, detail)


def unpacking(bench: Bench) -> Iterator[Probe]:
    """Every code is the number it says; only the column that x reads is known, all others are random."""
    yield _every_code(bench)
    asks = "x reads one column of K; the codes of all other columns do not matter"
    probe = Probe("codes of other columns, w13", UNPACK, asks)
    for i, c in enumerate(columns_to_try(bench)):
        q = (1, 2, -3)[i % 3]
        known, mixed = (bench.plain(x=bench.onehot(c), scale=1.0) for _ in range(2))
        known.w13.u[:] = bench.Z + q
        mixed.w13.u[:] = bench.draw_codes((1, *mixed.w13.u.shape[1:]))  # experts alike
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
    if bench.rules.weight != "cast" or bench.rules.weight_rounding != "rne" or bench.record.returns_codes:
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
            if bench.observe != "h":  # one hidden unit alone: a sum over all of them would hide an ulp of one
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
