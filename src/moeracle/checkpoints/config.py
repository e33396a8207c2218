"""What config.json says of the quantization; the tensors say what is there, and `survey` compares the two.

Meanings that nothing in the files spells out: GPTQ without `checkpoint_format` is v1; AutoRound's bare `auto_round`
packing is GPTQ's with zero points as in v2, `auto_round:auto_gptq` is v1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeracle.ref.errors import require, unknown

from .files import read_json, shown

# Methods that are read, under every name that they are written with.
METHODS = {
    "gptq": "gptq",
    "awq": "awq",
    "compressed-tensors": "compressed-tensors",
    "auto-round": "auto-round",
    "auto_round": "auto-round",
    "intel/auto-round": "auto-round",
    "torchao": "torchao",
}
FOREIGN = ("fp8", "mxfp4", "bitsandbytes", "hqq", "quark", "modelopt", "fbgemm_fp8")  # shown, but not int4 or int8
PACKINGS = ("auto_round", "auto_round:auto_gptq", "auto_round:auto_awq")
GPTQ_FORMATS = ("gptq", "gptq_v2")
AWQ_VERSIONS = ("gemm",)
COMPRESSED_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized")
BESIDE = ("quantize_config.json", "quantization_config.json")
LONGEST_PATTERN = 1000
_NESTED = re.compile(r"[+*}]\)*\)[+*{]")  # a repeat of a repeat: may take exponential time


@dataclass(frozen=True)
class Spec:
    """What a config says of one module; None where it says nothing.

    Args:
        bits: of a code; 16 and more: it is left as it is.
        group_size: columns a group; -1: all of K.
        symmetric: whether every zero point is the middle.
        skipped: whether the config leaves the module as it is.
    """

    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    skipped: bool = False


@dataclass(frozen=True)
class Declared:
    """What the config files say.

    Args:
        method: one of METHODS' values or FOREIGN, or "" where nothing is said.
        packing: "gptq" or "awq" where the method implies it, the format of compressed-tensors, or "".
        zeros: "v1" or "v2" for GPTQ's packing, "" otherwise.
        spec: what holds for all modules.
        desc_act: whether act-order is declared.
        writer: who wrote the file, "" if it does not say.
        dtype: of the model: "bfloat16", …, or "".
        model_type: of the model, or "".
        hidden: the model's hidden size, or None.
        top_k: experts of a token, or None.
        raw: the quantization_config.
        notes: what was understood without being said, in sentences.
        problems: where config files contradict each other, in sentences.
    """

    method: str = ""
    packing: str = ""
    zeros: str = ""
    spec: Spec = field(default_factory=Spec)
    desc_act: bool | None = None
    writer: str = ""
    dtype: str = ""
    model_type: str = ""
    hidden: int | None = None
    top_k: int | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def of(self, module: str) -> Spec:
        """Return what the config says of a module."""
        return _MODULE_SPECS.get(self.method, _same)(self, module)


def read_config(folder: Path) -> Declared:
    """Read config.json, and the quantization files beside it; an empty Declared where there are none.

    Raises:
        ValueError: no JSON, or a method or format that is unknown, with the nearest known name.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    text = _mapping(config.get("text_config"))
    inside = config.get("quantization_config", text.get("quantization_config", config.get("compression_config")))
    beside = {name: read_json(folder / name) for name in BESIDE if (folder / name).exists()}
    raw = _mapping(inside) or next(iter(beside.values()), {})
    problems = tuple(
        f"{name}: {key} is {shown(str(other[key]))}, config.json says {shown(str(raw[key]))} and wins"
        for name, other in beside.items()
        for key in ("quant_method", "bits", "group_size", "sym", "desc_act", "checkpoint_format", "packing_format")
        if key in other and key in raw and other[key] != raw[key]
    )
    model: dict[str, Any] = {
        "dtype": _text(config, text, "dtype") or _text(config, text, "torch_dtype"),
        "model_type": _text(text, config, "model_type"),
        "hidden": _whole(text.get("hidden_size", config.get("hidden_size")), "hidden_size"),
        "top_k": _whole(text.get("num_experts_per_tok", config.get("num_experts_per_tok")), "num_experts_per_tok"),
    }
    if not raw:
        return Declared(**model)
    method = str(raw.get("quant_method", "")).lower()
    if method in FOREIGN:
        return Declared(method=method, raw=raw, problems=problems, **model)
    if method not in METHODS:
        raise unknown(f"{folder}: quant_method", raw.get("quant_method"), (*METHODS, *FOREIGN))
    read = {
        "gptq": _gptq,
        "awq": _awq,
        "compressed-tensors": _compressed,
        "auto-round": _auto_round,
        "torchao": _torchao,
    }
    return Declared(method=METHODS[method], raw=raw, problems=problems, **model, **read[METHODS[method]](raw))


