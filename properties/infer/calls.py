"""Running a kernel on probes: on its device, counted, and recorded or replayed call by call.

A recording is one file: a JSON line, then the outputs of each call, packed. Probing is adaptive but deterministic: the
same answers lead to the same questions, so a replay asks in the same order, and each question's digest is checked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch

from moeracle.files import (
    FIRST_ERROR,
    MOST_UNPACKED,
    OPEN,
    from_base64,
    parse_json,
    read_bytes,
    unpack,
    write_atomically,
)
from moeracle.ref.contracts.contract import PRESETS, Contract
from moeracle.ref.errors import require
from moeracle.ref.weights.weight import Int4Weight

from ..cases.case import Case
from ..cases.kernel_like import KernelLike, words_read
from ..cases.optable import ROW_ORDERS
from ..cases.words import stored_rows, with_rows
from ..compare.shapes import as_outputs, holds_values
from ..trial.call import call, ending_of

FORMAT = 1
OF_GEMM = ("weight path", "determinism", "accumulator", "order of sums", "instruction")
PHASES = (*OF_GEMM, *(f"GEMM2: {phase}" for phase in OF_GEMM), "layer", "verifying")
Outputs = dict[str, torch.Tensor]
Tick = Callable[[str, int, int], None]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class RecordedCalls:
    """What a recording must hold: the calls' digests, and of each stage its dtype, shape and place in `outputs`."""

    op: str
    kernel: str
    site: str
    refused: list[str]
    calls: Annotated[list[tuple[str, dict[str, tuple[Literal["bf16", "fp16", "fp32"], list[int], int]]]], FIRST_ERROR]
    outputs: str
    gpu: str = "recorded"
    capability: str = ""
    declared: dict[str, str] = field(default_factory=dict)
    asks_parts: bool = False
    asks_longer: bool = False

    __pydantic_config__: ClassVar[Any] = OPEN


class ProbeError(ValueError):
    """The kernel did not answer a probe: it raised, or returned another form; one line."""


class Calls:
    """Calls a kernel with probe arguments.

    Args:
        kernel: a record with op, fn and device.
        tick: called with the progress as (phase and rows so far, number of the phase, how many there are).
    """

    def __init__(self, kernel: KernelLike, tick: Tick | None = None) -> None:
        self.kernel, self.tick, self.phase = kernel, tick or (lambda phase, done, total: None), PHASES[0]
        self.count, self.rows, self.repeats = 0, 0, True
        self.only: Collection[str] = ()
        self.asks_parts = self.asks_longer = True  # a recording made before they were asked has no answers
        self.refused: list[str] = []

    @property
    def capability(self) -> str:
        """The NVIDIA GPU's compute capability, like "90", or "" elsewhere."""
        device = str(self.kernel.device)
        if not device.startswith("cuda") or not torch.cuda.is_available() or torch.version.hip is not None:
            return ""
        return "".join(map(str, torch.cuda.get_device_capability(device)))

    def takes(self, case: Case) -> bool:
        """Say whether the kernel takes a case; what it refuses is kept."""
        if self.kernel.why_not(case) is None:
            return True
        self.refused.append(str(case))
        return False

    def run(self, args: dict[str, Any], times: int = 0, only: Collection[str] = ()) -> Outputs:
        """Return the stages that the kernel stored, on the CPU.

        Args:
            args: the op's arguments by name, in order, on the CPU.
            times: run that many times more, and note in `repeats` whether the bits are the same.
            only: the stages that are asked for; () for all.
        Raises:
            ProbeError: it raised, or returned what the op does not.
        """
        self.count, self.only = self.count + 1, only
        self.rows += len(next(iter(args.values())))
        self.tick(f"{self.phase}, {self.rows:,} rows", PHASES.index(self.phase) + 1, len(PHASES))
        outputs = self._answer(args)
        for run in range(times):
            again = self._answer(args, run + 1)
            self.repeats &= all(torch.equal(_bits(again[name]), _bits(outputs[name])) for name in outputs)
        return outputs

    def _answer(self, args: dict[str, Any], run: int = 0) -> Outputs:
        device = self.kernel.device
        order = next((word for word in words_read(self.kernel) if word in ROW_ORDERS), None)
        if order is not None and isinstance(args.get("w13"), Int4Weight):
            args = {**args, "w13": with_rows(args["w13"], stored_rows(order, args["w13"].N))}
        there = {name: value.to(device) if hasattr(value, "to") else value for name, value in args.items()}
        try:
            output = as_outputs(self.kernel.op, call(self.kernel, there, run % 2))
        except Exception as error:  # a user's kernel may raise anything
            raise ProbeError(f"{self.kernel.name} {ending_of(error)[1][0]}, on a probe") from error
        if isinstance(output, str):
            raise ProbeError(f"{self.kernel.name} {output}")
        output = {name: value for name, value in output.items() if name in self.only or not self.only}
        known = {name: value for name, value in output.items() if holds_values(value)}
        if order is not None and "h" in known:
            known["h"] = known["h"][:, stored_rows(order, known["h"].shape[1], known["h"].device).argsort()]
        if len(known) < len(output) or any(value.dtype not in DTYPES.values() for value in known.values()):
            raise ProbeError(f"{self.kernel.name} returned no strided tensor of a float dtype on a device")
        return {name: value.detach().cpu() for name, value in known.items()}


