"""Writing a StoredWeight in a format's tensors, exactly, or saying which bits the format has no place for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moeracle.ref.weights.dense_bits import pack_bits
from moeracle.ref.weights.layouts import pack_int4, pack_zeros
from moeracle.ref.weights.stored import StoredWeight, pack_v1_zeros

Parts = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Target:
    """A format that can be written.

    Args:
        why_not: says what a weight has that the format cannot hold; "" where it can hold all of it.
        encode: returns the weight's tensors by part.
        config: returns the quantization_config, of all modules' facts.
    """

    why_not: Callable[[StoredWeight], str]
    encode: Callable[[StoredWeight, bool], Parts]
    config: Callable[[list[Module]], dict[str, Any]]


@dataclass(frozen=True)
class Module:
    """What a config must say of a module.

    Args:
        name: the module's.
        bits: 0 where it is not quantized.
        group_size: columns a group.
        channel: whether one group is all of K.
        symmetric: whether all of its zero points are the middle.
        in_order: whether g_idx permutes it.
    """

    name: str
    bits: int = 0
    group_size: int = 0
    channel: bool = False
    symmetric: bool = True
    in_order: bool = False


def _common(w: StoredWeight) -> str:
    if w.offset is not None:
        return "float offsets, which only torchao's Int4Tensor has"
    zero = w.zero
    if zero is not None and int(zero.max()) >> w.bits:
        return f"{int((zero >> w.bits > 0).sum())} zero points of {1 << w.bits}, which {w.bits} bits do not hold"
    return ""


def _fp16_scales(w: StoredWeight) -> str:
    """Say how many scales are no fp16 numbers: GPTQ and AWQ files have fp16 scales whatever the model's dtype."""
    narrow = w.scale.to(torch.float16)
    lost = ~((narrow.to(w.scale.dtype) == w.scale) | w.scale.isnan())
    name = str(w.scale.dtype).removeprefix("torch.")
    return f"{int(lost.sum()):,} of {lost.numel():,} {name} scales that are no fp16 numbers" if bool(lost.any()) else ""


def _whole_words(w: StoredWeight, *, along_k: bool) -> str:
    if along_k and w.K * w.bits % 32:
        return f"K = {w.K}, no whole number of words"
    return f"N = {w.N}, no whole number of words" if w.N * w.bits % 32 else ""


def _middle(w: StoredWeight) -> torch.Tensor:
    return torch.full(w.scale.shape, w.middle, dtype=torch.int16) if w.zero is None else w.zero


def _why_not_gptq(w: StoredWeight, version: str) -> str:
    zero = _middle(w)
    none = int((zero < 1).sum()) if version == "v1" else 0
    without = (
        f"{none:,} of {zero.numel():,} zero points 0, which v1 stores as all ones, with four readings (gptq_v2 "
        "holds them)"
        if none
        else ""
    )
    return _common(w) or without or _whole_words(w, along_k=True) or _fp16_scales(w)


def _gptq(w: StoredWeight, version: str) -> Parts:
    zero = _middle(w).mT
    return {
        "qweight": pack_bits(w.codes.mT.contiguous().mT, w.bits).mT.contiguous(),
        "qzeros": pack_v1_zeros(zero, w.bits) if version == "v1" else pack_bits(zero.to(torch.uint8), w.bits),
        "scales": w.scale.to(torch.float16).mT.contiguous(),
        "g_idx": w.columns().to(torch.int32),
    }


def _gptq_config(modules: list[Module], version: str) -> dict[str, Any]:
    bits, group = _one(modules, "gptq")
    left = [m.name for m in modules if not m.bits and m.name.rpartition(".")[2] != "lm_head"]
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": all(m.symmetric for m in modules if m.bits),
        "desc_act": any(m.in_order for m in modules),
        "checkpoint_format": "gptq" if version == "v1" else "gptq_v2",
        "lm_head": any(m.bits and m.name.rpartition(".")[2] == "lm_head" for m in modules),
        "dynamic": {"-:^" + name.replace(".", r"\.") + "$": {} for name in left},
        "meta": {"quantizer": ["moeracle"]},
    }


def _why_not_awq(w: StoredWeight) -> str:
    if w.bits != 4:
        return f"{w.bits}-bit codes"
    if w.group_of is not None:
        return "act-order (g_idx), which AWQ has no tensor for"
    short = f"a last group of {w.K % w.group_size} columns" if w.K % w.group_size else ""
    return _common(w) or short or _whole_words(w, along_k=False) or _fp16_scales(w)


