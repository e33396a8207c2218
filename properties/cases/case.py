"""Case: one problem as plain values. Its text is the replay token; everything else is computed from it.

    op / dimensions / dtype / layout-zero / routing / data / sSEED
    moe_w4a16/T33-E8-k2-H256-I128-G32/bf16/exllama-sym+pad32/zipf1/normal+strided/s7

Always seven fields; `-` where a field has no meaning for the op. Modifiers follow a field's name after `+`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from moeracle.ref.errors import require, unknown
from moeracle.ref.weights.dense import DenseWeight
from moeracle.ref.weights.layouts import PACKINGS_OF, ZERO_PACKINGS_OF, Packing
from moeracle.ref.weights.weight import Int4Weight

from ..common.torch_state import switched
from .device import check_device
from .optable import OPS, OWN, PLACEMENTS, SCALE_DTYPES, W13_FORMS, Op, code_bits, words_of_bits, zero_forms
from .placement import experts_here
from .words import with_words

__all__ = ["FIELDS", "TORCH_DTYPE", "Case", "MissingDimensionError", "Problem"]

FIELDS = ("op", "dimensions", "dtype", "layout-zero", "routing", "data", "seed")
TORCH_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LARGEST = (1 << 31) - 1  # of a dimension: ids and rows are int32
_DIM = re.compile(r"([A-Za-z]+)(-?\d+)")
_DIMS = re.compile(r"[A-Za-z]+-?\d+(-[A-Za-z]+-?\d+)*")


class MissingDimensionError(ValueError, AttributeError):
    """A case was asked for a dimension that its op does not have."""


@dataclass(frozen=True)
class Case:
    """One case; legal by construction.

    Args:
        op: one of OPS.
        dims: (letter, size) pairs in the op's canonical order; G may be -1, T may be 0.
        dtype: bf16, fp16, fp32, or "-".
        layout, zero: weight layout and zero-point form, e.g. "gptq", "v1"; both "-" where the op reads no weight.
        routing, data: archetype and recipe; "own" for tensors that were given, which no text can build again.
        seed: 0..2^64-1.
        flags: modifiers: act, short, scale16, … (layout field); ep2 and the other placements, int64, slices, renorm,
            weight, … (routing field); bias, gate, sigmoid, strided, negscale, cutscale (data field).
        pad: elements that the packed rows are padded by.
    Raises:
        ValueError: one line naming the field, what it was and what it must be.
    """

    op: str
    dims: tuple[tuple[str, int], ...]
    dtype: str = "-"
    layout: str = "-"
    zero: str = "-"
    routing: str = "-"
    data: str = "-"
    seed: int = 0
    flags: frozenset[str] = frozenset()
    pad: int = 0

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise unknown("case op", self.op, OPS)
        fields = OPS[self.op]
        object.__setattr__(self, "dims", _canonical_dims(self.op, fields, self.dims))
        object.__setattr__(self, "flags", frozenset(self.flags))
        _check_names(self, fields)
        _check_sizes(self, fields)

    @classmethod
    def of(
        cls,
        op: str,
        *,
        dtype: str = "",
        layout: str = "",
        zero: str = "",
        routing: str = "",
        data: str = "",
        seed: int = 0,
        flags: Iterable[str] = (),
        pad: int = 0,
        **dims: int,
    ) -> Case:
        """Make a case from names, with the plainest legal value for each field that is not given.

        Args:
            op: one of OPS.
            dims: T=33, E=8, …
        """
        if op not in OPS:
            raise unknown("case op", op, OPS)
        fields = OPS[op]
        routing = routing or ("uniform" if "uniform" in fields.routings else fields.routings[0])
        layout = layout or ("exllama" if fields.weight else "-")
        return cls(
            op,
            tuple(dims.items()),
            dtype or fields.dtypes[0],
            layout,
            zero or ("sym" if fields.weight else "-"),
            routing,
            data or fields.data[0],
            seed,
            frozenset(flags),
            pad,
        )

    @classmethod
    def parse(cls, text: str) -> Case:
        """Read a case's text; `Case.parse(str(case)) == case`.

        Args:
            text: seven fields separated by `/`.
        Raises:
            ValueError: one line naming the field and the nearest legal name.
        """
        parts = text.strip().split("/")
        require(len(parts) == 7, f"case: got {len(parts)} fields in {text!r}, must be 7: {'/'.join(FIELDS)}")
        op, dims_text, dtype, layout_text, routing_text, data_text, seed_text = parts
        if op not in OPS:
            raise unknown("case op", op, OPS)
        fields = OPS[op]
        require(
            _DIMS.fullmatch(dims_text) is not None,
            f"case dimensions: got {dims_text!r}, must be like {'-'.join(letter + '8' for letter in fields.dims)}",
        )
        dims = tuple((letter, int(size)) for letter, size in _DIM.findall(dims_text))
        layout, zero, pad, weight_flags = _parse_layout(layout_text, fields, op)
        routing, *routing_flags = routing_text.split("+")
        data, *data_flags = data_text.split("+")
        _check_flags("routing", routing_flags, fields.routing_flags, op)
        _check_flags("data", data_flags, fields.data_flags, op)
        require(
            re.fullmatch(r"s\d+", seed_text) is not None,
            f"case seed: got {seed_text!r}, must be s followed by a number, like s7",
        )
        flags = frozenset(routing_flags + data_flags + weight_flags)
        return cls(op, dims, dtype, layout, zero, routing, data, int(seed_text[1:]), flags, pad)

    def __str__(self) -> str:
        fields = OPS[self.op]
        dims = "-".join(f"{letter}{size}" for letter, size in self.dims)
        layout = f"{self.layout}-{self.zero}" if fields.weight and self.layout != OWN else self.layout
        layout += f"+pad{self.pad}" if self.pad else ""
        layout += "".join(f"+{flag}" for flag in fields.weight_flags if flag in self.flags)
        routing = "+".join([self.routing, *(f for f in fields.routing_flags if f in self.flags)])
        data = "+".join([self.data, *(f for f in fields.data_flags if f in self.flags)])
        return f"{self.op}/{dims}/{self.dtype}/{layout}/{routing}/{data}/s{self.seed}"

    def __getattr__(self, name: str) -> int:
        if len(name) > 1:  # Not a dimension: let copy, pickle and hasattr see an ordinary missing attribute.
            raise AttributeError(f"'Case' object has no attribute {name!r}")
        sizes = dict(self.dims)
        if name in sizes:
            return sizes[name]
        implied = OPS[self.op].implied_size(name, sizes)
        if implied is not None:
            return implied
        raise MissingDimensionError(
            f"case.{name}: op {self.op!r} has no dimension {name!r}; it has {' '.join(OPS[self.op].dims)}"
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions by letter, as the text gives them."""
        return dict(self.dims)

    @property
    def R(self) -> int:
        """Routed rows: T*k, or T for an op without routing."""
        sizes = self.sizes
        return sizes.get("T", 0) * sizes.get("k", 1)

    @property
    def local_experts(self) -> int:
        """The experts on this rank: all of them unless a word of the routing field places some elsewhere."""
        here = experts_here(self.E, self.flags, self.seed)
        return self.E if here is None else len(here)

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The activation dtype, None for `-`."""
        return TORCH_DTYPE.get(self.dtype)

    @property
    def zero_layout(self) -> str | None:
        """Int4Weight's zero_layout; None for symmetric weights and ops without a weight."""
        forms = zero_forms(self.flags)
        return forms[self.layout][self.zero] if self.layout in forms else None

    @property
    def bits(self) -> int:
        """Of a code of the op's weight: 8 under +w8, else 4."""
        return code_bits(self.flags)

    @property
    def packing(self) -> Packing | None:
        """How the layout keeps codes; None for `-` and for tensors that were given."""
        return PACKINGS_OF[self.bits].get(self.layout)

    def weight_shapes(self) -> dict[str, tuple[int, int]]:
        """The (N, K) of each int4 weight argument, by its name."""
        shapes = OPS[self.op].weight_shapes(self.sizes)
        if "ungated" in self.flags:
            N, K = shapes["w13"]
            shapes["w13"] = N // 2, K
        return shapes

    def replace(self, **changes: Any) -> Case:
        """Return a copy with some fields or dimensions changed.

        Args:
            changes: field names (seed=3, data="normal") or dimension letters (T=4).
        """
        sizes = {**self.sizes, **{name: changes.pop(name) for name in list(changes) if len(name) == 1}}
        return dataclasses.replace(self, dims=tuple(sizes.items()), **changes)

    def build(self, device: str | torch.device = "cpu") -> Problem:
        """Make the tensors of this case: the same bits on every machine.

        Args:
            device: where to put them; they are always made on the CPU first.
        Raises:
            ValueError: the device does not exist here, or its memory or this machine's is too small.
        """
        target = check_device(device)
        own = "case data: got 'own', tensors that were given and not drawn; `moeracle judge FILE` replays saved ones"
        require(self.data != OWN, own)
        try:
            with switched():
                problem: Problem = OPS[self.op].build(self)
                return with_words(problem).to(target) if OPS[self.op].weight else problem.to(target)
        except (MemoryError, RuntimeError, ValueError) as error:
            if not isinstance(error, MemoryError) and not re.search("memory|overflow|array is too big", str(error)):
                raise
            raise ValueError(f"case: {self} is too large for the memory here") from error


