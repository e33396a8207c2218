"""Which numbers of a matrix unit explain recorded results: searched, and said which of them the results leave open.

The family is that of ref/bitmodels/tensor_core.py: steps of some products, aligned at the largest exponent, cut at so
many bits, added and stored. `fit_unit` looks for members that predict every result, from the widest step down, then
changes one number after another. What it finds is varied once more: every other value of a number that predicts the
same results is reported, and every unit of another structure, so that nobody takes for measured what the data do not
show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from moeracle.ref.bitmodels.models import EMULATED, MODELS, predict
from moeracle.ref.bitmodels.tensor_core import FP8, Instruction, TensorCore, fused_rows
from moeracle.ref.rounding import round_to

from .dot_facts import models

__all__ = ["Results", "UnitFit", "fit_unit"]

FEW, SOME = 16, 96  # rows on which a guess is tried before it is tried on all
KEPT = 8  # guesses that are changed further where none is right at once
SMALLEST = {"fp32": -126, "e8m13": -126, "fp16": -14}
BITS = range(8, 37)
TWO_SUM_BITS = range(22, 28)  # of products that are summed by themselves, before a wider sum with the accumulator
COMMON = (13, 23, 24, 25, 30, 36)  # bits with which units of another structure are tried
ORDERS = {"consecutive": None, "bits1.4.8.16.2": EMULATED}


@dataclass(frozen=True)
class Results:
    """What an instruction left: d[i] = c[i] + sum_k a[i,k] b[i,k].

    Args:
        operands: of OPERANDS.
        a, b: [n, k], of that dtype.  c: [n] or None.  d: [n], float32 or float16.
    """

    operands: str
    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor | None
    d: torch.Tensor

    def rows(self, at: torch.Tensor) -> Results:
        """Return some of the rows."""
        return replace(self, a=self.a[at], b=self.b[at], c=None if self.c is None else self.c[at], d=self.d[at])


@dataclass(frozen=True)
class Guess:
    """One member of the family; `exponents` may be "as fp16": fp8 operands are converted first."""

    products: int
    bits: int
    form: str
    store: str
    order: str = "consecutive"
    accumulator: str = "with the products"
    exponents: str = "operands"
    cut: str = "zero"
    sum_bits: int | None = None
    least: int | None = None
    zero_accumulator: int | None = None
    zeros: str = "+0"

    def predict(self, of: Results) -> torch.Tensor:
        """Return what this unit would have left."""
        a, b, operands = of.a, of.b, of.operands
        order = ORDERS[self.order]
        if order is not None:
            at = torch.tensor(order)
            a, b = (x.unflatten(1, (-1, len(order)))[:, :, at].flatten(1) for x in (a, b))
        if self.exponents == "as fp16":
            a, b, operands = a.half(), b.half(), "fp16"
        core = TensorCore(
            "guess", self.products, self.bits, self.cut, "operands" if self.exponents == "as fp16" else self.exponents,
            self.store, self.form, self.sum_bits, self.least, self.zero_accumulator, self.zeros == "signed",
            inputs=(operands,),
        )  # fmt: skip
        acc = None if of.c is None else of.c.float()
        if self.accumulator == "last, to nearest":
            total = fused_rows(a, b, core)
            if acc is None:
                return _as(total, of.d)
            return round_to(total.double() + acc.double(), of.d.dtype)
        return _as(fused_rows(a, b, core, acc), of.d)


@dataclass(frozen=True)
class UnitFit:
    """What a search found.

    Args:
        guess: number by name, of the unit that predicts most.
        equal, total: results that it predicts, and all.
        open: of each number that other values would explain as well, the others being as found, those values in words;
            only of an exact fit.
        units: units of another structure that predict every result, in words.
        like: known models and other adders that predict every result.
        first: the first result that is not predicted, or -1.
    """

    guess: dict[str, Any]
    equal: int
    total: int
    open: dict[str, str]
    units: tuple[str, ...]
    like: tuple[str, ...]
    first: int

    @property
    def exact(self) -> bool:
        """Whether every result is predicted."""
        return self.equal == self.total > 0


def fit_unit(of: Results) -> UnitFit:
    """Search the numbers that explain results, without looking at the known models.

    Args:
        of: the results, finite and not: what is not finite must be predicted, too, but is not searched by.
    Returns:
        UnitFit.
    """
    plain = of.rows(of.d.isfinite().nonzero().flatten())
    if not len(plain.d):
        return UnitFit({}, 0, len(of.d), {}, (), _like(of), 0)
    spread = torch.linspace(0, len(plain.d) - 1, min(SOME, len(plain.d))).long().unique()
    some = plain.rows(spread)
    best = _search(plain, some)
    best = _polish(best, of)
    wrong = (~_same(best.predict(of), of.d)).nonzero().flatten()
    exact = not len(wrong)
    shown = {name: value for name, value in vars(best).items() if name != "zeros" or bool((of.d == 0).any())}
    left, units = (_open(best, of, some), _units(best, of, some)) if exact else ({}, ())
    return UnitFit(shown, len(of.d) - len(wrong), len(of.d), left, units, _like(of), -1 if exact else int(wrong[0]))


def _as(total: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return total.to(like.dtype)


def _same(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Say where results are the same: bits, but any NaN for a NaN."""
    integer = torch.int32 if x.dtype == torch.float32 else torch.int16
    return (x.view(integer) == y.view(integer)) | (x.isnan() & y.isnan())