class RecordingCalls(Calls):
    """Calls that also keep every answer."""

    def __init__(self, kernel: KernelLike, tick: Tick | None = None) -> None:
        super().__init__(kernel, tick)
        self.kept: list[tuple[str, Outputs]] = []

    def _answer(self, args: dict[str, Any], run: int = 0) -> Outputs:
        outputs = super()._answer(args, run)
        self.kept.append((digest(args), {name: value.clone() for name, value in outputs.items()}))
        return outputs

    def save(self, path: Path, header: dict[str, Any]) -> None:
        """Write the recording; the file appears whole or not at all."""
        blob, calls = bytearray(), []
        for key, outputs in self.kept:
            stages = {}
            for name, value in outputs.items():
                kind = next(k for k, v in DTYPES.items() if v == value.dtype)
                stages[name] = [kind, list(value.shape), len(blob)]
                blob += _bits(value.contiguous()).numpy().tobytes()
            calls.append([key, stages])
        packed = base64.b64encode(lzma.compress(bytes(blob), preset=9 | lzma.PRESET_EXTREME)).decode()
        known = {"op": self.kernel.op, "kernel": self.kernel.name, "refused": self.refused, "asks_parts": True}
        known["asks_longer"] = True
        whole = {"format": FORMAT, **known, **header, "calls": calls, "outputs": packed}
        text = json.dumps(whole, separators=(",", ":"))
        write_atomically(path, text + "\n")


@dataclass(frozen=True)
class RecordedKernel:
    """Stands for the kernel whose answers were recorded."""

    op: str
    name: str
    device: str = "recorded"
    contract: Contract = PRESETS["grouped"]
    layout: str | None = None
    zeros: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()

    def fn(self, *args: Any) -> Any:
        """Refuse: nothing is here to run."""
        raise RuntimeError(f"{self.name} is a recording")

    def why_not(self, case: Case) -> str | None:
        """Take every case: ReplayedCalls knows what was refused."""
        return None

    def contract_for(self, case: Case) -> Contract:
        """Return what stands for a contract: a recording is probed, never judged."""
        return self.contract


class ReplayedCalls(Calls):
    """Calls answered from a recording."""

    def __init__(self, path: Path) -> None:
        self.header = read_header(path)
        where = f"recording {path}: its outputs"
        packed = from_base64(self.header.outputs, where)
        self.content = bytearray(unpack(packed, "xz", MOST_UNPACKED, where))
        super().__init__(RecordedKernel(self.header.op, self.header.kernel, f"{self.header.gpu}, recorded"))
        self.path, self.at = path, 0
        self.asks_parts, self.asks_longer = self.header.asks_parts, self.header.asks_longer
        for key, stages in self.header.calls:
            for kind, shape, start in stages.values():
                size = DTYPES[kind].itemsize
                fits = min([start, *shape]) >= 0 and start + size * prod(shape) <= len(self.content)
                require(fits, f"recording {path}: call {key} has more values than there are; record it again")

    def takes(self, case: Case) -> bool:
        """Say whether the kernel took a case."""
        return str(case) not in self.header.refused

    @property
    def capability(self) -> str:
        """The GPU's on which it was recorded."""
        return self.header.capability.replace(".", "")

    def _answer(self, args: dict[str, Any], run: int = 0) -> Outputs:
        again = "the probes are not those that were recorded; record it again"
        calls = self.header.calls
        require(self.at < len(calls), f"recording {self.path}: holds {len(calls)} calls, {again}")
        key, stages = calls[self.at]
        require(key == digest(args), f"recording {self.path}: call {self.at} has another digest, {again}")
        self.at += 1
        outputs = {}
        for name, (kind, shape, start) in stages.items():
            dtype = DTYPES[kind]
            count = prod(shape)
            flat = torch.frombuffer(self.content, dtype=dtype, count=count, offset=start) if count else None
            outputs[name] = torch.empty(shape, dtype=dtype) if flat is None else flat.clone().reshape(shape)
        return outputs


def read_header(path: Path) -> RecordedCalls:
    """Return what a recording holds.

    Raises:
        ValueError: in one line: no file, not JSON, another format version, or a field that is missing or wrong.
    """
    where, data = f"recording: {path}", read_bytes(path, "recording")
    version = parse_json(data, dict[str, Any], where).get("format")
    require(version == FORMAT, f"recording: got format {version!r} in {path}, must be {FORMAT}; record it again")
    return parse_json(data, RecordedCalls, where)


def digest(args: dict[str, Any]) -> str:
    """Return a short digest of a call's arguments."""
    h = hashlib.sha256()
    for name, value in args.items():
        parts: list[Any] = [value]
        if isinstance(value, Int4Weight):
            parts = [value.packed, value.scale, value.zero]
        for part in parts:
            h.update(name.encode())
            raw = _bits(part.contiguous()).numpy().tobytes() if isinstance(part, torch.Tensor) else repr(part).encode()
            h.update(raw)
    return h.hexdigest()[:16]


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
