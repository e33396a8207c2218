"""What makes a case illegal, each in one line that names the field, what it was and what it must be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from moeracle.ref.errors import require, unknown

from .optable import ZERO_LAYOUT, ZEROS_PER_WORD, Op

if TYPE_CHECKING:
    from .fields import Case


def canonical_dims(op: str, fields: Op, dims: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Return the dimensions in the op's order, or raise ValueError for one that is missing, twice or out of range."""
    sizes: dict[str, int] = {}
    for letter, size in dims:
        if letter not in fields.dims:
            raise unknown(f"case dimensions of {op}", letter, fields.dims)
        require(letter not in sizes, f"case dimensions: got {letter} twice, must be given once")
        least = -1 if letter == "G" else 0 if letter == "T" else 1
        legal = size >= least and not (letter == "G" and size == 0)
        must = "-1 (one group) or at least 1" if letter == "G" else f"at least {least}"
        require(legal, f"case dimensions: got {letter} = {size}, must be {must}")
        sizes[letter] = size
    missing = [letter for letter in fields.dims if letter not in sizes and letter not in fields.optional]
    require(not missing, f"case dimensions: got no {', '.join(missing)}, {op} must have {' '.join(fields.dims)}")
    return tuple((letter, sizes[letter]) for letter in fields.dims if letter in sizes)


def check_flags(field: str, flags: Iterable[str], allowed: tuple[str, ...], op: str) -> None:
    """Raise ValueError for a modifier that the op does not have in this field."""
    for flag in flags:
        if not allowed:
            raise ValueError(f"case {field}: got modifier {flag!r}, {op} has none in this field")
        if flag not in allowed:
            raise unknown(f"case {field} modifier of {op}", flag, allowed)


def check_names(case: Case, fields: Op) -> None:
    """Raise ValueError for an unknown name in any field, with the nearest legal one."""
    for field, got, allowed in (
        ("dtype", case.dtype, fields.dtypes),
        ("routing", case.routing, fields.routings),
        ("data", case.data, fields.data),
        ("layout", case.layout, tuple(ZERO_LAYOUT) if fields.weight else ("-",)),
    ):
        if got not in allowed:
            raise unknown(f"case {field} of {case.op}", got, allowed)
    if fields.weight and case.zero not in ZERO_LAYOUT[case.layout]:
        raise unknown(f"case zero point of {case.layout}", case.zero, ZERO_LAYOUT[case.layout])
    check_flags("modifiers", case.flags, fields.routing_flags + fields.data_flags, case.op)
    require(case.pad >= 0, f"case layout-zero: got pad{case.pad}, must be at least 0")
    require(fields.weight or not case.pad, f"case layout-zero: got pad{case.pad}, but {case.op} reads no int4 weight")
    require(0 <= case.seed < 1 << 64, f"case seed: got {case.seed}, must be 0..2^64-1")


def check_sizes(case: Case, fields: Op) -> None:
    """Raise ValueError for dimensions that do not go together: k > E, K % G, or words that are not whole."""
    sizes = case.sizes
    if "k" in sizes and case.routing != "repeat":
        k, E = sizes["k"], sizes["E"]
        require(k <= E, f"case dimensions: got k = {k} with E = {E}, must be at most E (routing repeat allows more)")
    G = sizes.get("G", -1)
    shapes = case.weight_shapes() or ({"codes": (case.V, case.K)} if "V" in sizes else {})
    for name, (N, K) in shapes.items():
        require(G == -1 or K % G == 0, f"case dimensions: got G = {G} for {name}, must divide its K = {K}")
        if not fields.weight:
            continue
        per_word, along, what = {"nibble_pairs": (2, K, "K"), "awq": (8, N, "N")}.get(case.layout, (8, K, "K"))
        multiple = f"must be a multiple of {per_word} in layout {case.layout}"
        require(along % per_word == 0, f"case dimensions: got {what} = {along} for {name}, {multiple}")
        require(K % 2 == 0, f"case dimensions: got K = {K} for {name}, must be even")
        per_zero = ZEROS_PER_WORD.get(case.zero_layout or "", 1)
        require(
            N % per_zero == 0,
            f"case dimensions: got N = {N} for {name}, must be a multiple of {per_zero} for zero points {case.zero}",
        )
