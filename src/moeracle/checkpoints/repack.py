"""Writing a checkpoint in another format, or its experts in a kernel's layout: exactly, or not at all.

What is written is read back and compared, bit for bit, before it gets its name; a folder that is there already is never
touched.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moeracle.ref.errors import require, unknown
from moeracle.ref.weights.layouts import LAYOUTS, LAYOUTS8
from moeracle.ref.weights.stored import StoredWeight
from moeracle.ref.weights.weight import OF_BITS, Int4Weight

from .checkpoint import Checkpoint, load_checkpoint
from .encode import TARGETS, Module
from .experts import Layer, Rows
from .files import INDEX, SINGLE, TensorFiles, read_json, shown
from .formats.dense import DenseLinear

KEPT = re.compile(
    r"(tokenizer|vocab|merges|special_tokens|added_tokens|generation_config|chat_template|preprocessor)[\w.-]*|LICENSE[\w.-]*"
)
SHARD_BYTES = 1 << 30
NAMES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
Tick = Callable[[str, int, int], None]


@dataclass
class Repacked:
    """What was written.

    Args:
        folder: where.
        to: the format or layout.
        weights: how many were repacked.
        kept: tensors that were copied as they are.
        files, bytes: of safetensors.
    """

    folder: Path
    to: str
    weights: int = 0
    kept: int = 0
    files: int = 0
    bytes: int = 0


def check_target(to: str) -> None:
    """Raise ValueError unless a name is a format's or a layout's."""
    names = dict.fromkeys((*TARGETS, *LAYOUTS, *LAYOUTS8))
    if to not in names:
        raise unknown("to", to, names)


def repack(checkpoint: Checkpoint, to: str, folder: Path, *, tick: Tick | None = None) -> Repacked:
    """Write a checkpoint in another format, or its experts in a kernel's layout.

    Args:
        checkpoint: what to write.
        to: one of TARGETS, or one of LAYOUTS, of 8-bit experts one of LAYOUTS8.
        folder: that is not there yet; its parent is.
        tick: called with what is done, how many weights, and of how many.
    Returns:
        Repacked.
    Raises:
        ValueError: the folder is there, nothing is quantized, or the format cannot hold every bit; nothing is written.
    """
    check_target(to)
    require(not folder.exists(), f"out: {folder} is there already, must be a new folder")
    require(folder.resolve().parent.is_dir(), f"out: {folder.resolve().parent} is not there")
    weights = [(name, rows) for name, rows in modules_of(checkpoint) if rows.linear.quantized]
    require(bool(weights), f"{checkpoint.path}: holds no quantized weight; nothing to repack")
    done = Repacked(folder, to)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.resolve().parent))
    try:
        (_write_format if to in TARGETS else _write_layout)(checkpoint, to, temporary, done, tick)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return done


def modules_of(checkpoint: Checkpoint) -> Iterator[tuple[str, Rows]]:
    """Yield every linear by the name that a file with one tensor an expert has for it."""
    for module, linear in checkpoint.linears.items():
        if linear.place.kind.startswith("expert ") and linear.place.expert is None and linear.quantized:
            layer = Layer(linear.place.layer or 0, [linear], checkpoint.declared)
            projections = ("down",) if linear.place.kind == "expert down" else ("gate", "up")
            if linear.place.kind in ("expert gate", "expert up"):
                projections = (linear.place.kind.removeprefix("expert "),)
            for e in range(layer.num_experts):
                for projection in projections:
                    yield f"{module.rpartition('.')[0]}.{e}.{NAMES[projection]}", layer.rows(e, projection)
        else:
            yield module, Rows(linear)


class _Shards:
    """Tensors on their way into files of at most SHARD_BYTES each."""

    def __init__(self, folder: Path, metadata: dict[str, str]) -> None:
        self.folder, self.metadata = folder, metadata
        self.held: dict[str, torch.Tensor] = {}
        self.size, self.files, self.names = 0, list[Path](), list[list[str]]()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self.held and self.size + size > SHARD_BYTES:
            self._flush()
        require(name not in self.held, f"{shown(name)}: would be written twice")
        self.held[name], self.size = tensor.contiguous(), self.size + size

    def _flush(self) -> None:
        from safetensors.torch import save_file

        file = self.folder / f"part-{len(self.files):05d}.safetensors"
        save_file(self.held, file, metadata=self.metadata)
        self.files.append(file)
        self.names.append(list(self.held))
        self.held, self.size = {}, 0

    def close(self, done: Repacked) -> None:
        """Give the files their names, and write the index of several."""
        if self.held:
            self._flush()
        weight_map: dict[str, str] = {}
        total = 0
        for i, (file, names) in enumerate(zip(self.files, self.names, strict=True)):
            several = f"model-{i + 1:05d}-of-{len(self.files):05d}.safetensors"
            final = self.folder / (SINGLE if len(self.files) == 1 else several)
            file.rename(final)
            weight_map |= dict.fromkeys(names, final.name)
            total += final.stat().st_size
        if len(self.files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self.folder / INDEX).write_text(json.dumps(index, indent=1))
        done.files, done.bytes = len(self.files), total


def _write_format(checkpoint: Checkpoint, to: str, folder: Path, done: Repacked, tick: Tick | None) -> None:
    target, shards, modules = TARGETS[to], _Shards(folder, {"format": "pt"}), list[Module]()
    linears = list(modules_of(checkpoint))
    symmetric = all(_is_symmetric(rows) for _, rows in linears if rows.linear.quantized)
    copied: list[str] = list(checkpoint.others)
    for i, (name, rows) in enumerate(linears):
        if not rows.linear.quantized:
            require(
                isinstance(rows.linear, DenseLinear), f"{shown(name)}: is {rows.linear.label}, which cannot be repacked"
            )
            modules.append(Module(name))
            copied += rows.linear.parts.values()
            continue
        stored = rows.stored()
        reason = target.why_not(stored)
        require(not reason, f"{shown(name)}: has {reason}; {to} would lose it")
        for part, tensor in target.encode(stored, symmetric).items():
            shards.add(f"{name}.{part}", tensor)
        if "bias" in rows.linear.parts:
            copied.append(rows.linear.parts["bias"])
        in_order = stored.group_of is not None
        modules.append(Module(name, stored.bits, stored.group_size, stored.groups == 1, symmetric, in_order))
        done.weights += 1
        if tick:
            tick("repacking", i + 1, len(linears))
    for name in copied:
        shards.add(name, checkpoint.files.read(name))
    done.kept = len(copied)
    shards.close(done)
    _write_config(checkpoint, folder, target.config(modules))
    for file in checkpoint.files.folder.iterdir():
        if KEPT.fullmatch(file.name) and file.is_file():
            shutil.copyfile(file, folder / file.name)
    _verify(dict(linears), copied, checkpoint, load_checkpoint(folder), tick)


def _write_config(checkpoint: Checkpoint, folder: Path, quantization: dict[str, Any]) -> None:
    before = checkpoint.files.folder / "config.json"
    config = read_json(before) if before.exists() else {}
    config.pop("compression_config", None)
    if isinstance(config.get("text_config"), dict):
        config["text_config"].pop("quantization_config", None)
    config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _is_symmetric(rows: Rows) -> bool:
    """Say whether every zero point is the middle."""
    zero = rows.linear.zeros(rows.expert)
    return zero is None or bool((zero == 1 << (rows.linear.sizes.bits - 1)).all())


def _verify(
    linears: dict[str, Rows], copied: list[str], before: Checkpoint, after: Checkpoint, tick: Tick | None
) -> None:
    """Read back what was written and compare it bit for bit."""
    for i, (name, rows) in enumerate(linears.items()):
        if rows.linear.quantized:
            a, b = rows.stored(), after.linear(name).stored()
            same = (
                torch.equal(a.codes, b.codes)
                and torch.equal(a.columns(), b.columns())
                and _same_values(a.scale, b.scale)
                and torch.equal(_zeros(a), _zeros(b))
            )
            require(same, f"{shown(name)}: reads back otherwise than it was; nothing was kept")
        if tick:
            tick("verifying", i + 1, len(linears))
    for name in copied:
        same = _same_bits(before.files.read(name), after.files.read(name))
        require(same, f"{shown(name)}: reads back otherwise than it was; nothing was kept")


def _zeros(w: StoredWeight) -> torch.Tensor:
    return torch.full(w.scale.shape, w.middle, dtype=torch.int16) if w.zero is None else w.zero


def _same_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Say whether two tensors hold the same numbers, signs of zeros and NaN included, whatever their dtypes."""
    return _same_bits(a.to(torch.float32), b.to(torch.float32))


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))