def _share(guess: Guess, of: Results) -> float:
    """Return the share of results that a guess predicts, zeros of either sign being the same."""
    return float((guess.predict(of) == of.d).double().mean())


def _form(of: Results) -> tuple[str, tuple[str, ...]]:
    """Return the accumulator's form, which the results themselves show, and the roundings to try."""
    if of.d.dtype == torch.float16:
        return "fp16", ("rne", "rtz")
    normal = of.d.abs() >= 2.0**-126
    coarse = bool(((of.d.view(torch.int32) & 0x3FF) == 0)[normal].all()) and int(normal.sum()) >= 8
    fine = of.c is not None and bool((of.c.float().view(torch.int32) & 0x3FF).any())
    return ("e8m13", ("rtz",)) if coarse and (fine or of.operands in FP8) else ("fp32", ("rtz", "rne"))


def _guesses(of: Results) -> Iterator[Guess]:
    """Yield the members that a search starts with, the widest steps first."""
    K = of.a.shape[1]
    form, stores = _form(of)
    steps = [n for n in (64, 32, 16, 8, 4, 2, 1) if n < min(K, 64)]
    exponents = ("operands", "as fp16") if of.operands in FP8 else ("operands",)
    last = ("with the products", "last, to nearest") if of.c is not None else ("with the products",)
    for step in [min(K, 64), *steps]:
        orders = [name for name, order in ORDERS.items() if order is None or (K % len(order) == 0 and step < K)]
        for order, exponent, accumulator, store in product(orders, exponents, last, stores):
            for bits in BITS:
                yield Guess(step, bits, form, store, order, accumulator, exponent)


