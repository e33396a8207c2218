"""The compile table: a row for every machine code that the registry would launch on an architecture that is not here.

    python -m moeracle.kernels.compile.table '{"arch": "gfx1151"}'

prints one JSON line a row. It needs a process of its own for each architecture (see dry_run), and keeps nothing:
triton's cache goes where TRITON_CACHE_DIR says. `moeracle kernels compile` runs these processes side by side.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from moeracle.kernels import tuned
from moeracle.kernels.bench.cases import MODELS
from moeracle.kernels.common.size import Size
from moeracle.kernels.compile.dry_args import arguments
from moeracle.kernels.compile.dry_run import ENVIRONMENT, Launch, pretending, properties_of
from moeracle.kernels.entry import Entry
from moeracle.kernels.hopper.tiles.layers import OP as HOPPER_LAYER
from moeracle.kernels.registry import REGISTRY
from moeracle.kernels.toolchain.architectures import (
    STRIX_HALO_GBS,
    Architecture,
    Occupancy,
    architecture,
    occupancy,
    waves_by_registers,
)
from moeracle.kernels.toolchain.machine_code import MATRIX, MachineCode, read_amd, read_nvidia
from moeracle.kernels.tuned import gfx_tiles

TOKENS = (1, 4, 16, 64, 256, 1024, 4096)
# The two layers that benchmarks use, and what else kernels read: fp16, zero points, a group of 64.
LAYERS = (Size(), Size(E=128, I=768, G=32))
VARIANTS = ({"dtype": "fp16"}, {"zero": "rdna"}, {"zero": "unpacked"}, {"G": 64})
# Entries of which other layers are compiled, too, by architecture: a model of the machine chooses their tiles.
MODELS_ON = {gfx_tiles.PLACE: ("grouped_gemm", "padded_gemm"), "sm_90": (HOPPER_LAYER,)}
MATRIX_KIND = {"gfx11": ("wmma",), "gfx12": ("wmma",), "gfx9": ("mfma",), "sm": ("mma", "wgmma", "tcgen05")}


@cache
def expectations(backend: str = "triton") -> dict[str, Any]:
    """Return what each kernel's machine code must hold, by the kernel's name: expectations.json, and the entries."""
    listed = dict(json.loads(Path(__file__).with_name("expectations.json").read_text())[backend])
    if backend == "triton":
        for entry in REGISTRY:
            listed |= entry.expected
    return listed


def complaints(code: MachineCode, arch: Architecture, expected: list[str]) -> list[str]:
    """List what is wrong with a kernel's machine code: spills, scratch, an expected instruction that is missing.

    Args:
        code: what was read.
        arch: what it is for.
        expected: "matrix", "dot2".
    """
    wrong = []
    if code.spills:
        wrong.append(f"spills {code.spills} registers")
    elif code.scratch:
        wrong.append(f"{code.scratch} bytes of scratch")
    kinds = MATRIX_KIND[arch.family]
    if "matrix" in expected and not any(code.kinds.get(kind) for kind in kinds):
        wrong.append(f"no {' or '.join(kinds)}")
    if "dot2" in expected and arch.dot2 and not code.kinds.get("dot2"):
        wrong.append("no v_dot2")
    return wrong


def launch_bytes(launch: Launch, size: Size) -> int:
    """Return the fewest bytes that a launch moves: each tensor once, of stacked experts only those that have rows.

    An estimate: with balanced routing min(E, T*k) experts have rows, and a tensor is taken for a stack of experts if
    its first dimension is E, or if it is flat and E divides a length of at least 4096 an expert.
    """
    share, E = min(size.E, size.T * size.k) / size.E, size.E
    total = 0.0
    for _, nbytes, shape in set(launch.tensors):  # a symmetric weight passes its words as zero points, too
        flat = len(shape) == 1 and shape[0] % E == 0 and shape[0] >= 4096 * E
        total += nbytes * share if flat or (len(shape) > 1 and shape[0] == E) else nbytes
    return int(total)


def facts_of(code: MachineCode, held: Occupancy, local: int, nbytes: int) -> dict[str, Any]:
    """Return what machine code takes of a multiprocessor and what it moves, as plain values.

    Args:
        code: what was read.
        held: how many waves fit.
        local: bytes of shared memory.
        nbytes: the fewest that a launch moves.
    """
    return {
        "registers": code.registers, "sgprs": code.sgprs, "spills": code.spills, "scalar_spills": code.scalar_spills,
        "scratch": code.scratch, "local": local, "code": code.code, "waves": held.waves, "most_waves": held.most,
        "groups": held.groups, "limit": held.limit, "compiler_waves": code.waves_by_compiler, "kinds": code.kinds,
        "matrix": sum(code.kinds.get(kind, 0) for kind in MATRIX), "dot2": code.kinds.get("dot2", 0), "bytes": nbytes,
        "strix_halo_us": round(nbytes / STRIX_HALO_GBS / 1e3, 2),
    }  # fmt: skip


def row(launch: Launch, arch: Architecture, entry: Entry, size: Size) -> dict[str, Any]:
    """Return one launch's facts as plain values."""
    asm, metadata = launch.compiled.asm, launch.compiled.metadata
    code = read_amd(asm["amdgcn"])[0] if arch.kind == "hip" else read_nvidia(asm["ptx"], asm["cubin"])
    threads = metadata.num_warps * arch.lanes
    held = occupancy(arch, threads, code.registers, metadata.shared, code.sgprs)
    dots = "tt.dot" in asm.get("ttir", "") or "warp_group_dot" in asm.get("ttgir", "")
    expected = expectations().get(launch.kernel, ["dots"])
    if "dots" in expected:
        expected = ["matrix"] if dots else []
    wrong = complaints(code, arch, expected)
    if dots and "matrix" not in expected:
        wrong.append("tl.dot in a kernel of which kernels/compile/expectations.json expects no matrix instruction")
    if metadata.shared > arch.local_most:
        wrong.append(f"{metadata.shared} bytes of shared memory, {arch.local_most} are there")
    return {
        "arch": arch.name,
        "kernel": launch.kernel,
        "entry": entry.name,
        "size": str(size),
        "constants": {k: v for k, v in launch.constants.items() if isinstance(v, (int, float, str, bool, type(None)))},
        "num_warps": metadata.num_warps,
        "num_stages": metadata.num_stages,
        "grid": list(launch.grid),
        **facts_of(code, held, metadata.shared, launch_bytes(launch, size)),
        "register_waves": waves_by_registers(arch, code.registers, code.sgprs) if arch.kind == "hip" else None,
        "expected": expected,
        "wrong": wrong,
    }


