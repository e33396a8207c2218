"""The options and the help of `moeracle kernels`; what its commands do is in `commands/kernels*.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

kernels_app = typer.Typer(
    help="The kernels of this library: what they are, what their machine code needs, how fast they are.",
    no_args_is_help=True,
)


@kernels_app.command(name="list")
def kernels_list() -> int:
    """List the kernels of this library: what `moeracle check moeracle.kernels` judges."""
    from .commands.kernels import run_list

    return run_list()


@kernels_app.command(name="compile")
def kernels_compile(
    arch: Annotated[list[str] | None, typer.Option(help="Architectures; every one if not said.")] = None,
    kernel: Annotated[list[str] | None, typer.Option(help="Only these kernels; may be repeated.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(min=1, help="T at which launches are looked at.")] = None,
    variants: Annotated[bool, typer.Option(help="Also fp16, zero points and groups of 64.")] = False,
    diff: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Two builds side by side: NAME or NAME:MACRO=VALUE,…")
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes at once; 0: one a core.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the table as JSON.")] = None,
) -> int:
    """Compile every kernel and tuned tile for GPUs that are not here, and say what its machine code needs.

    Registers, spills, scratch, local memory, occupancy, matrix and dot instructions, code size, and the fewest
    microseconds at a Strix Halo's 256 GB/s. Exit code 1: something spills, or lacks an instruction that it must have.
    All of it takes some minutes. With --tokens, of the tuned tiles only those that these T take.

    Examples:

        moeracle kernels compile --arch gfx1151 --arch sm_90

        moeracle kernels compile --arch gfx1151 --diff int4_gemv:DECODE=TRUNCATE int4_gemv:DECODE=MAGIC
    """
    from .commands.kernels_compile import Options, run_compile

    options = Options(tuple(arch or ()), tuple(kernel or ()), tuple(tokens or ()), variants, jobs, json)
    if diff is None:
        return run_compile(options)
    from .commands.kernels_diff import run_diff

    return run_diff(*diff, options)


@kernels_app.command(name="bench")
def kernels_bench(
    op: Annotated[
        list[str] | None,
        typer.Option(help="Ops to time; both GEMMs and the layer if not said; reference needs no GPU."),
    ] = None,
    kernel: Annotated[list[str] | None, typer.Option(help="Only these kernels; may be repeated.")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="TARGET", help="A second implementation, timed in turn; may be repeated, one an op."),
    ] = None,
    tokens: Annotated[list[int] | None, typer.Option(min=1, help="Tokens; 1 to 4096 if not said.")] = None,
    archetype: Annotated[list[str] | None, typer.Option(help="Routing archetypes; five if not said.")] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="qwen3.5-35b, qwen3-omni-30b, or sizes: E8-H256-I128-k2-G32.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="bf16 or fp16.")] = "bf16",
    zero: Annotated[str, typer.Option(help="sym, rdna or unpacked zero points.")] = "sym",
    block: Annotated[
        int | None,
        typer.Option(min=1, help="Block size of padded_gemm's alignment; 16, 32 or 64 by rows an expert if not said."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Measurements of each point.")] = 30,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for each point, about.")] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Of routings and data.")] = 1,
    json: Annotated[Path | None, typer.Option(help="Write the measurements as JSON (docs/bench.md).")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw microseconds over tokens into this PNG.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that wrote --json.")] = False,
    jobs: Annotated[int, typer.Option(min=0, help="Processes that compile ahead; 0: one a core, 1: none.")] = 0,
    modifier: Annotated[
        list[str] | None,
        typer.Option(help="bias, gate, renorm, … of the cases of the ops that have it (docs/cases.md)."),
    ] = None,
    launches: Annotated[bool, typer.Option("--launches", help="Also count the GPU kernels of one call.")] = False,
    parts: Annotated[
        bool, typer.Option("--parts", help="Also time moe_w4a16.hopper's GEMMs, sum and layer, aligned before.")
    ] = False,
    peer: Annotated[
        Path | None, typer.Option(help="JSON {shape: {T: us}} of another aligned layer, beside --parts.")
    ] = None,
) -> int:
    """Judge kernels on the benchmark's own tensors, then time the legal ones: routings x tokens x GEMMs and the layer.

    Microseconds, TFLOP/s over useful and over padded work, bytes a second, percent of the floor that this device's own
    ceilings allow, measured in the same run. Exit code 1: a kernel is illegal, and was therefore not timed.
    Several processes compile ahead. --json is rewritten after each point, and --resume goes on with it.

    Examples:

        moeracle kernels bench --op moe_w4a16 --tokens 1 --tokens 64 --json bench.json --plot bench.png

        moeracle kernels bench --op moe_w4a16 --against my_kernels.py:my_moe --archetype zipf1

        moeracle kernels bench --op int4_linear --against moeracle.bench_baselines --modifier bias --launches

        moeracle kernels bench --op reference
    """
    from .commands.kernels_bench import Options, run_bench

    names = (tuple(op or ()), tuple(kernel or ()), tuple(against or ()), tuple(tokens or ()), tuple(archetype or ()))
    shapes = tuple(shape or ())
    given = Options(*names, shapes, dtype, zero, block, seed, rounds, seconds, json, plot, resume, jobs)
    return run_bench(replace(given, modifiers=tuple(modifier or ()), launches=launches, parts=parts, peer=peer))


@kernels_app.command(name="sweep")
def kernels_sweep(
    op: Annotated[str, typer.Option(help="Op to sweep.")] = "moe_w4a16",
    kernel: Annotated[list[str] | None, typer.Option(help="Only these kernels; may be repeated.")] = None,
    most: Annotated[int, typer.Option(min=3, help="The largest T.")] = 4096,
    per_octave: Annotated[int, typer.Option("--per-octave", min=1, help="Steps between two powers of two.")] = 4,
    tokens: Annotated[list[int] | None, typer.Option(min=1, help="These T instead.")] = None,
    archetype: Annotated[list[str] | None, typer.Option(help="Routing; uniform if not said.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="As for bench.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Measurements of each T.")] = 15,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for each T, about.")] = 0.15,
    json: Annotated[Path | None, typer.Option(help="Write the measurements as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the sweep into this PNG.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that wrote --json.")] = False,
    jobs: Annotated[int, typer.Option(min=0, help="Processes that compile ahead; 0: one a core, 1: none.")] = 0,
) -> int:
    """Time T = 1 to 4096 end to end and name every cliff: a T beyond 1.3x of the line between its neighbours.

    Example:

        moeracle kernels sweep --shape qwen3.5-35b --json sweep.json --plot sweep.png
    """
    from .commands.kernels_sweep import Options, run_sweep

    names = ((op,), tuple(kernel or ()), (), tuple(tokens or ()), tuple(archetype or ()), tuple(shape or ()))
    rest = {"rounds": rounds, "seconds": seconds, "json": json, "plot": plot, "resume": resume, "jobs": jobs}
    return run_sweep(Options(*names, **rest, most=most, per_octave=per_octave))  # type: ignore[arg-type]


@kernels_app.command(name="tune")
def kernels_tune(
    kernel: Annotated[list[str] | None, typer.Option(help="Only these kernels; may be repeated.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="As for bench.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(min=1, help="Buckets, as T; 1 to 4096 if not said.")] = None,
    arch: Annotated[str | None, typer.Option(help="Choose for this gfx architecture by its compiler; no GPU.")] = None,
    archetype: Annotated[str, typer.Option(help="Routing.")] = "uniform",
    dtype: Annotated[str, typer.Option(help="bf16 or fp16.")] = "bf16",
    most: Annotated[int, typer.Option(min=1, help="Tiles of a GEMM to try for each bucket.")] = 40,
    seconds: Annotated[float, typer.Option(min=0.001, help="Of measuring each tile of a GEMM.")] = 0.05,
    dry: Annotated[bool, typer.Option("--dry", help="Write no table.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write everything that was tried as JSON.")] = None,
) -> int:
    """Choose tiles and write them to kernels/tuned/: measured on this GPU, or by the compiler of one that is not here.

    A tile enters a table only after the judge has found it legal on the tensors that it was timed with; each row is
    written as soon as it is found. A GEMM is tuned from the tile in use, one choice at a time; of moe_w4a16.hopper
    every candidate is tried. With --arch, nothing is measured: of the tiles that do not spill, the one with the fewest
    instructions a multiply-add.

    Examples:

        moeracle kernels tune --kernel moe_w4a16.hopper --tokens 64

        moeracle kernels tune --arch gfx1151
    """
    from .commands.kernels_tune import Options, run_tune

    names = (tuple(kernel or ()), tuple(shape or ()), tuple(tokens or ()))
    return run_tune(Options(*names, arch, archetype, dtype, most, seconds, dry, json))
