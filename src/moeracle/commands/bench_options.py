"""The options of `moeracle kernels bench` and `sweep`, and what of them can be wrong before a GPU is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from moeracle.declaration import OPS, Kernel
from moeracle.kernels import bench_report
from moeracle.kernels.bench_cases import SHAPES, Shape, shape_named
from moeracle.properties.optable import ROUTINGS, ZERO_LAYOUT
from moeracle.properties.report import require_writable
from moeracle.ref.errors import unknown
from moeracle.target import OWN, load_target

DTYPES = ("bf16", "fp16")
OPS_BY_DEFAULT = ("grouped_gemm", "padded_gemm", "moe_w4a16")


@dataclass(frozen=True)
class Options:
    """The options of `moeracle kernels bench`, as typed."""

    ops: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    archetypes: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    dtype: str = "bf16"
    zero: str = "sym"
    block: int = 16
    seed: int = 1
    rounds: int = 30
    seconds: float = 0.3
    json: Path | None = None
    plot: Path | None = None
    resume: bool = False
    jobs: int = 1


def require_gpu(what: str) -> str:
    """Return the device to measure on.

    Raises:
        ValueError: torch sees no GPU here.
    """
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"{what}: needs a GPU, and torch sees none here; `moeracle kernels compile` needs none")
    return "cuda"


def chosen(options: Options) -> tuple[list[Kernel], dict[str, Kernel]]:
    """Return the registry's kernels to time, and by op the one to compare them with.

    Raises:
        ValueError: an unknown kernel, or a TARGET that does not load or has no kernel, or several, for these ops.
    """
    # HIP kernels, which are built when first called, only if they are named.
    held = [k for place in places_of(options) for k in load_target(place).kernels]
    for name in options.kernels:
        if name not in {k.name for k in held}:
            needs = registered()[name].needs or "another machine"
            raise ValueError(f"kernel: {name} runs on {needs}, which is not here")
    others = {text: load_target(text).kernels for text in options.against}
    ops = options.ops or tuple(dict.fromkeys(k.op for k in held if k.name in options.kernels))
    ops = ops or tuple(dict.fromkeys(k.op for found in others.values() for k in found)) or OPS_BY_DEFAULT
    ours = [k for k in held if k.op in ops and (not options.kernels or k.name in options.kernels)]
    if not ours:
        what = f"none of {', '.join(options.kernels)}" if options.kernels else "no kernel here"
        raise ValueError(f"kernel: {what} implements {', '.join(ops)}")
    rivals: dict[str, Kernel] = {}
    for text, found in others.items():
        theirs = [k for k in found if k.op in {o.op for o in ours}]
        if len(theirs) != 1:
            names = ", ".join(f"{k.name} ({k.op})" for k in found) or "none"
            ops_asked = ", ".join(dict.fromkeys(k.op for k in ours))
            raise ValueError(f"against: got {text!r} with {names}, must name one kernel of {ops_asked} (module:name)")
        if theirs[0].op in rivals:
            raise ValueError(f"against: got two implementations of {theirs[0].op}, must be one an op")
        rivals[theirs[0].op] = theirs[0]
    return ours, rivals


def places_of(options: Options) -> tuple[str, ...]:
    """Return the registries that the kernels are from."""
    return tuple(OWN) if options.kernels else ("moeracle.kernels",)


def registered() -> dict[str, Any]:
    """Return every entry of the registries by name, also of kernels that need another machine; imports no kernel."""
    return {entry.name: entry for place in OWN.values() for entry in import_module(place).REGISTRY}


def shapes_of(names: Sequence[str]) -> dict[str, Shape]:
    """Return the shapes to measure; every named one if none is asked for."""
    return {name: shape_named(name) for name in names} or dict(SHAPES)


def check(options: Options) -> dict[str, Shape]:
    """Return the shapes, having looked at every option that can be wrong before a GPU is asked for.

    Raises:
        ValueError: an unknown name, or a file that cannot be written.
    """
    shapes = shapes_of(options.shapes)
    named: dict[str, tuple[Sequence[str], Iterable[str]]] = {
        "archetype": (options.archetypes, ROUTINGS),
        "op": (options.ops, ("reference", *OPS)),
        "kernel": (options.kernels, registered()),
        "dtype": ((options.dtype,), DTYPES),
        "zero": ((options.zero,), ZERO_LAYOUT["exllama"]),
    }
    for what, (given, allowed) in named.items():
        for name in given:
            if name not in allowed:
                raise unknown(what, name, allowed)
    for path in (options.json, options.plot):
        require_writable(path)
    if options.plot is not None:
        bench_report.require_matplotlib()
    if options.resume and options.json is None:
        raise ValueError("resume: needs --json, the file to go on with")
    return shapes