def tuned_sizes(arch: Architecture) -> list[tuple[str, Size]]:
    """List (op, size) for each row of the tables that an architecture's example part asks, so that its tile is used."""
    found = []
    for place in (tuned.slug(properties_of(arch).name), arch.name):
        for (op, N, K, E, G, dtype), rows in tuned.load(place).items():
            for r in rows:
                size = Size(
                    T=max(1, round(r["rows_per_expert"] * E / 8)), E=E, k=min(8, E), H=K, I=N // 2, G=G, dtype=dtype
                )
                found.append((op, size))
    return list(dict.fromkeys(found))


def model_sizes(names: Iterable[str] = tuple(MODELS), tokens: Iterable[int] = (1, 64, 4096)) -> list[Size]:
    """List sizes of layers that no table holds, whose tiles a model of the machine chooses.

    Args:
        names: of MODELS.
        tokens: T of each.
    """
    shapes = [MODELS[name] for name in names]
    return [Size(T=T, E=s.E, k=s.k, H=s.H, I=s.I, G=s.G) for s in shapes for T in tokens]


def wanted(
    entry: Entry,
    arch: Architecture,
    tokens: Iterable[int],
    variants: bool,
    layers: int = len(LAYERS),
    table: bool = False,
) -> list[Size]:
    """List the sizes at which an entry is compiled: both layers at each T, variants if asked, and what was tuned.

    A tuning table's every row is looked at if `table` says so, or unless `tokens` says at which T to look.
    """
    weights = entry.layout is not None or entry.op == "int8_lm_head"  # the second layer differs in its weights' groups
    sizes = [layer.with_(T=T) for layer in LAYERS[: layers if weights else 1] for T in tokens]
    if variants and entry.layout is not None:
        sizes += [LAYERS[0].with_(T=T, **changes) for changes in VARIANTS for T in (4, 256)]
    if table or tuple(tokens) == TOKENS:
        sizes += [size for op, size in tuned_sizes(arch) if op in (entry.op, entry.name)]
    if tuple(tokens) == TOKENS and entry.name in MODELS_ON.get(arch.name, ()):
        sizes += model_sizes()
    sizes = [s for s in dict.fromkeys(sizes) if s.zero in (*entry.zeros, "sym")]
    with pretending(arch):  # what an entry supports may depend on the GPU
        return [s for s in sizes if _supported(entry, s)]


