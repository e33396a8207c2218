"""The options and the help of `moeracle bisect`; what its commands do is in `commands/bisect*.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeracle.isolate.start import start_early

from ..options import (
    BisectedCase,
    BisectedDevice,
    BisectJson,
    Checkpoint,
    CheckpointExperts,
    CheckpointLayer,
    ConfigOptions,
    GitOptions,
    InProcess,
    Repeat,
    Target,
    from_options,
)

bisect_app = typer.Typer(
    help="Find the stage, the commit or the setting that makes a kernel wrong (moeracle docs bisect). "
    "Exit code 0: nothing is wrong with the case. 1: something is, and is named as far as can be shown. 2: usage, or "
    "there is nothing to search (GOOD is bad, BAD is good). 3: nothing could be judged.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@bisect_app.command(name="stages")
def stages(
    target: Target,
    case: BisectedCase,
    device: BisectedDevice = None,
    shrink: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="Seconds for making the failing case smaller; by default a number of cases, alike on every machine.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    layer: CheckpointLayer = None,
    experts: CheckpointExperts = None,
    in_process: InProcess = False,
    json: BisectJson = None,
) -> int:
    """Name the first wrong stage of a kernel, the element, the region, the known fault, and the smallest failing case.

    Stages that the kernel stores, or that TARGET has single kernels for, are judged from the kernel's own input.
    A fused kernel, which stores only its output, is asked questions that isolate unpacking, scales, zero points,
    routing, GEMM1, activation, GEMM2 and the sum over slots in turn.

    Examples:

        moeracle bisect stages my_kernels.py --case moe_w4a16/T33-E8-k2-H256-I128-G32/bf16/exllama-sym/zipf1/normal/s7

        moeracle bisect stages my_kernels.py:my_moe --case moe_w4a16/T9-… --json stages.json
    """
    start_early(not in_process)
    from .stages import run_stages

    return run_stages(target, case, device, shrink, json, (checkpoint, layer, experts), in_process)


@bisect_app.command(name="git")
@from_options
def git(options: GitOptions) -> int:
    """Find the commit that first made a kernel wrong, by `git bisect` in a worktree of its own.

    Your checkout is not touched. Revisions that do not build, do not hold TARGET or answer differently each time are
    passed over. TARGET is a path relative to DIR's top; a file that BAD does not hold judges every revision as it is on
    disk. Interrupted, the same command goes on where it stopped.

    Examples:

        moeracle bisect git kernels/moe.py --good v1.2 --bad HEAD --case moe_w4a16/T33-…/s7

        moeracle bisect git kernels/moe.py --good v1.2 --bad HEAD --case … --build "make -j8" --timeout 600 --plot e.png
    """
    from .git import run_git

    return run_git(options)


@bisect_app.command(name="config")
@from_options
def config(options: ConfigOptions) -> int:
    """Find the smallest set of settings that turns a legal kernel illegal (delta debugging), each try in a new process.
    With `--each`, judge every combination of the values given: verdicts, bits and instructions side by side.

    KEY is an environment variable; `tile.FIELD` is a field of the tile that this library's tuned kernels launch with
    (tile.block_m, tile.num_warps, …). A key that one side does not name is not set there.

    Examples:

        moeracle bisect config my_kernels.py --case … --good SPLIT_K=1 --bad SPLIT_K=4 --bad FAST_EXP=1

        moeracle bisect config moeracle.kernels:NAME --case … --good tile.block_k=64 --bad tile.block_k=256

        moeracle bisect config gfx11.py --case … --each MOERACLE_GFX_CXX=ziglang --each MOERACLE_GFX_CXX=clang++-19
    """
    if options.each:
        from .compare import run_compare

        return run_compare(options)
    from .config import run_config

    return run_config(options)


@bisect_app.command(name="judge", hidden=True)
def judge(
    target: Target,
    case: BisectedCase,
    json: Annotated[Path, typer.Option(help="Where to write the verdicts.")],
    repeat: Repeat = 1,
    device: BisectedDevice = None,
    tile: Annotated[list[str] | None, typer.Option(help="FIELD=VALUE of the tile.")] = None,
    instructions: Annotated[bool, typer.Option(help="Also which gfx11 instructions ran, in this process.")] = False,
) -> int:
    """Judge one case and write down what each judgement said: what git and config start for each try."""
    start_early(not tile and not instructions)
    from .judge import run_judge

    return run_judge(target, case, json, repeat, device, tile or [], instructions)


@bisect_app.command(name="faults")
def faults(
    fault: Annotated[list[str] | None, typer.Option(help="Only this fault, e.g. F29; may be repeated.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only kernels that are fused, that stored their stages, or of one op.")
    ] = None,
    contract: Annotated[str | None, typer.Option(help="What the kernels keep otherwise, not each fault's own.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the table as JSON.")] = None,
) -> int:
    """Plant every known bug in a kernel and see whether `bisect stages` names the right stage; minutes for all of them.

    Legal kernels are asked every question too: each answer that convicts one of them is a false one.

    Examples:

        moeracle bisect faults --json bisected.json

        moeracle bisect faults --fault F29 --fault F44 --kind fused
    """
    from .faults import run_faults

    return run_faults(fault or [], kind or [], contract, json)
