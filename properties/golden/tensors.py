"""Tensors of problems and results by name: taken apart, put back, hashed, and written as the same bytes everywhere."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load

from moeracle.ref.errors import require
from moeracle.ref.weights.weight import Int4Weight

from ..cases.case import Problem
from ..cases.record import record_of
from ..compare.shapes import holds_values

Tensors = dict[str, torch.Tensor]
PARTS = ("packed", "scale", "zero")
NAMES = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64", torch.uint8: "U8",
    torch.int8: "I8", torch.int32: "I32", torch.int64: "I64",
}  # fmt: skip


def inputs_of(problem: Problem) -> Tensors:
    """Return every tensor argument by name, contiguous on the CPU; a weight's parts are called w.packed and so on."""
    found: Tensors = {}
    for name, value in problem.args.items():
        if isinstance(value, Int4Weight):
            parts = {f"{name}.{part}": getattr(value, part) for part in PARTS}
            found |= {key: part for key, part in parts.items() if part is not None}
        elif isinstance(value, torch.Tensor):
            found[name] = value
    return {name: t.detach().cpu().contiguous() for name, t in found.items()}


def with_inputs(problem: Problem, stored: Tensors) -> Problem:
    """Return the problem with its tensors' values replaced by stored ones; strides and what is no tensor stay.

    Raises:
        ValueError: a tensor is missing, or has another shape or dtype.
    """

    def put(name: str, value: torch.Tensor) -> torch.Tensor:
        if name not in stored or stored[name].shape != value.shape or stored[name].dtype != value.dtype:
            raise ValueError(f"golden: stored input {name} of {problem.case} does not fit its case; regenerate the set")
        return _like(value, stored[name])

    args: dict[str, Any] = {}
    for name, value in problem.args.items():
        if isinstance(value, Int4Weight):
            parts = {part: getattr(value, part) for part in PARTS}
            put_in: dict[str, Any] = {p: None if t is None else put(f"{name}.{p}", t) for p, t in parts.items()}
            args[name] = replace(value, **put_in)
        else:
            args[name] = put(name, value) if isinstance(value, torch.Tensor) else value
    return replace(problem, args=args)


def _like(value: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Copy values into a clone of the whole storage, so that what lies between padded rows stays too."""
    count = value.untyped_storage().nbytes() // value.element_size()
    whole = value.as_strided((count,), (1,), 0).clone()
    return whole.as_strided(value.shape, value.stride(), value.storage_offset()).copy_(stored)


def results_of(op: str, output: Any) -> Tensors | None:
    """Return a kernel's results by name, contiguous on the CPU, or None if they do not have the op's form."""
    named = record_of(op).by_name(output)
    if named is None or not all(map(holds_values, named.values())):
        return None
    return {name: t.detach().cpu().contiguous() for name, t in named.items()}


def as_output(op: str, results: Tensors) -> Any:
    """Return results in the form that the judge takes and a kernel returns: a tuple, a dict of stages, or a tensor."""
    return record_of(op).as_output(results)


def digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and bytes."""
    head = f"{NAMES[tensor.dtype]} {list(tensor.shape)}\n".encode()
    return hashlib.sha256(head + _bytes(tensor)).hexdigest()


def digest_all(tensors: Tensors) -> str:
    """Return one SHA-256 of named tensors, whatever their order."""
    lines = "".join(f"{name} {digest(tensors[name])}\n" for name in sorted(tensors))
    return hashlib.sha256(lines.encode()).hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def to_safetensors(tensors: Tensors) -> bytes:
    """Return a safetensors file: sorted keys, no metadata, widest elements first; the same tensors, the same bytes.

    The safetensors library's own writer is free to order its header; a fixture must not be.
    Source: https://github.com/huggingface/safetensors#format
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, at = {}, 0
    for name in order:
        t = tensors[name]
        header[name] = {"dtype": NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(_bytes(tensors[name]) for name in order)


def from_safetensors(data: bytes) -> Tensors:
    """Read what `to_safetensors` wrote, by the safetensors library.

    Raises:
        ValueError: it is no safetensors file.
    """
    try:
        tensors = dict(load(data))
    except Exception as error:  # the library has its own exception types, and they vary with its version
        raise ValueError(f"not a safetensors file ({' '.join(str(error).split())[:80]})") from None
    strange = [f"{name} in {t.dtype}" for name, t in tensors.items() if t.dtype not in NAMES]
    require(not strange, f"not a safetensors file of ours ({(strange or [''])[0]})")
    return tensors
