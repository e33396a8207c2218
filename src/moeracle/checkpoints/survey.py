"""What is in a checkpoint, linear by linear, and where its config and its tensors contradict each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from .checkpoint import Checkpoint, index_problems
from .config import Spec
from .evidence import STORED_IN_SEQUENCE, STORED_INTERLEAVED, evidence_of
from .files import shown
from .formats.awq import AwqLinear
from .formats.compressed import CompressedLinear
from .formats.dense import DenseLinear
from .formats.gptq import GptqLinear
from .linear import Linear

MOST_SAMPLED = 8  # linears whose codes are read for evidence
MOST_NAMED = 3
MAY_BE_DENSE = ("router", "lm_head", "embedding", "norm", "other", "shared expert's gate")
DTYPE_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass
class Facts:
    """What is known of one linear.

    Args:
        module, kind, layer, expert: which.
        format, zero_form: in words.
        N, K, experts, bits, group_size: sizes; 0 where it is not quantized or cannot be measured.
        scale_dtype: as safetensors calls it, or "".
        stored_15s: codes of qzeros that are all ones, for 4 bits 15.
        negative, zeros, subnormal, nonfinite: scales.
        scales: how many there are.
        problem: why it cannot be read, or "".
    """

    module: str
    kind: str
    layer: int | None
    expert: int | None
    format: str
    zero_form: str = ""
    N: int = 0
    K: int = 0
    experts: int | None = None
    bits: int = 0
    group_size: int = 0
    scale_dtype: str = ""
    stored_15s: int = 0
    negative: int = 0
    zeros: int = 0
    subnormal: int = 0
    nonfinite: int = 0
    scales: int = 0
    problem: str = ""


@dataclass
class Survey:
    """What a checkpoint holds.

    Args:
        checkpoint: which.
        facts: of each linear.
        notes: what is worth knowing, in sentences.
        problems: contradictions and damage, in sentences.
    """

    checkpoint: Checkpoint
    facts: list[Facts] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def survey(checkpoint: Checkpoint) -> Survey:
    """Read every scale and zero point, and some codes, and compare them with the config.

    Args:
        checkpoint: which.
    Returns:
        Survey; damage of single tensors is among its problems.
    """
    found = Survey(checkpoint)
    found.notes += checkpoint.declared.notes
    found.problems += [*checkpoint.declared.problems, *index_problems(checkpoint)]
    measured = []
    for linear in checkpoint.linears.values():
        facts = _facts(linear)
        found.facts.append(facts)
        if not facts.problem:
            measured.append(linear)
    found.problems += [f.problem for f in found.facts if f.problem]
    _compare_with_config(found, measured)
    _compare_methods(found, measured)
    _zero_points(found, measured)
    _codes(found, measured)
    _dtypes(found)
    _vectors(found)
    return found


def _facts(linear: Linear) -> Facts:
    place = linear.place
    facts = Facts(linear.module, place.kind, place.layer, place.expert, linear.format)
    try:
        sizes = linear.sizes
        facts.N, facts.K, facts.experts, facts.bits = sizes.N, sizes.K, sizes.experts, sizes.bits
        facts.group_size, facts.format, facts.zero_form = sizes.group_size, linear.label, linear.zero_form
        if linear.quantized:
            part = "scales" if "scales" in linear.parts else "scale"
            facts.scale_dtype = linear.dtype(part) if part in linear.parts else ""
            for e in range(sizes.experts) if sizes.experts is not None else (None,):
                _count(facts, linear.scales(e), linear.stored_zeros(e))
    except ValueError as error:
        facts.problem = str(error)
    return facts


def _count(facts: Facts, scales: torch.Tensor | None, stored: torch.Tensor | None) -> None:
    if stored is not None:
        facts.stored_15s += int((stored == (1 << facts.bits) - 1).sum())
    if scales is None:
        return
    facts.scales += scales.numel()
    facts.negative += int((scales < 0).sum())
    facts.zeros += int((scales == 0).sum())
    facts.subnormal += int(((scales != 0) & (scales.abs() < torch.finfo(scales.dtype).tiny)).sum())
    facts.nonfinite += int((~torch.isfinite(scales)).sum())


def _compare_with_config(found: Survey, linears: Iterable[Linear]) -> None:
    """Compare what the config says of each module with its tensors."""
    wrong: dict[str, list[str]] = {}
    declared = found.checkpoint.declared
    if not declared.method or not declared.raw:
        quantized = [linear.module for linear in linears if linear.quantized]
        by_metadata = {"quantization", "tensor_names"} & found.checkpoint.files.metadata.keys()
        if quantized and by_metadata:
            found.notes.append("the config says nothing of a quantization, the file's own metadata do")
        elif quantized:
            found.problems.append(f"config: has no quantization_config, but {_some(quantized)} quantized")
        return
    for linear in linears:
        spec = declared.of(linear.module)
        for said in _contradictions(linear, spec):
            wrong.setdefault(said, []).append(linear.module)
        if not linear.quantized and not spec.skipped and spec.bits and linear.place.kind not in MAY_BE_DENSE:
            wrong.setdefault(f"{linear.label}, the config says quantized", []).append(linear.module)
    found.problems += [f"{_some(modules)} {said}" for said, modules in wrong.items()]


def _contradictions(linear: Linear, spec: Spec) -> list[str]:
    if not linear.quantized or not linear.sizes.groups:
        return []
    sizes, said = linear.sizes, []
    if spec.skipped:
        return ["quantized, the config says skipped"]
    if spec.bits is not None and spec.bits != sizes.bits:
        said.append(f"{sizes.bits} bits by their tensors, {spec.bits} by the config")
    stated = sizes.K if spec.group_size == -1 else spec.group_size
    if stated and -(-sizes.K // stated) != sizes.groups:
        said.append(f"groups of {sizes.group_size} by their tensors, {spec.group_size} by the config")
    if isinstance(linear, CompressedLinear) and spec.symmetric is not None:
        has = "zero_point" in linear.parts
        if has == spec.symmetric:
            said.append(
                f"{'with' if has else 'without'} zero points, symmetric is {str(spec.symmetric).lower()} in the config"
            )
    return said


def _compare_methods(found: Survey, linears: list[Linear]) -> None:
    """Compare the method, and act-order, with what the tensors are."""
    declared = found.checkpoint.declared
    kinds = {"gptq": GptqLinear, "awq": AwqLinear}
    wanted = kinds.get(declared.packing)
    others = [li.module for li in linears if li.quantized and wanted is not None and not isinstance(li, wanted)]
    if others:
        other = next(li for li in linears if li.module == others[0])
        named = (
            f"{declared.method} ({declared.raw.get('packing_format')})"
            if declared.method == "auto-round"
            else declared.method
        )
        found.problems.append(f"{_some(others)} {other.format} by their tensors' shapes, the config says {named}")
    indexed = [li for li in linears if isinstance(li, GptqLinear) and "g_idx" in li.parts]
    in_order = [li.module for li in indexed if li.acts_in_order]
    if declared.desc_act and indexed and not in_order:
        found.notes.append("desc_act is true, but every g_idx is k // group_size: nothing is permuted")
    if in_order and not declared.desc_act:
        found.problems.append(
            f"{_some(in_order)} in act-order by g_idx, desc_act is false: a loader that trusts the config reads "
            "them wrongly"
        )
    elif in_order:
        found.notes.append(f"{_some(in_order)} in act-order: column k uses group g_idx[k]")


def _zero_points(found: Survey, linears: list[Linear]) -> None:
    """Say where zero points are constant but not the middle, or hold codes that loaders read differently."""
    declared, largest = found.checkpoint.declared, 0
    off: dict[int, list[str]] = {}
    varying: list[str] = []
    for linear in linears:
        for e in (None,) if linear.sizes.experts is None else range(linear.sizes.experts):
            zero = linear.zeros(e) if linear.quantized else None
            if zero is None:
                continue
            low, high, middle = int(zero.min()), int(zero.max()), 1 << (linear.sizes.bits - 1)
            if low == high and abs(low - middle) == 1:
                off.setdefault(low, []).append(linear.module)
            if (low, high) != (middle, middle) and declared.of(linear.module).symmetric:
                varying.append(linear.module)
    for low, modules in off.items():
        other = {"v1": "v2", "v2": "v1"}.get(declared.zeros, "another version")
        found.problems.append(
            f"{_some(modules, 'has', 'have')} every zero point {low}: read as {declared.zeros or 'they are'}, their "
            f"words say {other} (F06)"
        )
    if varying and not off:
        found.problems.append(
            f"{_some(sorted(set(varying)), 'has', 'have')} other zero points than the middle, the config says symmetric"
        )
    if declared.zeros == "v1":
        holding = [f for f in found.facts if f.stored_15s and f.format.startswith("gptq")]
        largest = sum(f.stored_15s for f in holding)
    if largest:
        found.problems.append(
            f"{_some([f.module for f in holding], 'has', 'have')} {largest:,} stored zero points of all ones, which "
            "loaders read as 0, 16 or with a carry into the neighbour (F07); read here as "
            f"{found.checkpoint.reading} (--zeros)"
        )


def _codes(found: Survey, linears: list[Linear]) -> None:
    """Ask the codes of a few linears whether they are read in the right order, and with the right zero points."""
    able = [
        li
        for li in linears
        if li.quantized and li.sizes.groups and li.sizes.bits == 4 and not li.zero_form.startswith("float")
    ]
    sampled = [able[i * len(able) // MOST_SAMPLED] for i in range(MOST_SAMPLED)] if len(able) > MOST_SAMPLED else able
    interleaved = any(isinstance(li, AwqLinear) for li in sampled)
    weights = []
    for linear in sampled:
        try:
            weights.append(linear.stored(None if linear.sizes.experts is None else 0))
        except ValueError as error:
            found.problems.append(str(error))
    seen = evidence_of(weights, STORED_IN_SEQUENCE if interleaved else STORED_INTERLEAVED)
    if seen is None:
        return
    here, other = ("interleaved", "in sequence") if interleaved else ("in sequence", "interleaved")
    if seen.shift:
        found.problems.append(
            f"codes lie {seen.mean:+.2f} beside their zero points on the average: zero points are read one too "
            f"{'low' if seen.shift > 0 else 'high'} (F06)"
        )
    if interleaved and seen.codes_reordered:
        found.problems.append(
            f"codes are read {here}, but fit their scales better {other} (correlation {seen.codes_here:.2f}, {other} "
            f"{seen.codes_other:.2f}): the words are not in AWQ's order (F08)"
        )
    elif seen.zeros_reordered:
        found.problems.append(
            f"zero points are read {here}, but fit their codes better {other} (correlation {seen.zeros_here:.2f}, "
            f"{other} {seen.zeros_other:.2f}) (F09)"
        )


def _dtypes(found: Survey) -> None:
    """Say which scales and unquantized weights have another dtype than the model."""
    model = DTYPE_NAMES.get(found.checkpoint.declared.dtype.removeprefix("torch."))
    if not model:
        return
    scales = Counter(f.scale_dtype for f in found.facts if f.scale_dtype and f.scale_dtype != model)
    for dtype, count in scales.items():
        found.notes.append(f"scales of {count:,} linears are {dtype} in a {model} model: an engine casts them first")
    other: dict[tuple[str, str], list[str]] = {}
    for linear in found.checkpoint.linears.values():
        if isinstance(linear, DenseLinear) and linear.dtype("weight") != model:
            other.setdefault((linear.place.kind, linear.dtype("weight")), []).append(linear.module)
    for (kind, dtype), modules in other.items():
        found.notes.append(f"{kind}: {_some(modules)} {dtype} in a {model} model")


def _vectors(found: Survey) -> None:
    """Say what no linear holds and what is no norm either."""
    odd = [name for name in found.checkpoint.others if "norm" not in name and not name.endswith((".bias", "_bias"))]
    if odd:
        found.notes.append(f"{_some(odd)} no matrix: left as {'it is' if len(odd) == 1 else 'they are'}")


def _some(modules: list[str], one: str = "is", several: str = "are") -> str:
    """Return the first modules' names, how many more there are, and the verb."""
    named = ", ".join(shown(name) for name in modules[:MOST_NAMED])
    more = f" and {len(modules) - MOST_NAMED:,} more" if len(modules) > MOST_NAMED else ""
    return f"{named}{more} {one if len(modules) == 1 else several}"


def rows_of(facts: Iterable[Facts]) -> list[dict[str, Any]]:
    """Return one row for each kind of linear whose facts are alike, with its layers and its counts."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for f in facts:
        key = (f.kind, f.format, f.N, f.K, f.bits, f.group_size, f.zero_form, f.scale_dtype)
        row = rows.setdefault(key, {
            "layers": set(), "kind": f.kind, "count": 0, "format": f.format, "N": f.N, "K": f.K, "bits": f.bits,
            "group_size": f.group_size, "zero_points": f.zero_form, "scale_dtype": f.scale_dtype,
            "stored_15s": 0, "negative": 0, "zero": 0, "subnormal": 0, "nonfinite": 0, "scales": 0,
        })  # fmt: skip
        row["layers"] |= set() if f.layer is None else {f.layer}
        row["count"] += f.experts or 1
        for name in ("stored_15s", "negative", "subnormal", "nonfinite", "scales"):
            row[name] += getattr(f, name)
        row["zero"] += f.zeros
    return [{**row, "layers": sorted(row["layers"])} for row in rows.values()]
