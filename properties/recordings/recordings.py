"""Recordings of real hardware: what a kernel stored, with all that is needed to predict it again without the hardware.

A recording is a folder: manifest.json and safetensors files, each packed by xz. The manifest holds `format`, where and
how it was made (HEADER), each file's sha256, and entries of two kinds:

    case    a kernel of one op on a case: the case's text gives the inputs, tensor `out` the stored result; of a layer,
            `h`, `a` and `y` the stages that it stored, too, and `dot` [T, 1] a shared expert's x·g in fp32
    dots    matrix instructions on stored operands: a [P,M,K], w [P,N,K], acc [P,M,N] (optional), out fp32 [P,M,N]
"""

from __future__ import annotations

import hashlib
import json
import lzma
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from safetensors.torch import save

from moeracle.files import FIRST_ERROR, MOST_UNPACKED, STRICT, parse_json, read_bytes, unpack, within, write_atomically
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.contracts.contract import Contract, contract
from moeracle.ref.errors import require, unknown

from ..cases.case import Case
from ..golden.tensors import from_safetensors

__all__ = ["Recording", "read_recording", "write_recording"]

FORMAT = 2  # 1 was not packed
MANIFEST = "manifest.json"
HEADER = ("gpu", "capability", "driver", "torch", "triton", "cuda", "command")
STAGES = {"h", "a", "y"}  # what only some kernels store
KINDS = {"case": {"out", "dot", *STAGES}, "dots": {"a", "w", "acc", "out"}}
OPERANDS = (torch.bfloat16, torch.float16)
STORES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Entry:
    """One recorded launch.

    Args:
        name: unique; its tensors are called NAME.out and so on.
        kind: "case" or "dots".
        kernel: which kernel ran.
        schedule: the order it is held to, as text; of a case perhaps with a contract's further schedules
            ("A,gemm2_schedule=B").
        store: dtype of `out`: "fp32", "bf16" or "fp16".
        case: the case's text; "" for dots.
        contract: a preset's text, without a schedule; "" for dots.
        facts: what the compiler made of it: instructions, tile, num_warps, layouts.
        file: the file that holds its tensors.
    Raises:
        ValueError: an unknown kind, store, contract, instruction or case, in one line that names the entry.
    """

    name: str
    kind: str
    kernel: str
    schedule: str
    store: str = "fp32"
    case: str = ""
    contract: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    file: str = ""

    __pydantic_config__: ClassVar[Any] = STRICT

    def __post_init__(self) -> None:
        require(self.name.isprintable(), f"recording entry: got name {self.name!r}, must be printable, on one line")
        try:
            if self.kind not in KINDS:
                raise unknown("kind", self.kind, KINDS)
            if self.store not in STORES:
                raise unknown("store", self.store, STORES)
            if self.kind == "dots":
                Schedule.parse(self.schedule)
            else:
                Case.parse(self.case)
                self.rules()
        except ValueError as error:
            raise ValueError(f"recording entry {self.name}: {error}") from None

    def rules(self, schedule: str | None = None) -> Contract:
        """Return a case's contract with its schedules, or with others."""
        return contract(f"{self.contract},schedule={schedule or self.schedule}")


@dataclass(frozen=True)
class Manifest:
    """What a recording's manifest holds."""

    format: int
    gpu: str
    capability: str
    driver: str
    torch: str
    triton: str
    cuda: str
    command: str
    files: dict[str, str]
    entries: Annotated[list[Entry], FIRST_ERROR]

    __pydantic_config__: ClassVar[Any] = STRICT


@dataclass(frozen=True)
class Recording:
    """A recording that was read and checked: header fields by name, entries, and each entry's tensors by name.

    Args:
        header: {field: text} of the manifest.
        entries: what was recorded, in order.
        tensors: of each entry, by name.
    """

    header: dict[str, str]
    entries: tuple[Entry, ...]
    tensors: dict[str, dict[str, torch.Tensor]]


def write_recording(
    folder: Path, header: dict[str, str], entries: list[Entry], tensors: dict[str, dict[str, torch.Tensor]]
) -> None:
    """Write a recording, one file a kernel; the manifest last, each file whole or not at all.

    Args:
        folder: made if it is not there; other files in it are left alone.
        header: all of HEADER.
        entries: their `file` is set here.
        tensors: by entry name, then "out", "a", "w", "acc"; any device.
    Raises:
        ValueError: a header field is missing, two entries share a name, or an entry's tensors do not fit its kind.
    """
    missing = [name for name in HEADER if not header.get(name)]
    require(not missing, f"recording header: got no {', '.join(missing)}, must have all of {', '.join(HEADER)}")
    names = [entry.name for entry in entries]
    require(len(set(names)) == len(names), "recording entries: got a name twice, must be unique")
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, torch.Tensor]] = {}
    placed = []
    for entry in entries:
        _check_tensors(entry, tensors[entry.name])
        file = f"{entry.kernel}.safetensors.xz"
        placed.append({**asdict(entry), "file": file})
        for part, tensor in tensors[entry.name].items():
            files.setdefault(file, {})[f"{entry.name}.{part}"] = tensor.detach().contiguous().cpu()
    sums = {}
    for file, content in files.items():
        data = lzma.compress(save(content))
        write_atomically(folder / file, data)
        sums[file] = hashlib.sha256(data).hexdigest()
    manifest = {"format": FORMAT, **{name: header[name] for name in HEADER}, "files": sums, "entries": placed}
    write_atomically(folder / MANIFEST, manifest_text(manifest))


