"""Sizes of tensors from the forms that an op's record states: "D [T, K]", "int32 [R]", "float32 [V] or [V, K/G]".

Each tensor fixes the letters of its form that are still open and must agree with those that are fixed already. Nothing
here knows an op.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["Form", "Misfit", "Sizes", "solve"]

_TIMES = re.compile(r"(\d*)\s*([A-Za-z_]\w*)")
_PLUS = re.compile(r"([A-Za-z_]\w*)\s*\+\s*(\d+)")
_QUOTIENT = re.compile(r"([A-Z])\s*/\s*([A-Z])")
_NAMES = re.compile(r"[A-Za-z_]\w*")


class Form(NamedTuple):
    """The form of one argument or result: what its elements are, and the shapes that it may have."""

    kind: str
    shapes: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Form:
        """Read a form; a number, a flag or text has no shapes."""
        shapes = tuple(tuple(d.strip() for d in dims.split(",")) for dims in re.findall(r"\[([^\]]*)\]", text))
        return cls(text.partition(" ")[0], shapes)

    def text(self, sizes: Mapping[str, int]) -> str:
        """Return the shapes in words, each letter with its size where that is known: "[T=5, K]"."""
        return " or ".join(f"[{', '.join(_with_sizes(dim, sizes) for dim in dims)}]" for dims in self.shapes)


class Misfit(NamedTuple):
    """The first tensor whose shape does not fit those before it."""

    name: str
    message: str


class Sizes(dict[str, int]):
    """Letters to sizes, and which argument fixed each."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed_by: dict[str, str] = {}

    def fits(self, dims: tuple[str, ...], shape: tuple[int, ...], who: str) -> bool:
        """Say whether a shape fits; only then its open letters are fixed."""
        if len(dims) != len(shape):
            return False
        found: dict[str, int] = {}
        for dim, size in zip(dims, shape, strict=True):
            if not self._fits(dim, size, found):
                return False
        for letter, size in found.items():
            self[letter] = size
            self.fixed_by[letter] = who
        return True

    def _fits(self, dim: str, size: int, found: dict[str, int]) -> bool:
        known = {**self, **found}
        if any(name not in known for name in _NAMES.findall(dim)):
            if match := _TIMES.fullmatch(dim):
                factor = int(match[1] or 1)
                found[match[2]] = size // factor
                return size % factor == 0
            if match := _PLUS.fullmatch(dim):
                found[match[1]] = size - int(match[2])
                return size >= int(match[2])
            if (match := _QUOTIENT.fullmatch(dim)) and match[1] in known:
                found[match[2]] = known[match[1]] // max(1, size)
                return size > 0 and known[match[1]] % size == 0
            return True  # two open letters, or a word such as "blocks", say nothing
        return value_of(dim, known) == size


def value_of(expression: str, sizes: Mapping[str, int]) -> int | None:
    """Return the value of a record's expression such as "R + E*(B-1)"; None where a letter is open or / has a rest."""
    spaced = re.sub(r"(\d)([A-Za-z_])", r"\1*\2", expression)
    names = set(_NAMES.findall(spaced))
    if not names <= sizes.keys():
        return None
    # The text is a record's own, never a user's.
    value = eval(spaced.replace("//", "/"), {"__builtins__": {}}, {name: sizes[name] for name in names})
    return int(value) if value == int(value) else None


def solve(forms: Iterable[tuple[str, Form, Any]], given: Mapping[str, int]) -> tuple[Sizes, Misfit | None]:
    """Return the sizes that shapes agree on, and the first one that does not fit.

    Args:
        forms: (name, its form, its shape), in the op's order.
        given: sizes known otherwise: numbers among the arguments.
    """
    sizes = Sizes()
    sizes.update(given)
    sizes.fixed_by.update(dict.fromkeys(given, "a number given"))
    for name, form, shape in forms:
        if not any(sizes.fits(dims, tuple(shape), name) for dims in form.shapes):
            by = sorted({sizes.fixed_by[n] for d in form.shapes for n in _NAMES.findall(",".join(d)) if n in sizes})
            source = f" to fit {', '.join(by)}" if by else ""
            return sizes, Misfit(name, f"{name}: got shape {list(shape)}, must be {form.text(sizes)}{source}")
    return sizes, None


def _with_sizes(dim: str, sizes: Mapping[str, int]) -> str:
    value = value_of(dim, sizes) if _NAMES.search(dim) else None
    return dim if value is None else f"{dim}={value}"
