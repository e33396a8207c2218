"""load_checkpoint: a checkpoint's linears, and its layers' experts as the Int4Weights that kernels take."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path

import torch

from moeracle.ref.errors import require, unknown
from moeracle.ref.weights.stored import V1_READINGS

from .config import Declared, read_config
from .experts import Layer
from .files import INDEX, TensorFiles, check_index, find_files, shown
from .linear import Linear
from .modules import find_linears
from .names import place_of


class Checkpoint:
    """A checkpoint whose headers and config were read; tensors are read when they are asked for.

    Args:
        path: the folder or file that was given.
        files: its tensors.
        declared: what the config says.
        reading: how zero points of GPTQ v1 are read, one of V1_READINGS.
    """

    def __init__(self, path: Path, files: TensorFiles, declared: Declared, reading: str) -> None:
        self.path, self.files, self.declared, self.reading = path, files, declared, reading
        self.linears, self.others = find_linears(files, declared, reading)

    def linear(self, module: str) -> Linear:
        """Return a linear by its module's name.

        Args:
            module: such as "model.layers.0.mlp.experts.3.down_proj".
        Raises:
            ValueError: there is none; the nearest is suggested.
        """
        if module not in self.linears:
            raise unknown(f"{self.path}: module", module, self.linears)
        return self.linears[module]

    def weight(self, name: str) -> torch.Tensor:
        """Return a weight as its format's own code gives it, rounded once to its dtype: [N, K], or [E, N, K].

        Args:
            name: a module's, with or without ".weight"; an expert's projection also where a tensor holds all experts;
                or a tensor's that belongs to no linear.
        Raises:
            ValueError: there is none; the nearest is suggested.
        """
        module = name.removesuffix(".weight")
        linear = self.linears.get(module)
        if linear is not None:
            experts = linear.sizes.experts
            return linear.weight() if experts is None else torch.stack([linear.weight(e) for e in range(experts)])
        place = place_of(module)
        if place.layer in self.layers and place.expert is not None:
            return self.layer(place.layer).rows(place.expert, place.kind.removeprefix("expert ")).weight()
        return self.files.read(name) if name in self.files else self.linear(module).weight()

    @cached_property
    def layers(self) -> list[int]:
        """The numbers of the layers that have experts, in the stack that has most of them."""
        return sorted({n for stem, n in self._expert_layers if stem == self._stem})

    def layer(self, n: int) -> Layer:
        """Return a layer with experts by its number.

        Args:
            n: one of `layers`.
        Raises:
            ValueError: it has no experts, or is not there.
        """
        held = self.layers
        require(bool(held), f"{self.path}: has no layer with experts")
        if n not in held:
            runs = (
                f"{held[0]}..{held[-1]}"
                if held == list(range(held[0], held[-1] + 1))
                else ", ".join(map(str, held[:16]))
            )
            raise ValueError(f"layer: got {n}, must be one of {runs}, which have experts")
        return Layer(n, self._expert_layers[self._stem, n], self.declared)

    @cached_property
    def format(self) -> str:
        """The method and the packing of its quantized linears, or the dtype of most where none is quantized."""
        kinds = Counter(linear.format for linear in self.linears.values() if linear.quantized and linear.format)
        if not kinds:
            labels = Counter(linear.label for linear in self.linears.values())
            return labels.most_common(1)[0][0] if labels else "empty"
        packing = kinds.most_common(1)[0][0]
        version = f" {self.declared.zeros}" if packing == "gptq" and self.declared.zeros else ""
        method = self.declared.method
        return f"{method} in the packing of {packing}{version}" if method == "auto-round" else f"{packing}{version}"

    @cached_property
    def _expert_layers(self) -> dict[tuple[str, int], list[Linear]]:
        found: dict[tuple[str, int], list[Linear]] = {}
        for linear in self.linears.values():
            place = linear.place
            if place.layer is not None and place.kind.startswith("expert "):
                found.setdefault((place.stem, place.layer), []).append(linear)
        return found

    @cached_property
    def _stem(self) -> str:
        counts = Counter(stem for stem, _ in self._expert_layers)
        return counts.most_common(1)[0][0] if counts else ""


def load_checkpoint(path: str | Path, *, zeros: str | None = None) -> Checkpoint:
    """Open a checkpoint: its headers and config are read and checked, its tensors only when asked for.

    Args:
        path: a folder, a .safetensors file, or an index of shards. Pickled files are refused.
        zeros: how stored zero points of GPTQ v1 are read: one of V1_READINGS. None: as the package that wrote the file
            reads them, word_carry for GPTQModel, plain for AutoRound, else modulo; they differ only at a stored 15.

    Returns:
        Checkpoint; `.layer(n).experts(0, 1)` gives w13 and w2 as Int4Weights.

    Raises:
        ValueError: a file is missing, cut short or lies about its sizes, is pickled, or has an unknown method.

    Source: docs/checkpoints.md.
    """
    given = Path(path)
    folder, names = find_files(given)
    declared = read_config(folder)
    if zeros is not None and zeros not in V1_READINGS:
        raise unknown("zeros", zeros, V1_READINGS)
    files = TensorFiles(folder, names)
    return Checkpoint(given, files, declared, zeros or reading_of(declared.writer))


def reading_of(writer: str) -> str:
    """Return how the package that wrote a GPTQ v1 file reads its zero points."""
    lowered = writer.lower()
    return "word_carry" if "gptqmodel" in lowered else "plain" if "auto-round" in lowered else "modulo"


def index_problems(checkpoint: Checkpoint) -> list[str]:
    """Return what the index of shards says that the shards do not hold, in sentences."""
    given = checkpoint.path
    index = given if given.name.endswith(".index.json") else checkpoint.files.folder / INDEX
    several = given.is_dir() or given == index
    return [shown(text) for text in check_index(index, checkpoint.files)] if several and index.exists() else []