def manifest_text(manifest: dict[str, Any]) -> str:
    """Return a manifest as JSON, an entry a line."""
    head = json.dumps({name: value for name, value in manifest.items() if name != "entries"}, indent=1)
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in manifest["entries"])
    return f'{head.removesuffix("}").rstrip()},\n "entries": [\n{lines}\n ]\n}}\n'


def read_recording(folder: Path) -> Recording:
    """Read a recording and check it.

    Args:
        folder: where the manifest is.
    Returns:
        Recording.
    Raises:
        ValueError: in one line: there is none, another format version, a damaged file, an undeclared instruction.
    """
    path = folder / MANIFEST
    require(path.is_file(), f"recording: found no {MANIFEST} in {folder}, must be a recording's folder")
    where, data = f"recording: {path}", read_bytes(path, "recording")
    version = parse_json(data, dict[str, Any], where).get("format")
    require(version == FORMAT, f"recording: got format {version!r} in {path}, must be {FORMAT}; record it again")
    manifest = parse_json(data, Manifest, where)
    content = _contents(folder, manifest)
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for entry in manifest.entries:
        require(entry.name not in tensors, f"recording entry {entry.name}: got it twice, must be unique")
        parts = {part: content.get(f"{entry.name}.{part}") for part in KINDS[entry.kind]}
        tensors[entry.name] = {part: tensor for part, tensor in parts.items() if tensor is not None}
        _check_tensors(entry, tensors[entry.name])
    return Recording({name: getattr(manifest, name) for name in HEADER}, tuple(manifest.entries), tensors)


def _contents(folder: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    """Return the tensors of all files by name; together no more than MOST_UNPACKED bytes."""
    content: dict[str, torch.Tensor] = {}
    left = MOST_UNPACKED
    for file, digest in manifest.files.items():
        path = within(folder, file, "recording")
        packed = read_bytes(path, "recording") if path.is_file() else b""
        intact = hashlib.sha256(packed).hexdigest() == digest
        require(intact, f"recording: {folder / file} is missing or damaged (its sha256 is not the manifest's)")
        data = unpack(packed, "xz", left, f"recording: the contents of {folder / file}")
        left -= len(data)
        try:
            content |= from_safetensors(data)
        except ValueError as error:
            raise ValueError(f"recording: {folder / file} is {error}") from None
    return content


def _check_tensors(entry: Entry, parts: dict[str, torch.Tensor]) -> None:
    wanted = KINDS[entry.kind]
    may = {"acc"} if entry.kind == "dots" else {"dot", *STAGES}
    must = f"{', '.join(sorted(wanted - may))}, and may be {', '.join(sorted(may))}, too"
    fits = wanted - may <= set(parts) <= wanted
    require(fits, f"recording entry {entry.name}: got tensors {sorted(parts)}, must be {must}")
    stored = {"out", *STAGES} if entry.kind == "case" else {"out"}
    for part in stored & set(parts):
        got = parts[part].dtype
        require(got == STORES[entry.store], f"recording entry {entry.name}: {part} is {got}, must be {entry.store}")
    if entry.kind == "dots":
        _check_dots(entry, parts)


def _check_dots(entry: Entry, parts: dict[str, torch.Tensor]) -> None:
    a, w = parts["a"], parts["w"]
    shapes = {name: list(part.shape) for name, part in parts.items()}
    fit = a.dim() == w.dim() == 3 and a.dtype in OPERANDS and w.dtype in (a.dtype, torch.int8)
    P, M, K, N = (*a.shape, w.shape[1]) if fit else (0, 0, 0, 0)
    fit = fit and shapes["w"] == [P, N, K] and all(shapes[name] == [P, M, N] for name in {"acc", "out"} & set(shapes))
    fit = fit and parts.get("acc", parts["out"]).dtype == torch.float32
    must = "a [P,M,K] in bf16 or fp16, w [P,N,K] in the same or int8, acc and out [P,M,N]"
    require(fit, f"recording entry {entry.name}: got {shapes} in {a.dtype} and {w.dtype}, must be {must}")