def _parse_layout(text: str, fields: Op, op: str) -> tuple[str, str, int, list[str]]:
    base, *mods = text.split("+")
    pad, flags = 0, list[str]()
    for mod in mods:
        match = re.fullmatch(r"pad(\d+)", mod)
        words = f"padN, like pad32{''.join(f', or {word}' for word in fields.weight_flags[-1:])}"
        said = f", {', '.join(fields.weight_flags[:-1])}" if fields.weight_flags[:-1] else ""
        must = f"must be {words.replace(', or', said + ', or')}"
        require(match is not None or mod in fields.weight_flags, f"case layout-zero: got modifier {mod!r}, {must}")
        pad, flags = (int(match.group(1)), flags) if match else (pad, [*flags, mod])
    if not fields.weight or base in ("-", OWN):
        return base, "-", pad, flags
    layout, dash, zero = base.rpartition("-")
    require(bool(dash), f"case layout-zero: got {base!r}, must be LAYOUT-ZERO, like exllama-sym or awq-asym")
    return layout, zero, pad, flags


@dataclass
class Problem:
    """What a kernel is called with, `fn(*problem.args.values())`, and what only the judge knows.

    Args:
        case: what it was built from.
        args: the op's arguments by name, in order.
        truth: facts that the kernel is not given, e.g. the topk_ids behind padded_gemm's sorted ids.
        exact: the recipe promises that every order of accumulation gives the same result.
    """

    case: Case
    args: dict[str, Any]
    truth: dict[str, Any] = field(default_factory=dict)
    exact: bool = False

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        for value in self.args.values():
            if isinstance(value, torch.Tensor):
                return value.device
            if isinstance(value, (Int4Weight, DenseWeight)):
                return value.device
        return torch.device("cpu")

    def to(self, device: str | torch.device) -> Problem:
        """Return the problem on another device; padded and transposed strides stay as they are."""
        target = torch.device(device)
        if target == self.device:
            return self
        args = {name: _moved(value, target) for name, value in self.args.items()}
        truth = {name: _moved(value, target) for name, value in self.truth.items()}
        return Problem(self.case, args, truth, self.exact)

    def nbytes(self) -> int:
        """Bytes of all argument tensors, without the gaps of padded ones."""
        return sum(_nbytes(value) for value in self.args.values())


