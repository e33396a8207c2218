"""What can be wrong with the options of `moeracle kernels bench` and `sweep`, before a GPU is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

from moeracle.bench.problems import points
from moeracle.files import read_json, require_writable
from moeracle.kernels.bench import report as bench_report
from moeracle.kernels.bench.cases import ARCHETYPES, SHAPES, Shape, shape_named
from moeracle.kernels.entry import EXLLAMA_ZEROS
from moeracle.properties.cases.optable import ROUTINGS
from moeracle.properties.cases.record import record_of
from moeracle.ref.errors import unknown
from moeracle.target.declaration import OPS, Kernel
from moeracle.target.load import OWN, load_target, place_of

from ..loading import load, release
from ..options import BenchOptions as Options
from . import bench_record

DTYPES = ("bf16", "fp16")
MOST_NAMED = 6  # of the kernels of a TARGET that names none
MODIFIERS = tuple(dict.fromkeys(f for op in OPS.values() for f in (*op.routing_flags, *op.data_flags)))
OPS_BY_DEFAULT = tuple(name for name in OPS if record_of(name).timed_by_default)


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
    return matched(options, held, {text: _loaded(text) for text in options.against})


def matched(
    options: Options, held: Sequence[Any], others: Mapping[str, Sequence[Any]]
) -> tuple[list[Any], dict[str, Any]]:
    """Return which of the kernels held are to be timed, and by op the one to compare them with.

    Args:
        options: ops, kernels.
        held: whatever has a name and an op.
        others: by its text, what each TARGET of --against holds.
    Raises:
        ValueError: nothing implements the ops, or a TARGET has no kernel, or several, for them.
    """
    ops = options.ops or tuple(dict.fromkeys(k.op for k in held if k.name in options.kernels))
    ops = ops or tuple(dict.fromkeys(k.op for found in others.values() for k in found)) or OPS_BY_DEFAULT
    ours = [k for k in held if k.op in ops and (not options.kernels or k.name in options.kernels)]
    if not ours:
        what = f"none of {', '.join(options.kernels)}" if options.kernels else "no kernel here"
        raise ValueError(f"kernel: {what} implements {', '.join(ops)}")
    baselines: dict[str, Any] = {}
    for text, found in others.items():
        theirs = [k for k in found if k.op in {o.op for o in ours}]
        if len(theirs) != 1:
            names = ", ".join(f"{k.name} ({k.op})" for k in (theirs or found)[:MOST_NAMED]) or "none"
            names += f" and {len(theirs or found) - MOST_NAMED} more" if len(theirs or found) > MOST_NAMED else ""
            ops_asked = ", ".join(dict.fromkeys(k.op for k in ours))
            raise ValueError(f"against: got {text!r} with {names}, must name one kernel of {ops_asked} (module:name)")
        if theirs[0].op in baselines:
            raise ValueError(f"against: got two implementations of {theirs[0].op}, must be one an op")
        baselines[theirs[0].op] = theirs[0]
    return ours, baselines


def places_of(options: Options) -> tuple[str, ...]:
    """Return the registries that the kernels are from."""
    return tuple(OWN) if options.kernels else ("moeracle.kernels",)


def registered() -> dict[str, Any]:
    """Return every entry of the registries by name, also of kernels that need another machine; imports no kernel."""
    return {entry.name: entry for place in OWN.values() for entry in import_module(place).REGISTRY}


def shapes_of(names: Sequence[str]) -> dict[str, Shape]:
    """Return the shapes to measure; every named one if none is asked for."""
    return {name: shape_named(name) for name in names} or dict(SHAPES)


def check(options: Options, alone: Sequence[str] = ()) -> dict[str, Shape]:
    """Return the shapes, having looked at every option that can be wrong before a GPU is asked for.

    Args:
        options: as typed.
        alone: names that the command takes for an op, but not beside others.
    Raises:
        ValueError: an unknown name, sizes that no case has, a TARGET that does not load or does not fit, or a file that
            cannot be written or gone on with.
    """
    shapes = shapes_of(options.shapes)
    named: dict[str, tuple[Sequence[str], Iterable[str]]] = {
        "archetype": (options.archetypes, ROUTINGS),
        "op": (options.ops, (*alone, *OPS)),
        "kernel": (options.kernels, registered()),
        "dtype": ((options.dtype,), DTYPES),
        "zero": ((options.zero,), EXLLAMA_ZEROS),
        "modifier": (options.modifiers, MODIFIERS),
    }
    for what, (given, allowed) in named.items():
        for name in given:
            if name not in allowed:
                raise unknown(what, name, allowed)
    for name in alone:
        if name in options.ops:
            raise ValueError(f"op: got {name!r} beside others, must stand alone")
    if options.peer is not None:
        peers_of(options)
    require_writable(options.json)
    if options.plot is not None:
        require_writable(options.plot)
        bench_report.require_drawable(options.plot)
        if options.json is not None and os.path.realpath(options.json) == os.path.realpath(options.plot):
            raise ValueError(f"plot: got {options.plot}, must be another file than --json's")
    if options.resume:
        if options.json is None:
            raise ValueError("resume: needs --json, the file to go on with")
        bench_record.read(options.json)
    own = [entry for place in places_of(options) for entry in import_module(OWN[place]).REGISTRY]
    ours, _ = matched(options, own, {text: _entries(text) for text in options.against})
    fields = {"dtype": options.dtype, "zero": options.zero, "block": options.block, "modifiers": options.modifiers}
    for op in dict.fromkeys(entry.op for entry in ours):
        for point in points(op, shapes, (options.archetypes or ARCHETYPES)[:1], (1,), **fields):
            try:
                point.case()
            except ValueError as error:
                raise ValueError(f"shape: got {point.shape_name!r}, must fit {op}: {error}") from None
    return shapes


def peers_of(options: Options) -> dict[str, dict[str, float]]:
    """Return another implementation's microseconds of a layer without its alignment, by shape and T.

    Raises:
        ValueError: peer is given without parts, or its file does not hold {shape: {T: microseconds}}.
    """
    if options.peer is None:
        return {}
    if not options.parts:
        raise ValueError("peer: needs --parts, whose aligned layer it is compared with")
    try:
        return read_json(options.peer, dict[str, dict[str, float]], "peer")
    except ValueError as error:
        raise ValueError(f"peer: {options.peer} must hold {{shape: {{T: microseconds}}}} as JSON ({error})") from None


def _entries(text: str) -> list[Any]:
    """Return what a TARGET holds; of this library's registries also what runs only on a GPU that may not be here."""
    place, _, name = text.partition(":")
    if place not in OWN or text.endswith(":"):
        found = _loaded(text)
        release(found[0])
        return list(found)
    entries = list(import_module(OWN[place]).REGISTRY)
    if name and name not in {entry.name for entry in entries}:
        raise unknown(f"kernel of {place}", name, [entry.name for entry in entries])
    return [entry for entry in entries if not name or entry.name == name]


def is_own(text: str) -> bool:
    """Say whether a TARGET is a module of this library, which is imported here; a stranger's is not.

    Args:
        text: of --against.
    """
    return place_of(text).startswith("moeracle.") and not place_of(text).endswith(".py")


def _loaded(text: str) -> Sequence[Kernel]:
    return load_target(text).kernels if is_own(text) else load(text, None, in_process=False).kernels


def left_out(options: Any, names: Sequence[str], beside: str) -> None:
    """Raise ValueError for the first of these options that was given and that `beside` has no use for.

    Args:
        options: a dataclass of options; what has its default value counts as not given.
        names: its fields.
        beside: why, e.g. "with --arch: nothing is measured, all is tried".
    """
    for name in names:
        given = getattr(options, name)
        if given != getattr(type(options)(), name):
            text = ", ".join(map(str, given)) if isinstance(given, tuple) else given
            option = name.removesuffix("s") if isinstance(given, tuple) and name != "tokens" else name
            raise ValueError(f"{option}: got {text!r}, must be left out {beside}")
