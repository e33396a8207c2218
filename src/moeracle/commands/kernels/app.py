"""The options and the help of `moeracle kernels`; what its commands do is in `commands/kernels*.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import BenchOptions, CompileOptions, SweepOptions, TuneOptions, from_options

kernels_app = typer.Typer(
    help="The kernels of this library: what they are, what their machine code needs, how fast they are.",
    no_args_is_help=True,
)


@kernels_app.command(name="list")
def kernels_list() -> int:
    """List the kernels of this library: what `moeracle check moeracle.kernels` judges."""
    from .list import run_list

    return run_list()


@kernels_app.command(name="compile")
@from_options
def kernels_compile(options: CompileOptions) -> int:
    """Compile every kernel and tuned tile for GPUs that are not here, and say what its machine code needs.

    Registers, spills, scratch, local memory, occupancy, matrix and dot instructions, code size, and the fewest
    microseconds at a Strix Halo's 256 GB/s. Exit code 1: something spills, or lacks an instruction that it must have.
    All of it takes some minutes. With --tokens, of the tuned tiles only those that these T take.

    Examples:

        moeracle kernels compile --arch gfx1151 --arch sm_90

        moeracle kernels compile --arch gfx1151 --diff int4_gemv:DECODE=TRUNCATE int4_gemv:DECODE=MAGIC
    """
    if options.diff is not None:
        from .diff import run_diff

        return run_diff(*options.diff, options)
    from .compile import run_compile

    return run_compile(options)


@kernels_app.command(name="bench")
@from_options
def kernels_bench(options: BenchOptions) -> int:
    """Judge kernels on the benchmark's own tensors, then time the legal ones: routings x tokens x GEMMs and the layer.

    Microseconds, TFLOP/s over useful and over padded work, bytes a second, percent of the floor that this device's own
    ceilings allow, measured in the same run. Exit code 1: a kernel is illegal, and was therefore not timed.
    Several processes compile ahead. --json is rewritten after each point, and --resume goes on with it.

    Examples:

        moeracle kernels bench --op moe_w4a16 --tokens 1 --tokens 64 --json bench.json --plot bench.png

        moeracle kernels bench --op moe_w4a16 --against my_kernels.py:my_moe --archetype zipf1

        moeracle kernels bench --op int4_linear --against moeracle.bench.baselines --modifier bias --launches

        moeracle kernels bench --op reference
    """
    from .bench import run_bench

    return run_bench(options)


@kernels_app.command(name="sweep")
@from_options
def kernels_sweep(options: SweepOptions) -> int:
    """Time T = 1 to 4096 end to end and name every cliff: a T beyond 1.3x of the line between its neighbours.

    Example:

        moeracle kernels sweep --shape qwen3.5-35b --json sweep.json --plot sweep.png
    """
    from .sweep import run_sweep

    return run_sweep(options)


@kernels_app.command(name="tune")
@from_options
def kernels_tune(options: TuneOptions) -> int:
    """Choose tiles: of this library's kernels, written to kernels/tuned/, or of a TARGET's kernel that declares some.

    Of a TARGET each tile is judged first, in a process of its own; an illegal one is refused, with its fault, and only
    legal ones are timed, in turn with the function's defaults. It works on a CPU, too; exit code 1: a tile is illegal.

    Without TARGET: measured on this GPU, or chosen by the compiler of one that is not here.

    A tile enters a table only after the judge has found it legal on the tensors that it was timed with; each row is
    written as soon as it is found. A GEMM is tuned from the tile in use, one choice at a time; of moe_w4a16.hopper
    every candidate is tried. With --arch, nothing is measured: of the tiles that do not spill, the one with the fewest
    instructions a multiply-add.

    Examples:

        moeracle kernels tune my_kernels.py:my_moe --shape qwen3.5-35b --tokens 64

        moeracle kernels tune --kernel moe_w4a16.hopper --tokens 64

        moeracle kernels tune --arch gfx1151
    """
    from .tune import run_tune

    return run_tune(options)


@kernels_app.command(name="scan")
def kernels_scan(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A gfx11 code object: .hsaco, .co or a bundle.")],
    json: Annotated[Path | None, typer.Option(help="Write what was found as JSON.")] = None,
) -> int:
    """Say what a gfx11 code object holds: kernels, registers, scratch, LDS, arguments, instruction mix.

    It may be of any compiler; nothing is run and no GPU is needed. Exit code 1: a kernel is empty, or has an
    instruction that the machine-code model (moeracle docs gfx11) does not know.

    Example:

        moeracle kernels scan gemv.hsaco
    """
    from .scan import run_scan

    return run_scan(file, json)