def _write_layout(checkpoint: Checkpoint, to: str, folder: Path, done: Repacked, tick: Tick | None) -> None:
    """Write each layer's w13 and w2 as a kernel reads them, and a manifest with which they are Int4Weights again."""
    layers = checkpoint.layers
    require(bool(layers), f"{checkpoint.path}: has no layer with experts; {to} is a layout of experts")
    shards, manifest = _Shards(folder, {"layout": to}), dict[str, Any]()
    for i, n in enumerate(layers):
        experts = checkpoint.layer(n).experts(layout=to, sort=True)
        for name, weight, columns in (("w13", experts.w13, experts.columns13), ("w2", experts.w2, experts.columns2)):
            key = f"layers.{n}.{name}"
            manifest[key] = {
                "layout": weight.layout, "zero_layout": None if weight.zero is None else weight.zero_layout,
                "group_size": weight.group_size, "shape": list(weight.shape), "columns_sorted": columns is not None,
                **({} if weight.bits == 4 else {"bits": weight.bits}),
            }  # fmt: skip
            parts = {"packed": weight.packed, "scale": weight.scale, "zero": weight.zero, "columns": columns}
            for part, tensor in parts.items():
                if tensor is not None:
                    shards.add(f"{key}.{part}", tensor)
            done.weights += 1
        if tick:
            tick("repacking", i + 1, len(layers))
    shards.close(done)
    (folder / "layout.json").write_text(json.dumps(manifest, indent=1))
    files = TensorFiles(folder, sorted(file.name for file in folder.glob("*.safetensors")))
    for i, n in enumerate(layers):
        experts = checkpoint.layer(n).experts(layout=to, sort=True)
        for name, weight in (("w13", experts.w13), ("w2", experts.w2)):
            same = _same_weight(weight, read_layout(files, manifest, f"layers.{n}.{name}"))
            require(same, f"layers.{n}.{name}: reads back otherwise than it was; nothing was kept")
        if tick:
            tick("verifying", i + 1, len(layers))


def read_layout(files: TensorFiles, manifest: dict[str, Any], key: str) -> Int4Weight:
    """Return a weight that `repack` wrote in a layout.

    Args:
        files: of the folder.
        manifest: what layout.json holds.
        key: such as "layers.3.w13".
    """
    said = manifest[key]
    zero = files.read(f"{key}.zero") if said["zero_layout"] is not None else None
    packed, scale = files.read(f"{key}.packed"), files.read(f"{key}.scale")
    kind = OF_BITS[said.get("bits", 4)]
    return kind(packed, scale, zero, said["layout"], said["group_size"], said["zero_layout"] or "unpacked")


def _same_weight(a: Int4Weight, b: Int4Weight) -> bool:
    zeros = (a.zero is None) == (b.zero is None) and (a.zero is None or b.zero is None or torch.equal(a.zero, b.zero))
    return zeros and torch.equal(a.packed, b.packed) and _same_bits(a.scale, b.scale)
