"""A Problem from tensors: names, shapes, dtypes, devices and ranges are checked against the op's record.

Nothing here knows an op: what an argument must be is its record's form (`properties/ops/X.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from moeracle.properties.cases.case import TORCH_DTYPE, Case, Problem
from moeracle.properties.cases.optable import OPS, OWN, Argument, words_of_bits, zero_forms
from moeracle.properties.cases.record import OpRecord, record_of
from moeracle.ref.bounds.band import lowest_bit
from moeracle.ref.errors import unknown
from moeracle.ref.ops.moe_align_block_size import local_expert_ids
from moeracle.ref.weights.dense import DenseWeight
from moeracle.ref.weights.weight import Int4Weight

from .errors import NotJudged
from .forms import Form, solve, value_of
from .weights import Weight, as_weight

NUMBERS = {"int": int, "bool": bool, "str": str, "float": (int, float)}
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
UNSIGNED = (torch.uint16, torch.uint32)  # of which torch can do little but convert them
EXACT_REACH = 2.0**16  # largest over smallest step of activations for which exact sums are worth looking for
UNGATED, TWICE = "ungated", "2I"
PARTS = ("packed", "scale", "zero", "group_of", "bias", "values")


def as_problem(
    op: str,
    args: tuple[Any, ...],
    named: Mapping[str, Any],
    *,
    layout: str | None = None,
    zero_layout: str | None = None,
    bits: int = 4,
    gated: bool = True,
    expert_map: Any = None,
    out_dtype: torch.dtype | None = None,
) -> Problem:
    """Return what the judge judges by, made of a test's own tensors.

    Args:
        op: one of OPS.
        args: the op's arguments in order, as a kernel receives them.
        named: those given by name, and sizes that no tensor shows, by their letter.
        layout, zero_layout, bits: of weights that are given as (packed, scale, zero).
        gated: whether a layer's first weight has up rows.
        expert_map: int [E of all ranks] to this rank's experts, -1 for elsewhere, for ops whose kernels take none.
        out_dtype: the result's, for an op whose arguments do not show it.
    Raises:
        NotJudged: in one line: which argument, what it was and what fits.
    """
    if op not in OPS:
        raise NotJudged(str(unknown("op", op, OPS)))
    record = record_of(op)
    values, sizes = _by_name(record, args, named)
    if expert_map is not None and any(a.name == "expert_map" for a in record.arguments):
        values["expert_map"], expert_map = expert_map, None
    if not gated and UNGATED not in record.weight_flags:
        raise NotJudged(f"gated: got False for {op}, must be True (only a routed layer may have no up rows)")
    values = {a.name: _checked(a, values[a.name], layout, zero_layout, bits) for a in record.arguments}
    _check_devices(values if expert_map is None else {**values, "expert_map": expert_map})
    dtype = _check_dtypes(record, values, out_dtype)
    if expert_map is not None:
        values["topk_ids"] = _mapped(op, values, expert_map)
    sizes = _sizes(record, values, sizes, gated)
    _check_ranges(record, values, sizes)
    try:
        more, truth = record.known_from(values, sizes)
    except ValueError as error:
        raise NotJudged(f"{error} (as a size: B=…)" if "block_size" in str(error) else str(error)) from None
    try:
        case = _case(record, values, {**sizes, **more}, dtype, gated)
    except ValueError as error:
        raise NotJudged(f"{op}: {error}") from None
    return Problem(case, values, truth, _may_be_exact(record, values))


def tensors_of(values: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor by name; a weight's parts are called w.packed, w.scale, w.zero, or w.values."""
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, (Int4Weight, DenseWeight)):
            parts = ((part, getattr(value, part, None)) for part in PARTS)
            yield from ((f"{name}.{part}", tensor) for part, tensor in parts if tensor is not None)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's values alone: no gradient, no subclass."""
    value = tensor.detach()
    return value if type(value) is torch.Tensor else value.as_subclass(torch.Tensor)


def check_strided(name: str, value: torch.Tensor) -> None:
    """Raise NotJudged for a tensor whose elements cannot be read."""
    if value.device.type == "meta":
        raise NotJudged(f"{name}: got a meta tensor {list(value.shape)}, must hold values")
    if value.layout != torch.strided or value.is_nested:
        got = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise NotJudged(f"{name}: got {got}, must be torch.strided (.to_dense())")
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(value)
    if wrapped or type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        got = "a tensor inside torch.func" if wrapped else f"a {type(value).__name__}"
        raise NotJudged(f"{name}: got {got}, must be a plain torch.Tensor that holds values")


