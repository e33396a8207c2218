"""`moeracle case`: what a case is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from moeracle.files import require_writable, write_atomically
from moeracle.properties.cases.case import Case
from moeracle.ref.weights.weight import Int4Weight

from .console import print_table, say

BAR = 40
MOST_EXPERTS = 64


def tensors(args: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a problem's arguments by name; a weight's parts are called w.packed, w.scale, w.zero."""
    for name, value in args.items():
        if isinstance(value, Int4Weight):
            parts = {"packed": value.packed, "scale": value.scale, "zero": value.zero}
            yield from ((f"{name}.{part}", tensor) for part, tensor in parts.items() if tensor is not None)
        elif isinstance(value, torch.Tensor):
            yield name, value


def digest(tensor: torch.Tensor) -> str:
    """Return the first 16 hex digits of the SHA-256 of a tensor's elements in order, whatever its strides."""
    # One row block at a time: a whole layer's words need no second copy in memory.
    sha = hashlib.sha256()
    rows = tensor.reshape(1, -1) if tensor.dim() < 2 else tensor
    for block in rows:
        sha.update(block.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def run_case(text: str, save: Path | None) -> int:
    """Print what a case is made of, and save its tensors if asked.

    Raises:
        ValueError: the text is not a case, or the file cannot be written.
    """
    case = Case.parse(text)
    require_writable(save)
    problem = case.build()
    named = dict(tensors(problem.args))
    say(str(case))
    rows = [
        (name, str(t.dtype).removeprefix("torch."), _dims(t.shape), _dims(t.stride()), f"{t.nbytes:,}", digest(t))
        for name, t in named.items()
    ]
    print_table(("tensor", "dtype", "shape", "strides", "bytes", "sha256"), rows, text_columns=4)
    for name, value in problem.args.items():
        if isinstance(value, Int4Weight):
            zeros = f"zero points {value.zero_layout}" if value.zero is not None else f"symmetric (u - {value.middle})"
            say(f"{name}: {value.layout}, group size {value.group_size}, {zeros}")
        elif not isinstance(value, torch.Tensor):
            say(f"{name} = {value}")
    if "topk_ids" in problem.args:
        _print_routing(problem.args["topk_ids"], case.E)
    if save is not None:
        _save(save, str(case), named)
        say(f"saved {len(named)} tensors to {save}")
    return 0


def _dims(sizes: Any) -> str:
    return "[" + ", ".join(str(n) for n in sizes) + "]"


def _print_routing(topk_ids: torch.Tensor, E: int) -> None:
    ids = topk_ids.flatten().long()
    counts = torch.bincount(ids[ids >= 0], minlength=E)
    ignored = int((ids < 0).sum())
    used = f"{int((counts > 0).sum())} of {E} experts used, at most {int(counts.max())} rows each"
    say(f"routing: {ids.numel():,} rows, {ignored:,} ignored, {used}")
    most = max(int(counts.max()), 1)
    shown = counts.argsort(descending=True, stable=True)[:MOST_EXPERTS].sort().values.tolist()
    for expert in shown:
        count = int(counts[expert])
        say(f"  expert {expert:>4} {count:>7,} {'#' * -(-count * BAR // most)}".rstrip())
    if len(shown) < E:
        say(f"  … and {E - len(shown)} experts with no more rows than these")


def _save(path: Path, text: str, named: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save

    strides = {name: list(t.stride()) for name, t in named.items()}
    # The format holds contiguous tensors only; the strides that the kernel would see are kept beside them.
    whole = {name: t.detach().cpu().contiguous().clone() for name, t in named.items()}
    metadata = {"case": text, "strides": json.dumps(strides)}
    blob = save(whole, metadata)  # save_file's errors are no OSErrors
    write_atomically(path, blob)
