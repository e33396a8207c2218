"""One safetensors file with the inputs and outputs of a comparison, and reading it back; it holds no code.

Tensors are called args.x, args.w13.packed, out.h, out.out; the metadata hold op, contract and what is no tensor.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from moeracle.files import write_atomically
from moeracle.properties.cases.case import Problem
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import record_of
from moeracle.ref.activation import Activation
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.contracts.contract import SCHEDULES, Contract
from moeracle.ref.contracts.parts import Parts
from moeracle.ref.weights.dense import DenseWeight
from moeracle.ref.weights.weight import OF_BITS, Int4Weight

from .errors import NotJudged
from .problem import as_problem, tensors_of

__all__ = ["load", "packed_bytes", "save", "save_in"]

KIND, FORMAT_VERSION = "moeracle tensors", 1
MOST_METADATA = 1 << 20  # bytes of text; what moeracle writes has a few thousand


def packed_bytes(problem: Problem, outputs: Mapping[str, torch.Tensor], rules: Contract, kernel: str = "") -> bytes:
    """Return a file's bytes.

    Args:
        problem: its arguments are kept; recipes are not.
        outputs: by stage or result, as judged.
        rules: the contract, field by field.
        kernel: the kernel's name, or "".
    Returns:
        The bytes of one safetensors file.
    """
    from safetensors.torch import save as pack

    tensors = {f"args.{name}": value for name, value in tensors_of(problem.args)}
    tensors |= {f"out.{name}": value for name, value in outputs.items()}
    # The format holds contiguous tensors only, each with memory of its own.
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    about = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "op": problem.case.op,
        "kernel": kernel,
        "contract": _fields(rules),
        "sizes": {"B": problem.truth["block_size"]} if "block_size" in problem.truth else {},
        "weights": {n: _form(w) for n, w in problem.args.items() if isinstance(w, (Int4Weight, DenseWeight))},
        "values": {n: v for n, v in problem.args.items() if v is None or isinstance(v, (bool, int, float, str))},
    }
    blob: bytes = pack(whole, {"moeracle": json.dumps(about)})
    return blob


def save(path: Path, blob: bytes) -> Path:
    """Write one file, whole or not at all.

    Args:
        path: in a folder that exists.
        blob: what packed_bytes returned.
    Returns:
        The path.
    Raises:
        ValueError, OSError: it cannot be written.
    """
    return write_atomically(path, blob)


def save_in(folder: Path, op: str, blob: bytes) -> Path:
    """Write into a folder, made if need be, under a name that equal tensors share.

    Args:
        folder: where.
        op: begins the name.
        blob: what packed_bytes returned.
    Returns:
        The path.
    Raises:
        ValueError, OSError: it cannot be written.
    """
    path = folder / f"{op}-{hashlib.sha256(blob).hexdigest()[:12]}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    return path if path.exists() else save(path, blob)


def load(path: Path, device: str | torch.device = "cpu") -> tuple[Any, dict[str, torch.Tensor], Contract, str]:
    """Read a file that save wrote.

    Args:
        path: the file.
        device: where to put the tensors.
    Returns:
        Problem, outputs, contract and the kernel's name; everything is checked as fresh arguments are.
    Raises:
        NotJudged: in one line: no such file, damaged, or not such a file.
    """
    if not path.is_file():
        raise NotJudged(f"{path}: no such file")
    try:
        tensors, text = _read(path, str(device))
        about = json.loads(text)
        if not isinstance(about, dict) or about.get("kind") != KIND or about.get("format_version") != FORMAT_VERSION:
            raise NotJudged(f"{path}: holds no tensors that moeracle saved (must be {KIND!r}, format {FORMAT_VERSION})")
        rules = _contract(about["contract"])
        op, name = str(about["op"]), str(about.get("kernel", ""))
        if op not in OPS:
            raise NotJudged(f"{path}: got op {op!r}, must be one of {', '.join(OPS)}")
        named = _arguments(op, about, tensors)
        outputs = {key[len("out.") :]: value for key, value in tensors.items() if key.startswith("out.")}
        names = [result.name for result in record_of(op).results if result.name in outputs]
        dtype = next((outputs[n].dtype for n in names if outputs[n].is_floating_point()), None)
        problem = as_problem(op, (), named, out_dtype=dtype)
        return problem, {n: outputs[n] for n in names}, rules, name
    except NotJudged:
        raise
    except Exception as error:  # whatever a damaged file raises, safetensors' own errors too
        raise NotJudged(f"{path}: damaged, or not what moeracle saved ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


def _read(path: Path, device: str) -> tuple[dict[str, torch.Tensor], str]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt", device=device) as file:
        text = (file.metadata() or {}).get("moeracle", "")
        if not 0 < len(text) <= MOST_METADATA:
            raise NotJudged(f"{path}: holds no tensors that moeracle saved (no metadata 'moeracle')")
        return {key: file.get_tensor(key) for key in file.keys()}, text  # noqa: SIM118 - no dict


def _form(weight: Int4Weight | DenseWeight) -> dict[str, Any]:
    if isinstance(weight, DenseWeight):
        return {}
    form = {name: getattr(weight, name) for name in ("layout", "group_size", "zero_layout")}
    return form if weight.bits == 4 else {**form, "bits": weight.bits}  # not named in files that are older


def _fields(rules: Contract) -> dict[str, Any]:
    plain = {field.name: getattr(rules, field.name) for field in dataclasses.fields(rules)}
    return {
        name: str(value) if isinstance(value, (Schedule, Parts, Activation)) else value for name, value in plain.items()
    }


def _contract(fields: Mapping[str, Any]) -> Contract:
    given: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in fields.items()}
    schedules = {n: Schedule.parse(given[n]) for n in SCHEDULES if given.get(n) is not None}
    parts = None if given.get("parts") is None else Parts.parse(given["parts"])
    activation = Activation.parse(given.get("activation", "silu"))  # not named in files that are older than the field
    return Contract(**{**given, **schedules, "parts": parts, "activation": activation})


def _arguments(op: str, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    named: dict[str, Any] = {**about["values"], **{letter: int(size) for letter, size in about["sizes"].items()}}
    for argument in record_of(op).arguments:
        key = f"args.{argument.name}"
        if argument.name in about["weights"]:
            form = about["weights"][argument.name]
            if not form:
                named[argument.name] = DenseWeight(tensors[f"{key}.values"])
            else:
                packed, scale = tensors[f"{key}.packed"], tensors[f"{key}.scale"]
                zero, of, bias = (tensors.get(f"{key}.{part}") for part in ("zero", "group_of", "bias"))
                kind = OF_BITS[form.get("bits", 4)]
                said = {name: value for name, value in form.items() if name != "bits"}
                named[argument.name] = kind(packed, scale, zero, group_of=of, bias=bias, **said)
        elif key in tensors:
            named[argument.name] = tensors[key]
    return named
