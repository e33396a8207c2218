"""Small checkpoints for tests: codes packed by the plain definition, written as each format's files are."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from moeracle.ref.weights.layouts import INTERLEAVED, SEQUENTIAL, pack_plain

SHARED = Path(__file__).resolve().parents[3] / "shared" / "checkpoints"
FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "checkpoints"


class Made(NamedTuple):
    """A quantized matrix: uint8 codes [N, K], scale and uint8 zero [N, groups], columns a group."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    group: int

    def weight(self, order: torch.Tensor | None = None) -> torch.Tensor:
        """Return the weights in float64, by the definition."""
        column = torch.arange(self.codes.shape[1]) // self.group if order is None else order
        return (self.codes.double() - self.zero.double()[:, column]) * self.scale.double()[:, column]


def quantized(N: int, K: int, group: int, seed: int, *, asym: bool = True, dtype: torch.dtype = torch.float16) -> Made:
    """Quantize normal weights as formats do, so that scales, codes and zero points belong together."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(N, K, generator=generator, dtype=torch.float64) * 0.05
    grouped = w.unflatten(1, (-1, group))
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    width = high - low if asym else 2 * torch.maximum(-low, high)
    scale = (width / 15).to(dtype)
    zero = (-low / scale.double()).round().clamp(1, 15) if asym else torch.full_like(low, 8)
    codes = (grouped / scale.double()[..., None] + zero[..., None]).round().clamp(0, 15)
    return Made(codes.flatten(1).to(torch.uint8), scale, zero.to(torch.uint8), group)


def words(codes: torch.Tensor, shifts: tuple[int, ...] = SEQUENTIAL) -> torch.Tensor:
    """Pack codes along the last dimension into int32 words, by the definition."""
    packed = pack_plain(codes.contiguous(), shifts)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def gptq(made: Made, *, v1: bool = True, order: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Return a matrix in GPTQ's packing."""
    zero = made.zero - 1 if v1 else made.zero
    column = torch.arange(made.codes.shape[1]) // made.group if order is None else order
    return {
        "qweight": words(made.codes).mT.contiguous(),
        "qzeros": words(zero.mT),
        "scales": made.scale.mT.contiguous(),
        "g_idx": column.to(torch.int32),
    }


def awq(made: Made, shifts: tuple[int, ...] = INTERLEAVED) -> dict[str, torch.Tensor]:
    """Return a matrix in AWQ's packing, or with rows in another order in the words."""
    parts = {"qweight": words(made.codes.mT, shifts), "qzeros": words(made.zero.mT, shifts)}
    return {**parts, "scales": made.scale.mT.contiguous()}


def compressed(made: Made, *, symmetric: bool = False) -> dict[str, torch.Tensor]:
    """Return a matrix as compressed-tensors packs it."""
    parts = {
        "weight_packed": words(made.codes),
        "weight_scale": made.scale.contiguous(),
        "weight_shape": torch.tensor(made.codes.shape),
    }
    return parts if symmetric else {**parts, "weight_zero_point": words(made.zero.mT).mT.contiguous()}


GPTQ_V1 = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}
GPTQ_V2 = {**GPTQ_V1, "checkpoint_format": "gptq_v2"}
AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32, "zero_point": True}
BARE_AUTO_ROUND = {
    "quant_method": "auto-round",
    "packing_format": "auto_round",
    "bits": 4,
    "group_size": 32,
    "sym": False,
}
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
    "config_groups": {"g": {"targets": ["Linear"], "weights": {
        "num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": False}}},
}  # fmt: skip


def layer_of(
    make: Any, *, hidden: int = 64, wide: int = 32, experts: int = 2, seed: int = 0, **options: Any
) -> dict[str, Any]:
    """Return {module: Made} of one layer's experts, and write-ready tensors through `make` (gptq, awq, compressed).

    Args:
        make: packs one Made.
        hidden, wide, experts: sizes.
        seed: of the weights.
        options: of `quantized`.
    """
    made = {}
    for e in range(experts):
        for i, (name, N, K) in enumerate((("gate", wide, hidden), ("up", wide, hidden), ("down", hidden, wide))):
            made[f"model.layers.0.mlp.experts.{e}.{name}_proj"] = quantized(N, K, 32, 100 * seed + 3 * e + i, **options)
    return {"made": made, "tensors": {f"{m}.{part}": t for m, q in made.items() for part, t in make(q).items()}}


def write(
    folder: Path, tensors: Mapping[str, torch.Tensor], quantization: Mapping[str, Any] | None, **config: Any
) -> Path:
    """Write model.safetensors and config.json; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.clone().contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    said = {"model_type": "qwen3_moe", "hidden_size": 64, "dtype": "float16", **config}
    said |= {"quantization_config": quantization} if quantization is not None else {}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def raw_file(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """Write a safetensors file with any header and length field."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def sparse_file(path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    """Write a safetensors file whose data are a hole of zeros, and return how large it says it is."""
    sizes = {"I32": 4, "F16": 2, "BF16": 2}
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        size = sizes[dtype] * int(torch.Size(shape).numel())
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw_file(path, header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + end)
    return path.stat().st_size


def digests(w: torch.Tensor) -> set[str]:
    """Return the sha256 of a tensor's bytes, and that with every zero positive, as an identity product has it."""
    positive = torch.where(w == 0, torch.zeros_like(w), w)
    return {hashlib.sha256(t.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest() for t in (w, positive)}


def differing(folder: Path) -> tuple[int, list[str]]:
    """Return how many weights a folder's expected.json holds, and those that the loader reads otherwise."""
    from moeracle.checkpoints import load_checkpoint

    checkpoint, expected = load_checkpoint(folder), json.loads((folder / "expected.json").read_text())
    wrong = []
    for name, of in expected.items():
        w = checkpoint.weight(name)
        right = of["sha256"] in digests(w) and list(w.shape) == of["shape"] and str(w.dtype) == f"torch.{of['dtype']}"
        wrong += [] if right else [name]
    return len(expected), wrong