def _gptq(raw: Mapping[str, Any]) -> dict[str, Any]:
    stated = raw.get("checkpoint_format", raw.get("format"))
    if stated is not None and stated not in GPTQ_FORMATS:
        raise unknown("checkpoint_format", stated, GPTQ_FORMATS)
    notes = () if stated else ("no checkpoint_format: GPTQ v1, whose qzeros hold the zero point less 1",)
    meta = _mapping(raw.get("meta"))
    made_by = meta.get("quantizer")
    writer = str(raw.get("provider") or (made_by[0] if isinstance(made_by, list) and made_by else made_by) or "")
    return {
        "packing": "gptq",
        "zeros": "v2" if stated == "gptq_v2" else "v1",
        "spec": Spec(_whole(raw.get("bits"), "bits"), _whole(raw.get("group_size"), "group_size"), raw.get("sym")),
        "desc_act": bool(raw.get("desc_act")),
        "writer": writer,
        "notes": notes,
    }


def _awq(raw: Mapping[str, Any]) -> dict[str, Any]:
    version = str(raw.get("version", "gemm")).lower()
    if version not in AWQ_VERSIONS:
        raise unknown("AWQ version", raw.get("version"), AWQ_VERSIONS)
    bits, group = raw.get("bits", raw.get("w_bit", 4)), raw.get("group_size", raw.get("q_group_size"))
    symmetric = None if raw.get("zero_point") is None or raw.get("sym") is None else bool(raw["sym"])
    return {
        "packing": "awq",
        "spec": Spec(_whole(bits, "bits"), _whole(group, "group_size"), symmetric),
        "writer": str(raw.get("provider", "")),
    }


def _auto_round(raw: Mapping[str, Any]) -> dict[str, Any]:
    packing = str(raw.get("packing_format", "auto_round"))
    if packing not in PACKINGS:
        raise unknown("packing_format", packing, PACKINGS)
    spec = Spec(_whole(raw.get("bits"), "bits"), _whole(raw.get("group_size"), "group_size"), raw.get("sym"))
    bare = "packing_format auto_round says no version: its qzeros hold the zero point itself, as in GPTQ v2"
    of_packing: dict[str, dict[str, Any]] = {
        "auto_round": {"packing": "gptq", "zeros": "v2", "notes": (bare,)},
        "auto_round:auto_gptq": {"packing": "gptq", "zeros": "v1"},
        "auto_round:auto_awq": {"packing": "awq"},
    }
    return {"spec": spec, "writer": "auto-round", **of_packing[packing]}


def _compressed(raw: Mapping[str, Any]) -> dict[str, Any]:
    groups = _config_groups(raw)
    stated = str(raw.get("format", "pack-quantized"))
    if stated not in COMPRESSED_FORMATS and not stated.startswith(("float", "mixed", "nvfp4", "mxfp")):
        raise unknown("compressed-tensors format", stated, COMPRESSED_FORMATS)
    return {"packing": stated, "spec": groups[0][1] if len(groups) == 1 else Spec(), "writer": "compressed-tensors"}


def _torchao(raw: Mapping[str, Any]) -> dict[str, Any]:
    kind = _mapping(_mapping(raw.get("quant_type")).get("default"))
    data = _mapping(kind.get("_data"))
    granularity = _mapping(_mapping(data.get("granularity")).get("_data"))
    group = data.get("group_size", granularity.get("group_size"))
    bits = {"int4": 4, "int8": 8}.get(str(_mapping(data.get("weight_dtype")).get("_data")))
    mapping = _mapping(data.get("mapping_type")).get("_data")
    symmetric = None if mapping is None else str(mapping).startswith("SYMMETRIC")
    return {"spec": Spec(bits, _whole(group, "group_size"), symmetric), "writer": str(kind.get("_type", ""))}


def _same(declared: Declared, module: str) -> Spec:
    return declared.spec