def _supported(entry: Entry, size: Size) -> bool:
    case: Any = SimpleNamespace(
        **asdict(size), op=entry.op, K=size.H, N=2 * size.I, R=size.T * size.k, layout=entry.layout
    )
    case.sizes = {name: value for name, value in asdict(size).items() if len(name) == 1}
    case.flags, case.routing, case.data = frozenset(), "uniform", "normal"
    return entry.supports(case) is True


def rows(
    arch: Architecture,
    names: tuple[str, ...] = (),
    tokens: Iterable[int] = TOKENS,
    variants: bool = False,
    layers: int = len(LAYERS),
    table: bool = False,
    omit: tuple[str, ...] = (),
    once: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield one row for each distinct machine code that the registry launches on an architecture.

    Args:
        arch: where.
        names: only entries of these names or kernels of these names; all if empty.
        tokens: the T at which both layers are looked at.
        variants: also fp16, zero points and a group of 64.
        layers: of LAYERS, how many.
        table: each row of the architecture's tuning table, too, which all of TOKENS imply.
        omit: names of entries that another call looks at.
        once: of launches that differ only in run-time values (strides that 16 divides, or not) the first alone.
    Returns:
        Rows; an entry that fails there yields {"arch", "entry", "size", "wrong"} instead.
    """
    seen: set[Any] = set()
    keep = []  # so that no compiled kernel's id is used twice
    entries_alone = names and not {f"{name}_kernel" for name in names} & expectations().keys()
    for entry in REGISTRY:
        if entry.name in omit or entry.fn.startswith("moeracle.kernels.hip."):
            continue  # the latter's machine code is in the HIP table
        if entries_alone and entry.name not in names:
            continue  # where kernels are named, any entry may launch them

        def asked(kernel: str, choices: tuple[Any, ...], entry: Entry = entry) -> bool:
            if names and entry.name not in names and kernel.removesuffix("_kernel") not in names:
                return False
            new = not once or (kernel, choices) not in seen
            seen.add((kernel, choices))
            return new

        for size in wanted(entry, arch, tokens, variants, layers, table):
            try:
                with pretending(arch, asked) as launches:
                    of_entry = entry.dry_arguments
                    entry.load()(*(of_entry(size) if of_entry else arguments(entry.op, size)))
            except Exception as error:
                text = " ".join(str(error).split())[:300]
                wrong = [f"{type(error).__name__}: {text}"]
                yield {"arch": arch.name, "kernel": "-", "entry": entry.name, "size": str(size), "wrong": wrong}
                break
            for launch in launches:
                if id(launch.compiled) not in seen:
                    seen.add(id(launch.compiled))
                    keep.append(launch.compiled)
                    yield row(launch, arch, entry, size)


def main(text: str) -> None:
    """Print one JSON line a row; `text` is {"arch": …} and what else `rows` takes, by name."""
    asked = json.loads(text)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # others like it run beside it
    for found in rows(architecture(asked.pop("arch")), **asked):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT | dict(os.environ, TRITON_INTERPRET="0"))
    main(sys.argv[1])
