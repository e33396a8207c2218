"""Vectors: single dot products that a matrix instruction computed, in a format that any laboratory can write.

A folder holds manifest.json and one or more .safetensors files (or .safetensors.xz). Row i of a set says that ONE
instruction, or a chain of it where K is larger than it takes, left d[i] = c[i] + sum_k a[i,k] b[i,k]. The manifest:

    format   1; may be left out
    sets     {NAME: {device, instruction, in, out, inputs, c, first, n, k, model}}

    device, instruction   in words; device names the architecture, for example "NVIDIA H100 (sm_90)"
    in, out               bf16, fp16, tf32, e4m3, e5m2 or e2m1; fp32 or fp16
    inputs                KEY of the tensors inputs.KEY.a and inputs.KEY.b [rows, k], and of block scales inputs.KEY.sa
                          and inputs.KEY.sb; native dtypes, tf32 as fp32, e2m1 as uint8 codes, one a byte
    first, n              the set's results belong to the rows first to first + n
    c                     name of the accumulator tensor [n], fp32 or as out, or null: it started at +0. An fp32 one is
                          rounded to nearest where out is fp16
    NAME.d                the results [n], of dtype out
    model                 which model predicts them; may be left out: device, instruction, in and out say it

Other fields are kept in the file and not read. The format is that of the recordings which F. A. Khattak and M. Mikaitis
published (arxiv.org/abs/2512.07004), as docs/bit-models.md describes them.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from moeracle.files import write_atomically
from moeracle.ref.bitmodels.models import MODELS, model_of, predict
from moeracle.ref.bitmodels.tensor_core import OPERANDS
from moeracle.ref.errors import require, unknown

__all__ = ["Replayed", "VectorSet", "model_of_set", "read_vectors", "replay_vectors", "write_vectors"]

FORMAT = 1
MANIFEST = "manifest.json"
TENSORS = "vectors.safetensors.xz"
OUTPUTS = {"fp32": torch.float32, "fp16": torch.float16}
INPUTS = {**OPERANDS, "e2m1": torch.uint8}
INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16}


@dataclass(frozen=True)
class VectorSet:
    """One set of results of one instruction.

    Args:
        name: unique in its folder.
        operands: of INPUTS.
        out: "fp32" or "fp16".
        a, b: [n, k].  d: [n].  c: [n] as the instruction took it, or None for +0.
        device, instruction: in words.
        model: which model predicts it, or "": what device and instruction say.
        scales: block scales of a and b, [n, k / products a scale], or ().
    """

    name: str
    operands: str
    out: str
    a: torch.Tensor = field(repr=False)
    b: torch.Tensor = field(repr=False)
    c: torch.Tensor | None = field(repr=False)
    d: torch.Tensor = field(repr=False)
    device: str = ""
    instruction: str = ""
    model: str = ""
    scales: tuple[torch.Tensor, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Replayed:
    """How much of one set a model predicts.

    Args:
        name: the set's.
        model: its name.
        equal, total: results that are predicted bit for bit, and all.
        first: the first that is not, in words, or "".
    """

    name: str
    model: str
    equal: int
    total: int
    first: str = ""

    @property
    def ok(self) -> bool:
        """Whether every result is as predicted, of at least one."""
        return self.equal == self.total > 0


def read_vectors(folder: Path) -> list[VectorSet]:
    """Read a folder of vectors and check it.

    Args:
        folder: where manifest.json is.
    Returns:
        Its sets, in the manifest's order.
    Raises:
        ValueError: in one line: no manifest, another format, a file that cannot be read, a set whose fields or tensors
            do not fit.
    """
    path = folder / MANIFEST
    require(path.is_file(), f"vectors: found no {MANIFEST} in {folder}, must be a folder of vectors")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"vectors: {path} is not JSON ({str(error).splitlines()[0]})") from None
    sets = manifest.get("sets") if isinstance(manifest, dict) else None
    if not isinstance(sets, dict) or not sets:
        raise ValueError(f"vectors: {path} has no sets, must have some")
    version = manifest.get("format", FORMAT)
    require(version == FORMAT, f"vectors: got format {version!r} in {path}, must be {FORMAT}")
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(file for file in folder.iterdir() if file.name.endswith((".safetensors", ".safetensors.xz"))):
        try:
            data = file.read_bytes()
            tensors |= load(lzma.decompress(data) if file.suffix == ".xz" else data)
        except (SafetensorError, lzma.LZMAError, KeyError) as error:
            raise ValueError(f"vectors: {file} cannot be read ({str(error).splitlines()[0]})") from None
    return [_set(name, fields, tensors) for name, fields in sets.items()]


def _set(name: str, fields: Any, tensors: dict[str, torch.Tensor]) -> VectorSet:
    """Check one set of a manifest and cut its rows."""
    require(isinstance(fields, dict), f"vectors: set {name} is {fields!r}, must be fields by name")
    kinds = {"in": str, "out": str, "inputs": str, "first": int, "n": int, "k": int}
    for key, kind in kinds.items():
        got = fields.get(key)
        fits = isinstance(got, kind) and not isinstance(got, bool)
        require(fits, f"vectors: set {name} has {key}={got!r}, must be {'a number' if kind is int else 'text'}")
    for key, allowed in (("in", INPUTS), ("out", OUTPUTS)):
        if fields[key] not in allowed:
            raise unknown(f"{key} of set {name}", fields[key], allowed)
    first, n, k = fields["first"], fields["n"], fields["k"]
    require(first >= 0 and n > 0, f"vectors: set {name} has first={first}, n={n}, must be 0 or more, and 1 or more")

    def tensor(key: str, shape: tuple[int | None, ...], *dtypes: torch.dtype) -> torch.Tensor:
        require(key in tensors, f"vectors: set {name} has no tensor {key}")
        got = tensors[key]
        alike = got.dim() == len(shape) and all(b in (None, a) for a, b in zip(got.shape, shape, strict=True))
        wanted = f"{' or '.join(map(str, dtypes))} {['rows' if s is None else s for s in shape]}"
        fits = alike and (not dtypes or got.dtype in dtypes)
        require(fits, f"vectors: set {name}: {key} is {got.dtype} {list(got.shape)}, must be {wanted}")
        return got

    def rows(part: str) -> torch.Tensor:
        whole = tensor(f"inputs.{fields['inputs']}.{part}", (None, k), INPUTS[fields["in"]])
        fits = first + n <= len(whole)
        require(fits, f"vectors: set {name} takes rows {first} to {first + n} of {len(whole)}, must lie within them")
        return whole[first : first + n]

    out = OUTPUTS[fields["out"]]
    a, b, d = rows("a"), rows("b"), tensor(f"{name}.d", (n,), out)
    c = None if fields.get("c") is None else tensor(str(fields["c"]), (n,), torch.float32, out).to(out)
    scales = [tensors.get(f"inputs.{fields['inputs']}.{part}") for part in ("sa", "sb")]
    text = {key: str(fields.get(key) or "") for key in ("device", "instruction", "model")}
    if text["model"] and text["model"] not in MODELS:
        raise unknown(f"model of set {name}", text["model"], MODELS)
    cut = tuple(s[first : first + n] for s in scales if s is not None)
    return VectorSet(name, fields["in"], fields["out"], a, b, c, d, scales=cut, **text)


def write_vectors(folder: Path, sets: Iterable[VectorSet], about: dict[str, str]) -> None:
    """Write a folder of vectors; the manifest last, each file whole or not at all.

    Args:
        folder: made if it is not there.
        sets: of unique names.
        about: further fields of the manifest: gpu, driver, command and so on.
    Raises:
        ValueError: two sets share a name.
    """
    tensors: dict[str, torch.Tensor] = {}
    entries: dict[str, dict[str, Any]] = {}
    for s in sets:
        require(s.name not in entries, f"vectors: got set {s.name} twice, must be unique")
        parts = {f"inputs.{s.name}.a": s.a, f"inputs.{s.name}.b": s.b, f"{s.name}.d": s.d}
        parts |= {f"inputs.{s.name}.{key}": scale for key, scale in zip(("sa", "sb"), s.scales, strict=False)}
        if s.c is not None:
            parts[f"{s.name}.c"] = s.c
        tensors |= {key: value.detach().cpu().contiguous().clone() for key, value in parts.items()}
        entries[s.name] = {
            "device": s.device, "instruction": s.instruction, "in": s.operands, "out": s.out, "inputs": s.name,
            "c": None if s.c is None else f"{s.name}.c", "first": 0, "n": len(s.d), "k": s.a.shape[1],
            **({"model": s.model} if s.model else {}),
        }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / TENSORS, lzma.compress(save(tensors)))
    text = json.dumps({"format": FORMAT, **about, "sets": entries}, indent=1) + "\n"
    write_atomically(folder / MANIFEST, text)


def model_of_set(vectors: VectorSet) -> str:
    """Return the model that a set names, or that its device and instruction say.

    Args:
        vectors: the set.
    Returns:
        One of MODELS.
    Raises:
        ValueError: no model is of that device, instruction and operands.
    """
    described = (vectors.device, vectors.instruction, vectors.operands, vectors.out)
    try:
        return vectors.model or model_of(*described)
    except ValueError as error:
        raise ValueError(f"set {vectors.name}: {error}") from None


def replay_vectors(vectors: VectorSet, model: str | None = None) -> Replayed:
    """Predict a set's results and compare their bits.

    Args:
        vectors: what was recorded.
        model: one of MODELS; None: the set's own.
    Returns:
        Replayed; bits are compared, those of a NaN and the sign of zero too.
    Raises:
        ValueError: there is no model, or it does not take these operands.
    """
    name = model or model_of_set(vectors)
    scales = dict(zip(("a_scale", "w_scale"), vectors.scales, strict=False))
    got = predict(name, vectors.a, vectors.b, vectors.c, **scales)
    fits = got.dtype == vectors.d.dtype
    require(fits, f"model: got {name} for set {vectors.name}, must be one whose results are {vectors.out}")
    integer = INTEGERS[got.dtype]
    wrong = (got.view(integer) != vectors.d.view(integer)).nonzero().flatten()
    first = "" if not len(wrong) else describe(vectors, int(wrong[0]), got)
    return Replayed(vectors.name, name, len(got) - len(wrong), len(got), first)


def describe(vectors: VectorSet, row: int, predicted: torch.Tensor) -> str:
    """Say what was recorded and predicted of one row, and from which operands that are not zero."""
    integer, digits = INTEGERS[predicted.dtype], 2 * predicted.element_size()
    mask = (1 << 4 * digits) - 1
    shown = [f"{int(x[row : row + 1].view(integer)) & mask:0{digits}x}" for x in (vectors.d, predicted)]
    a, b = vectors.a[row].float().tolist(), vectors.b[row].float().tolist()
    terms = [f"{x:g}*{y:g}" for x, y in zip(a, b, strict=True) if x or y]
    more = f" + {len(terms) - 4} more" if len(terms) > 4 else ""
    start = 0.0 if vectors.c is None else float(vectors.c[row])
    return f"row {row}: recorded {shown[0]}, predicted {shown[1]}, of {start:g} + {' + '.join(terms[:4])}{more}"