def _of_gptq(declared: Declared, module: str) -> Spec:
    """GPTQ: `dynamic` maps "-:pattern" to nothing and "+:pattern" to overrides; lm_head only where it is said."""
    for pattern, override in _mapping(declared.raw.get("dynamic")).items():
        sign, text = (pattern[0], pattern[2:]) if pattern[:2] in ("-:", "+:") else ("+", pattern)
        if not matches(text, module):
            continue
        if sign == "-":
            return Spec(skipped=True)
        return _overridden(declared.spec, _mapping(override))
    if module.rpartition(".")[2] == "lm_head" and not declared.raw.get("lm_head"):
        return Spec(skipped=True)
    return declared.spec


def _overridden(spec: Spec, override: Mapping[str, Any]) -> Spec:
    """Return what holds for a module that the config names."""
    bits = _whole(override.get("bits", spec.bits), "bits")
    return Spec(
        bits, _whole(override.get("group_size", spec.group_size), "group_size"), override.get("sym", spec.symmetric)
    )


def _of_names(declared: Declared, module: str) -> Spec:
    """AWQ and torchao: `modules_to_not_convert` holds parts of names."""
    named = _names(declared.raw, "modules_to_not_convert")
    left = any(part and part in module for part in named)
    return Spec(skipped=True) if left or module.rpartition(".")[2] == "lm_head" else declared.spec


def _of_auto_round(declared: Declared, module: str) -> Spec:
    for name, override in _mapping(declared.raw.get("extra_config")).items():
        override = _mapping(override)
        if name == module or matches(name, module):
            spec = _overridden(declared.spec, override)
            return Spec(skipped=True) if (spec.bits or 0) >= 16 else spec
    blocks = declared.raw.get("block_name_to_quantize")
    names = blocks.split(",") if isinstance(blocks, str) else _names(declared.raw, "block_name_to_quantize")
    inside = not names or any(module.startswith(f"{name.strip()}.") for name in names)
    return declared.spec if inside else Spec(skipped=True)


def _of_compressed(declared: Declared, module: str) -> Spec:
    for name in _names(declared.raw, "ignore"):
        if name == module or (name.startswith("re:") and matches(name[3:], module)):
            return Spec(skipped=True)
    groups = _config_groups(declared.raw)
    for targets, spec in groups:  # a group that names modules goes before one that names a class
        if any(t == module or (t.startswith("re:") and matches(t[3:], module)) for t in targets):
            return spec
    return next((spec for targets, spec in groups if "Linear" in targets), Spec(skipped=bool(groups)))


_MODULE_SPECS = {
    "gptq": _of_gptq, "awq": _of_names, "torchao": _of_names, "auto-round": _of_auto_round,
    "compressed-tensors": _of_compressed,
}  # fmt: skip


def _config_groups(raw: Mapping[str, Any]) -> list[tuple[list[str], Spec]]:
    found = []
    for group in _mapping(raw.get("config_groups")).values():
        weights = _mapping(_mapping(group).get("weights"))
        size = -1 if weights.get("strategy") == "channel" else weights.get("group_size")
        spec = Spec(_whole(weights.get("num_bits"), "num_bits"), _whole(size, "group_size"), weights.get("symmetric"))
        found.append((_names(_mapping(group), "targets"), spec))
    return found


def matches(pattern: str, name: str) -> bool:
    """Say whether a file's pattern matches the beginning of a name.

    Raises:
        ValueError: no regular expression, or one that could take exponential time.
    """
    require(
        len(pattern) <= LONGEST_PATTERN and not _NESTED.search(pattern),
        f"pattern {shown(pattern)}: repeats a repeat, must be simpler",
    )
    try:
        return re.match(pattern, name) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"pattern {shown(pattern)}: {error}") from None


def _mapping(value: Any) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _names(raw: Mapping[str, Any], key: str) -> list[str]:
    """Return the names that a list of the config holds, none where it is not there."""
    value = raw.get(key) or []
    if isinstance(value, list):  # some writers put lists of one block each into it
        value = [name for item in value for name in (item if isinstance(item, list) else [item])]
    right = isinstance(value, list) and all(isinstance(name, str) for name in value)
    require(right, f"config.json: {key} is {shown(str(value))}, must be a list of names")
    return list(value)


def _text(first: Mapping[str, Any], second: Mapping[str, Any], key: str) -> str:
    return str(first.get(key) or second.get(key) or "")


def _whole(value: Any, name: str) -> int | None:
    if value is None:
        return None
    right = isinstance(value, int) and not isinstance(value, bool) and -1 <= value < 1 << 31
    require(right, f"config.json: {name} is {shown(str(value))}, must be a whole number")
    return int(value)