def _awq(w: StoredWeight, symmetric: bool) -> Parts:
    zero = pack_zeros(_middle(w).to(torch.uint8), "awq")
    return {"qweight": pack_int4(w.codes, "awq"), "qzeros": zero, "scales": w.scale.to(torch.float16).mT.contiguous()}


def _awq_config(modules: list[Module]) -> dict[str, Any]:
    bits, group = _one(modules, "awq")
    return {
        "quant_method": "awq", "version": "gemm", "bits": bits, "group_size": group, "zero_point": True,
        "modules_to_not_convert": [m.name for m in modules if not m.bits],
    }  # fmt: skip


def _why_not_compressed(w: StoredWeight) -> str:
    if w.scale.dtype == torch.float32 and not _exact_in(w.scale, torch.bfloat16):
        return "fp32 scales that are no bf16 numbers"
    short = f"a last group of {w.K % w.group_size} columns" if w.K % w.group_size else ""
    zeros = "" if w.zero is None or bool((w.zero == w.middle).all()) else _whole_words(w, along_k=False)
    return _common(w) or short or zeros


def _compressed(w: StoredWeight, symmetric: bool) -> Parts:
    parts = {
        "weight_packed": pack_bits(w.codes, w.bits),
        "weight_scale": w.scale.to(torch.bfloat16 if w.scale.dtype == torch.float32 else w.scale.dtype).contiguous(),
        "weight_shape": torch.tensor([w.N, w.K]),
    }
    if not symmetric:
        parts["weight_zero_point"] = pack_bits(_middle(w).mT.to(torch.uint8), w.bits).mT.contiguous()
    if w.group_of is not None:
        parts["weight_g_idx"] = w.group_of.to(torch.int32)
    return parts


def _compressed_config(modules: list[Module]) -> dict[str, Any]:
    kinds: dict[tuple[int, int, bool, bool], list[str]] = {}
    by_channel = _by_channel(modules)
    for m in modules:
        if m.bits:
            size = -1 if by_channel else m.group_size
            kinds.setdefault((m.bits, size, m.symmetric, m.in_order), []).append(m.name)
    groups = {}
    for i, ((bits, group, symmetric, in_order), names) in enumerate(kinds.items()):
        channel = group == -1
        weights = {
            "num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False,
            "strategy": "channel" if channel else "group", "group_size": None if channel else group,
            **({"actorder": "group"} if in_order else {}),
        }  # fmt: skip
        targets = ["Linear"] if len(kinds) == 1 else names
        groups[f"group_{i}"] = {"format": "pack-quantized", "targets": targets, "weights": weights}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": groups, "ignore": [m.name for m in modules if not m.bits],
    }  # fmt: skip


def _exact_in(t: torch.Tensor, dtype: torch.dtype) -> bool:
    return bool((t.to(dtype).to(t.dtype) == t).all())


def _by_channel(modules: list[Module]) -> bool:
    """Say whether every module has one group, of another size than another's: no group size but -1 says that."""
    held = [m for m in modules if m.bits]
    return all(m.channel for m in held) and len({m.group_size for m in held}) > 1


def _one(modules: list[Module], target: str) -> tuple[int, int]:
    """Return the bits and the group size that all quantized modules share.

    Raises:
        ValueError: they differ, and the format's config has one of each.
    """
    by_channel = _by_channel(modules)
    found = {(m.bits, -1 if by_channel else m.group_size) for m in modules if m.bits}
    if len(found) > 1:
        said = ", ".join(f"{bits} bits in groups of {group}" for bits, group in sorted(found))
        raise ValueError(
            f"to: {target} has one width and one group size, the checkpoint has {said}; compressed-tensors holds them"
        )
    return found.pop()


TARGETS: dict[str, Target] = {
    "gptq": Target(
        lambda w: _why_not_gptq(w, "v1"),
        lambda w, symmetric: _gptq(w, "v1"),
        lambda modules: _gptq_config(modules, "v1"),
    ),
    "gptq_v2": Target(
        lambda w: _why_not_gptq(w, "v2"),
        lambda w, symmetric: _gptq(w, "v2"),
        lambda modules: _gptq_config(modules, "v2"),
    ),
    "awq": Target(_why_not_awq, _awq, _awq_config),
    "compressed-tensors": Target(_why_not_compressed, _compressed, _compressed_config),
}
