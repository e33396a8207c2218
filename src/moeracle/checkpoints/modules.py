"""From tensors' names to modules and their parts, and to the format that each module is in."""

from __future__ import annotations

import re

from .config import Declared
from .files import TensorFiles
from .formats import FORMATS
from .linear import Linear
from .names import place_of

# What follows a module's name, and the part that it is. The longest is tried first.
SUFFIXES = {
    ".qweight": "qweight", ".qzeros": "qzeros", ".scales": "scales", ".g_idx": "g_idx",
    ".weight_packed": "packed", ".weight_scale": "scale", ".weight_zero_point": "zero_point",
    ".weight_shape": "shape", ".weight_g_idx": "g_idx", ".weight_scale_inv": "scale_inv",
    "._weight_qdata": "qdata", "._weight_scale": "scale", "._weight_zero_point": "zero_point",
    ".weight.__qdata": "qdata", ".weight.__scale": "scale", ".weight.__zero_point": "zero_point",
    ".weight:qdata": "qdata", ".weight:scale": "scale", ".weight:zero_point": "zero_point",
    ".weight": "weight", ".bias": "bias",
}  # fmt: skip
_LONGEST_FIRST = sorted(SUFFIXES, key=len, reverse=True)
# Parameters that hold all experts have no module of their own: their parts are joined by an underscore.
_ALL_EXPERTS = re.compile(r"(.*\bexperts\.(?:gate_up_proj|down_proj|w13|w1|w2))(?:_(\w+))?")
_PARTS = {
    None: "weight", "scale": "scale", "bias": "bias", "blocks": "blocks", "scales": "scales", "packed": "packed",
    "zero_point": "zero_point", "shape": "shape", "weight_packed": "packed", "weight_scale": "scale",
    "weight_zero_point": "zero_point", "weight_shape": "shape", "g_idx": "g_idx",
}  # fmt: skip


def split_name(name: str) -> tuple[str, str]:
    """Return the module and the part that a tensor's name means; a part that nobody knows is the last word."""
    whole = _ALL_EXPERTS.fullmatch(name)
    if whole and whole[2] in _PARTS:
        return whole[1], _PARTS[whole[2]]
    for suffix in _LONGEST_FIRST:
        if name.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], SUFFIXES[suffix]
    module, _, last = name.rpartition(".")
    return module, last


def find_linears(files: TensorFiles, declared: Declared, reading: str) -> tuple[dict[str, Linear], list[str]]:
    """Return the linears by module, and the names of the tensors that belong to none."""
    parts: dict[str, dict[str, str]] = {}
    for name in files.names():
        module, part = split_name(name)
        parts.setdefault(module, {})[part] = name
    linears: dict[str, Linear] = {}
    others: list[str] = []
    for module, held in parts.items():
        kind = next((kind for kind in FORMATS if kind.recognise(files, held)), None)
        if kind is None or _is_no_matrix(files, module, held):
            others += held.values()
        else:
            linears[module] = kind(files, module, held, declared, reading)
    return linears, others


def _is_no_matrix(files: TensorFiles, module: str, parts: dict[str, str]) -> bool:
    """Say whether a module's weight is no matrix, nor all experts' in 3D: a norm's, or a convolution's."""
    if not parts.keys() <= {"weight", "bias"}:
        return False
    dimensions = len(files.shape(parts["weight"]))
    return dimensions != 2 and (dimensions != 3 or not place_of(module).kind.startswith("expert "))