def _search(plain: Results, some: Results) -> Guess:
    """Return a guess that predicts all finite results, or else the most of some."""
    few = some.rows(torch.arange(0, len(some.d), max(len(some.d) // FEW, 1)))
    ranked: list[tuple[float, Guess]] = []
    for guess in _guesses(plain):
        share = _share(guess, few)
        if share < 0.6:
            continue
        share = _share(guess, some)
        ranked.append((share, guess))
        if share == 1.0 and _share(guess, plain) == 1.0:
            return guess
    ranked.sort(key=lambda pair: -pair[0])
    two_sums = [g for _, g in ranked if g.store == "rne" and g.form == "fp32" and g.accumulator == "with the products"]
    steps = {guess.products: guess for guess in reversed(two_sums)}  # the best of each step
    for guess, bits, more in product(steps.values(), TWO_SUM_BITS, range(11)):
        late = replace(guess, bits=bits, sum_bits=bits + more)
        ranked.append((_share(late, some), late))
    ranked.sort(key=lambda pair: -pair[0])
    starts = [guess for _, guess in ranked[:KEPT]] or [next(_guesses(plain))]
    return max((_climbed(guess, plain, some) for guess in starts), key=lambda guess: _share(guess, plain))


def _axes(guess: Guess, of: Results) -> dict[str, list[Any]]:
    """Return every value of each number that is worth a try beside a guess."""
    K, low = of.a.shape[1], SMALLEST[guess.form]
    late = [None, *range(guess.bits, min(guess.bits + 12, 41))] if guess.store == "rne" and guess.form == "fp32" else []
    return {
        "products": sorted({n for n in (1, 2, 4, 8, 16, 32, 64) if n < K} | {min(K, 64)}),
        "bits": list(BITS),
        "order": [name for name, order in ORDERS.items() if order is None or K % len(order) == 0],
        "accumulator": ["with the products", "last, to nearest"] if of.c is not None else [],
        "exponents": [*(["as fp16"] if of.operands in FP8 else []), "operands", "normalized_operands", "product"],
        "cut": ["zero", "floor"],
        "store": ["rtz", "rne"] if guess.form != "e8m13" else [],
        "sum_bits": late,
        "zero_accumulator": [None, low] if guess.sum_bits else [],
        "least": [None, *range(low - 24, low + 13)],
        "zeros": ["+0", "signed"],
    }


def _climbed(guess: Guess, plain: Results, some: Results) -> Guess:
    """Change one number after another for as long as more results are predicted."""
    at = _share(guess, plain)
    for _ in range(2):
        before = at
        for name in _axes(guess, plain):
            for value in _axes(guess, plain)[name]:
                other = _with(guess, name, value)
                if other is None or (name != "least" and _share(other, some) < _share(guess, some)):
                    continue
                share = _share(other, plain)
                if share > at:
                    guess, at = other, share
        if at in (before, 1.0):
            break
    return guess


def _polish(guess: Guess, of: Results) -> Guess:
    """Settle what only zeros and results that are not finite show."""
    options = [replace(guess, zeros=zeros) for zeros in ("+0", "signed")]
    return max(options, key=lambda g: int(_same(g.predict(of), of.d).sum()))


def _with(guess: Guess, name: str, value: Any) -> Guess | None:
    """Return a guess with another number, or None where it is the same or no unit is so."""
    if getattr(guess, name) == value:
        return None
    other = replace(guess, **{name: value})
    fits = other.sum_bits is None or (other.bits <= other.sum_bits and other.store == "rne")
    return other if fits else None


def _open(guess: Guess, of: Results, some: Results) -> dict[str, str]:
    """Return, of each number, the other values that predict every result as well, the others being as found."""

    def predicts(other: Guess | None) -> bool:
        if other is None or _share(other, some) < 1.0:
            return False
        return bool(_same(other.predict(of), of.d).all())

    found = {}
    for name, values in _axes(guess, of).items():
        if name == "least":
            found[name] = _open_least(guess, predicts)
        elif name == "zeros" and not bool((of.d == 0).any()):
            found[name] = "no result is zero"
        else:
            also = [value for value in values if predicts(_with(guess, name, value))]
            if name == "products" and guess.products == of.a.shape[1]:
                also.append(f"more than {guess.products}: no result has more products")
            found[name] = _listed(also)
    if not bool((~of.d.isfinite()).any()):
        found["special values"] = "every result is finite"
    return {name: text for name, text in found.items() if text}


def _listed(values: list[Any]) -> str:
    """Return values as text, a run of numbers by its ends."""
    parts: list[str] = []
    at = 0
    while at < len(values):
        end = at
        while end + 1 < len(values) and isinstance(values[end], int) and values[end + 1] == values[end] + 1:
            end += 1
        parts.append(f"{values[at]} to {values[end]}" if end > at + 1 else str(values[at]))
        at = end + 1 if end > at + 1 else at + 1
    return ", ".join(parts)


def _units(guess: Guess, of: Results, some: Results) -> tuple[str, ...]:
    """Return units of another step, order, place of the accumulator or store that predict every result."""
    found: dict[tuple[Any, ...], str] = {}
    own = (guess.products, guess.order, guess.accumulator, guess.store)
    for other in _guesses(of):
        structure = (other.products, other.order, other.accumulator, other.store)
        if structure == own or structure in found or other.bits not in (guess.bits, *COMMON):
            continue
        other = replace(other, least=guess.least, zeros=guess.zeros)
        if other.exponents == "operands" and _share(other, some) == 1.0 and bool(_same(other.predict(of), of.d).all()):
            step = f"{other.products} products a step ({other.order}), {other.bits} bits"
            found[structure] = f"{step}, accumulator {other.accumulator}, store {other.store}"
    return tuple(found.values())


def _open_least(guess: Guess, predicts: Callable[[Guess], bool]) -> str:
    """Return which other least exponents predict every result, in words."""
    lowest, highest = -320, 120

    def fits(least: int) -> bool:
        return least == guess.least or predicts(replace(guess, least=least))

    if guess.least is None or fits(lowest):
        return f"{_edge(fits, lowest, highest)} or less"
    low, high = _edge(fits, guess.least, lowest), _edge(fits, guess.least, highest)
    return "" if low == high else f"{low} to {high}"


def _edge(fits: Callable[[int], bool], good: int, beyond: int) -> int:
    """Return the last value that fits on the way from one that does to one far beyond, if what fits is one range."""
    if fits(beyond):
        return beyond
    while abs(beyond - good) > 1:
        middle = (good + beyond) // 2
        good, beyond = (middle, beyond) if fits(middle) else (good, middle)
    return good


def _like(of: Results) -> tuple[str, ...]:
    """Return the known models, and other adders, that predict every result."""
    found, K = [], of.a.shape[1]
    form = "fp16" if of.d.dtype == torch.float16 else "fp32"
    for name, how in MODELS.items():
        if of.operands in how.takes and _out(how) == form and not how.scaled:
            got = predict(name, of.a, of.b, of.c)
            if bool(_same(got, of.d).all()):
                found.append(name)
    if of.operands in ("bf16", "fp16") and form == "fp32":
        acc = torch.zeros(len(of.d)) if of.c is None else of.c.float()
        known = {how.core.name for how in MODELS.values() if how.core is not None}
        for name, model in models(K).items():
            if name.partition(",")[0] not in known and bool(_same(model(of.a, of.b, acc), of.d).all()):
                found.append(name)
    return tuple(found)


def _out(how: Instruction) -> str:
    return "fp16" if how.core is not None and how.core.form == "fp16" else "fp32"