def _canonical_dims(op: str, fields: Op, dims: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
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
        require(size <= LARGEST, f"case dimensions: got {letter} = {size}, must be at most {LARGEST:,}")
        sizes[letter] = size
    missing = [letter for letter in fields.dims if letter not in sizes and letter not in fields.optional]
    require(not missing, f"case dimensions: got no {', '.join(missing)}, {op} must have {' '.join(fields.dims)}")
    return tuple((letter, sizes[letter]) for letter in fields.dims if letter in sizes)


def _check_flags(field: str, flags: Iterable[str], allowed: tuple[str, ...], op: str) -> None:
    """Raise ValueError for a modifier that the op does not have in this field."""
    for flag in flags:
        if not allowed:
            raise ValueError(f"case {field}: got modifier {flag!r}, {op} has none in this field")
        if flag not in allowed:
            raise unknown(f"case {field} modifier of {op}", flag, allowed)


def _check_names(case: Case, fields: Op) -> None:
    """Raise ValueError for an unknown name in any field, with the nearest legal one."""
    forms, wide = zero_forms(case.flags), " with codes of 8 bits" if case.bits == 8 else ""
    for name, got, allowed in (
        ("dtype", case.dtype, fields.dtypes),
        ("routing", case.routing, fields.routings),
        ("data", case.data, fields.data),
        ("layout", case.layout, tuple(forms) if fields.weight else ("-",)),
    ):
        if got not in allowed and not (got == OWN == case.data):
            other = zero_forms(words_of_bits(12 - case.bits))
            if name == "layout" and fields.weight and got in other:
                add = ", or the word w8" if case.bits == 4 else ""
                must = f"must be one of {', '.join(allowed)}{add}"
                raise ValueError(f"case layout of {case.op}: got {got!r}, of {12 - case.bits}-bit codes alone, {must}")
            raise unknown(f"case {name} of {case.op}", got, allowed)
    if fields.weight and case.layout != OWN and case.zero not in forms[case.layout]:
        raise unknown(f"case zero point of {case.layout}{wide}", case.zero, forms[case.layout])
    legal = fields.routing_flags + fields.data_flags + fields.weight_flags
    _check_flags("modifiers", case.flags, legal, case.op)
    for one in (SCALE_DTYPES, W13_FORMS):
        both = [word for word in one if word in case.flags]
        require(len(both) < 2, f"case layout-zero: got {' and '.join(both)}, must have one of them")
    placed = [word for word in PLACEMENTS if word in case.flags]
    require(len(placed) < 2, f"case routing: got {' and '.join(placed)}, must have one placement of experts")
    require(case.pad >= 0, f"case layout-zero: got pad{case.pad}, must be at least 0")
    require(fields.weight or not case.pad, f"case layout-zero: got pad{case.pad}, but {case.op} reads no int4 weight")
    require(0 <= case.seed < 1 << 64, f"case seed: got {case.seed}, must be 0..2^64-1")


def _check_sizes(case: Case, fields: Op) -> None:
    """Raise ValueError for dimensions that do not go together: k > E, K % G, or words that are not whole."""
    if case.data == OWN:  # whoever takes the tensors has checked them
        return
    sizes = case.sizes
    for letter, size in sizes.items():
        legal = fields.sizes_of(letter, sizes)
        if legal and size not in legal:
            must = f"must be one of {', '.join(map(str, sorted(legal)))} beside {_beside(letter, sizes)}"
            raise ValueError(f"case dimensions: got {letter} = {size}, {must}")
    if "k" in sizes and case.routing != "repeat":
        k, E = sizes["k"], sizes["E"]
        require(k <= E, f"case dimensions: got k = {k} with E = {E}, must be at most E (routing repeat allows more)")
    G = sizes.get("G", -1)
    shapes = case.weight_shapes() or ({"codes": (case.V, case.K)} if "V" in sizes else {})
    for name, (N, K) in shapes.items():
        short = "short" in case.flags and G <= K
        require(G == -1 or short or K % G == 0, f"case dimensions: got G = {G} for {name}, must divide its K = {K}")
        if not fields.weight:
            continue
        packing = PACKINGS_OF[case.bits][case.layout]
        per_word, what = len(packing.shifts), packing.along
        along = K if what == "K" else N
        multiple = f"must be a multiple of {per_word} in layout {case.layout}"
        require(along % per_word == 0, f"case dimensions: got {what} = {along} for {name}, {multiple}")
        require(K % 2 == 0, f"case dimensions: got K = {K} for {name}, must be even")
        per_zero = zeros_per_word(case.zero_layout, case.bits)
        require(
            N % per_zero == 0,
            f"case dimensions: got N = {N} for {name}, must be a multiple of {per_zero} for zero points {case.zero}",
        )


def zeros_per_word(zero_layout: str | None, bits: int) -> int:
    """Return how many zero points share a word of their form; 1 where there are none, or each has a byte."""
    form = ZERO_PACKINGS_OF[bits].get(zero_layout or "")
    return 1 if form is None else len(form.shifts)


def _beside(letter: str, sizes: dict[str, int]) -> str:
    """Return the other dimensions as text."""
    return "-".join(f"{name}{size}" for name, size in sizes.items() if name != letter)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return _with_gaps(value, device)
    if isinstance(value, Int4Weight):
        moved = lambda part: None if part is None else _with_gaps(part, device)
        packed, scale = _with_gaps(value.packed, device), _with_gaps(value.scale, device)
        zero, of, bias = (moved(part) for part in (value.zero, value.group_of, value.bias))
        return replace(value, packed=packed, scale=scale, zero=zero, group_of=of, bias=bias)
    if isinstance(value, DenseWeight):
        return value.to(device)
    return value


def _with_gaps(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move the whole storage, so that a view keeps its strides and what lies between its rows."""
    if tensor.is_contiguous():
        return tensor.to(device)
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    whole = tensor.as_strided((count,), (1,), 0).to(device)
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _nbytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Int4Weight):
        return sum(_nbytes(part) for part in (value.packed, value.scale, value.zero))
    if isinstance(value, DenseWeight):
        return _nbytes(value.values)
    return 0