def _by_name(
    record: OpRecord, args: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return every argument by name, and the sizes that were given beside them."""
    names = [a.name for a in record.arguments]
    call = f"({', '.join(names)})"
    if len(args) > len(names):
        raise NotJudged(f"{record.name}: got {len(args)} arguments, must be at most {len(names)}: {call}")
    values = dict(zip(names, args, strict=False))
    sizes: dict[str, int] = {}
    for name, value in named.items():
        if name in record.dims:
            sizes[name] = _whole(name, value)
        elif name in ("atol", "rtol", "equal_nan"):
            raise NotJudged(f"{name}: got {value}; what is legal needs none (tolerance_report says what one lets pass)")
        elif name not in names:
            raise NotJudged(str(unknown(f"argument of {record.name}", name, names)))
        elif name in values:
            raise NotJudged(f"{name}: got twice, by place and by name; must be given once")
        else:
            values[name] = value
    missing = [a.name for a in record.arguments if a.name not in values and not a.optional]
    if missing:
        raise NotJudged(f"{record.name}: got no {', '.join(missing)}; its arguments are {call}")
    return {name: values.get(name) for name in names}, sizes


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise NotJudged(f"{name}: got {value!r}, must be a whole number")
    return value


def _checked(argument: Argument, value: Any, layout: str | None, zero_layout: str | None, bits: int) -> Any:
    """Return an argument as the judge reads it, or raise NotJudged for a wrong type."""
    kind = Form.parse(argument.form).kind
    name = argument.name
    if value is None:
        if argument.optional:
            return None
        raise NotJudged(f"{name}: got None, must be {argument.form}")
    if kind == "Int4Weight":
        return _plain_weight(name, as_weight(name, value, layout, zero_layout, bits))
    if kind in NUMBERS:
        right = isinstance(value, NUMBERS[kind]) and (isinstance(value, bool) == (kind == "bool"))  # type: ignore[arg-type]
        if not right:
            raise NotJudged(f"{name}: got {type(value).__name__} {str(value)[:40]!r}, must be {argument.form}")
        return value
    if not isinstance(value, torch.Tensor):
        raise NotJudged(f"{name}: got {type(value).__name__}, must be a tensor {argument.form}")
    check_strided(name, value)
    return _widened(name, kind, plain(value))


def _plain_weight(name: str, weight: Weight) -> Weight:
    for part, tensor in tensors_of({name: weight}):
        check_strided(part, tensor)
    if isinstance(weight, DenseWeight):
        return DenseWeight(plain(weight.values))
    zero = None if weight.zero is None else plain(weight.zero)
    packed, scale = plain(weight.packed), plain(weight.scale)
    of, bias = (None if part is None else plain(part) for part in (weight.group_of, weight.bias))
    if of is not None and of.numel():
        least, most = int(of.min()), int(of.max())
        if least < 0 or most >= scale.shape[-1]:
            raise NotJudged(f"{name}.group_of: got {least}..{most}, must be 0..{scale.shape[-1] - 1}")
    return type(weight)(packed, scale, zero, weight.layout, weight.group_size, weight.zero_layout, of, bias)


def as_wide(name: str, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return whole numbers of another width in a dtype, where that changes none; everything else as it is."""
    whole = not dtype.is_floating_point and value.dtype in (*INTEGERS, *UNSIGNED)
    return _widened(name, str(dtype).removeprefix("torch."), value) if whole and value.dtype != dtype else value


def _widened(name: str, kind: str, value: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the dtype of its form, where that changes no value: ids of 64 bits, router weights in D."""
    if kind == "D":
        return value
    wanted: torch.dtype = getattr(torch, kind)
    if value.dtype in UNSIGNED and not wanted.is_floating_point:
        value = value.to(torch.int64)
    kinds = FLOATS if wanted.is_floating_point else INTEGERS
    fits = value.dtype in kinds
    if fits and not wanted.is_floating_point and value.numel():
        limits, (low, high) = torch.iinfo(wanted), (int(end) for end in torch.aminmax(value))
        fits = limits.min <= low and high <= limits.max
    if not fits:
        raise NotJudged(f"{name}: got {value.dtype}, must be {wanted}")
    return value.to(wanted)


def _check_devices(values: Mapping[str, Any]) -> None:
    first: tuple[str, torch.device] | None = None
    for name, tensor in tensors_of(values):
        first = first or (name, tensor.device)
        if tensor.device != first[1]:
            raise NotJudged(f"{name}: got device {tensor.device}, must be {first[0]}'s {first[1]}")


def _check_dtypes(record: OpRecord, values: Mapping[str, Any], out_dtype: torch.dtype | None) -> str:
    """Return D's name: the dtype of every argument of dtype D."""
    allowed = [TORCH_DTYPE[name] for name in record.dtypes if name in TORCH_DTYPE]
    if not allowed:
        return record.dtypes[0]
    must = f"must be {' or '.join(map(str, allowed))}"
    of_d = {a.name: values[a.name] for a in record.arguments if a.form.startswith("D ") and values[a.name] is not None}
    found: torch.dtype | None = None
    for name, value in of_d.items():
        if value.dtype not in allowed:
            raise NotJudged(f"{name}: got {value.dtype}, {must}")
        found = found or value.dtype
        if value.dtype != found:
            raise NotJudged(f"{name}: got {value.dtype}, must be {next(iter(of_d))}'s {found}")
    if found is None:
        found = out_dtype if out_dtype in allowed else allowed[0]
    for name, value in values.items():
        if isinstance(value, DenseWeight) and value.values.dtype not in (found, torch.float32):
            raise NotJudged(
                f"{name}: got a dequantized weight of {value.values.dtype}, must be {found} or torch.float32"
            )
    return next(name for name, dtype in TORCH_DTYPE.items() if dtype == found)


def _mapped(op: str, values: Mapping[str, Any], expert_map: Any) -> torch.Tensor:
    """Return topk_ids as this rank's experts, -1 for those elsewhere."""
    ids = values.get("topk_ids")
    if ids is None:
        raise NotJudged(f"expert_map: got one for {op}, which has no topk_ids; must be None")
    if not isinstance(expert_map, torch.Tensor) or expert_map.ndim != 1 or expert_map.is_floating_point():
        raise NotJudged("expert_map: must be an int tensor [E], this rank's number of each expert or -1")
    try:
        return local_expert_ids(ids, len(expert_map), plain(expert_map))[0].to(torch.int32)
    except ValueError as error:
        raise NotJudged(str(error)) from None


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape)


def _sizes(record: OpRecord, values: Mapping[str, Any], sizes: dict[str, int], gated: bool) -> dict[str, int]:
    """Return every size by letter, or raise NotJudged for the first shape that does not fit, and say what would."""
    given = dict(sizes)
    for a in record.arguments:
        if a.size:
            given[a.size] = given[a.name] = values[a.name]
            least = -1 if a.size == "G" else 1
            if values[a.name] < least or values[a.name] == 0:
                raise NotJudged(f"{a.name}: got {values[a.name]}, must be {'-1 or ' if least < 0 else ''}at least 1")
    forms = {a.name: Form.parse(a.form if gated else a.form.replace(TWICE, "I")) for a in record.arguments}
    shaped = {name: value for name, value in values.items() if hasattr(value, "shape")}

    def solved(changed: Mapping[str, tuple[int, ...]]) -> Any:
        return solve(((n, forms[n], changed.get(n, _shape(v))) for n, v in shaped.items()), given)

    found, misfit = solved({})
    if misfit is not None and gated and UNGATED in record.weight_flags and _fits_ungated(record, shaped, given):
        raise NotJudged(f"{misfit.message}; it fits with gated=False (no up rows)")
    if misfit is not None:
        raise NotJudged(misfit.message + _what_fits(shaped, lambda changed: solved(changed)[1] is None))
    slots = found.get("T", 0) * found.get("k", 1)
    if "R" in found and {"T", "k"} <= found.keys() and slots != found["R"]:
        raise NotJudged(f"{found.fixed_by['R']}: got {found['R']} rows, must be T*k = {found['T']} * {found['k']}")
    if "R" in found and "T" in record.dims:
        found.setdefault("T", found["R"] // found.get("k", 1))
        if "k" in record.dims:
            found.setdefault("k", 1)
    if "G" in record.dims and "G" not in found:
        weights = [v for v in values.values() if isinstance(v, (Int4Weight, DenseWeight))]
        one_group = all(w.G == w.K for w in weights)
        found["G"] = -1 if one_group else min(w.G for w in weights)
    return found


def _fits_ungated(record: OpRecord, shaped: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Say whether every shape fits a layer without up rows."""
    forms = {a.name: Form.parse(a.form.replace(TWICE, "I")) for a in record.arguments}
    return solve(((n, forms[n], _shape(v)) for n, v in shaped.items()), dict(given))[1] is None


def _what_fits(shaped: Mapping[str, Any], fits: Any) -> str:
    """Return a hint: which one change would make all shapes fit."""
    for name, value in shaped.items():
        if len(_shape(value)) > 1:
            *lead, N, K = _shape(value)
            if fits({name: (*lead, K, N)}):
                return f"; it fits with {name} transposed"
    for a, b in itertools.combinations(shaped, 2):
        if type(shaped[a]) is type(shaped[b]) and fits({a: _shape(shaped[b]), b: _shape(shaped[a])}):
            return f"; it fits with {a} and {b} swapped"
    return ""


def _check_ranges(record: OpRecord, values: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    for a in record.arguments:
        value = values[a.name]
        if a.within is None or value is None or not value.numel():
            continue
        if a.read:  # kernels leave anything behind the end
            ends = {n: int(v) for n, v in values.items() if n in a.read and isinstance(v, torch.Tensor)}
            value = value.flatten()[: value_of(a.read, {**sizes, **ends})]
            if not value.numel():
                continue
        R = {"R": sizes.get("T", 0) * sizes.get("k", 1)}
        least, most = (value_of(end, {**R, **sizes}) for end in a.within)
        low, high = (int(end) for end in torch.aminmax(value))
        if least is not None and most is not None and not (least <= low and high <= most):
            raise NotJudged(f"{a.name}: got values from {low} to {high}, must be {least}..{most}")


def _case(record: OpRecord, values: Mapping[str, Any], sizes: Mapping[str, int], dtype: str, gated: bool) -> Case:
    """Return the case that stands for these tensors: its sizes and modifiers, and no recipe to build them again."""
    dims = tuple((letter, sizes[letter]) for letter in record.dims if letter in sizes)
    flags = {a.flag for a in record.arguments if a.flag and not _is_plain(values[a.name], a.plain)}
    layout, zero = ("-", "-") if not record.weight else _layout(values)
    words = set() if gated else {UNGATED}
    for weight in values.values():
        words |= set(words_of_bits(weight.bits)) if isinstance(weight, Int4Weight) else set()
    return Case(
        record.name,
        dims,
        dtype,
        layout,
        zero,
        record.routings[0] if len(record.routings) == 1 else OWN,
        OWN,
        flags=frozenset(flags & {*record.routing_flags, *record.data_flags} | words),
    )


def _is_plain(value: Any, plain_value: Any) -> bool:
    return not isinstance(value, torch.Tensor) and value == plain_value


def _layout(values: Mapping[str, Any]) -> tuple[str, str]:
    """Return how a case calls the first packed weight's layout and zero points."""
    packed = next((v for v in values.values() if isinstance(v, Int4Weight)), None)
    if packed is None:
        return OWN, "-"
    form = None if packed.zero is None else packed.zero_layout
    forms = zero_forms(words_of_bits(packed.bits))[packed.layout]
    names = (name for name, stored in forms.items() if stored == form)
    found = next(names, "unpacked")
    return (packed.layout, found) if found in forms else (OWN, "-")  # no case has these two together


def _may_be_exact(record: OpRecord, values: Mapping[str, Any]) -> bool:
    """Say whether activations are so coarse that exact sums are worth looking for; each element is checked then."""
    if not record.has_exact_data:
        return True
    x = next((values[a.name] for a in record.arguments if a.form.startswith("D ")), None)
    if x is None or not x.numel():
        return False
    size = x.double().abs()
    smallest = lowest_bit(size).amin()
    return bool(size.amax() <= smallest * EXACT_REACH)
