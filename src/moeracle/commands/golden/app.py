"""The options and the help of `moeracle golden`; what its commands do is in `commands/golden/golden.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeracle.isolate.start import start_early

from ..options import InProcess, Known, Op, Target

golden_app = typer.Typer(
    help="Golden data: inputs and correctly rounded results, the same bytes on every machine (moeracle docs golden). "
    "Exit code 0: nothing drifted. 1: something did, or bits were refused. 2: usage, or a set that is damaged. "
    "3: nothing could be verified.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_Dir = Annotated[Path | None, typer.Option("--dir", help="The set's folder; by default moeracle's own.")]
_Accept = Annotated[str, typer.Option("--accept", metavar="REASON", help="Why these bits are right; kept with them.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change, write nothing.")]


@golden_app.command(name="verify")
def golden_verify(
    target: Annotated[str | None, typer.Argument(metavar="TARGET", help="Kernels to replay on the set.")] = None,
    folder: _Dir = None,
    op: Annotated[str | None, typer.Option(help="Only the entries of this op.")] = None,
    device: Annotated[str | None, typer.Option(help="Where kernels run, in place of what they declare.")] = None,
    in_process: InProcess = False,
    known: Known = None,
    json: Annotated[Path | None, typer.Option(help="Write the findings as JSON.")] = None,
) -> int:
    """Derive every entry again and compare the bytes; with a TARGET, replay its kernels on the stored inputs too.

    Says what drifted: the inputs' generator, the reference, the oracle, or a kernel.

    Examples:

        moeracle golden verify

        moeracle golden verify my_kernels.py --device cuda

        moeracle golden verify my_kernels.py --dir golden/
    """
    start_early(target is not None and not in_process)
    from .golden import run_verify

    return run_verify(target, folder, op, device, json, in_process, known)


@golden_app.command(name="regen")
def golden_regen(
    accept: _Accept,
    folder: _Dir = None,
    op: Annotated[str | None, typer.Option(help="Only the entries of this op; the others stay.")] = None,
    dry_run: _DryRun = False,
) -> int:
    """Derive the set anew, print what changes (by how many ulp, and whether that is legal), and write it.

    Refuses without a reason, where the files are not as their manifest says, and bits that no legal kernel could store.

    Example:

        moeracle golden regen --accept "new op: tiny_dot"
    """
    from .golden import run_regen

    return run_regen(accept, folder, op, dry_run)


@golden_app.command(name="make")
def golden_make(
    target: Target,
    folder: Annotated[Path, typer.Option("--dir", help="Your set's folder; made if it is not there.")],
    accept: _Accept,
    case: Annotated[list[str] | None, typer.Option(help="This case, not the shipped set's; may be repeated.")] = None,
    op: Op = None,
    device: Annotated[str | None, typer.Option(help="Where kernels run, in place of what they declare.")] = None,
    in_process: InProcess = False,
    dry_run: _DryRun = False,
) -> int:
    """Record what your kernels store, as a golden set of your own; `golden verify TARGET --dir D` replays it.

    Takes only bits that are legal under the kernel's contract, and the same twice.

    Examples:

        moeracle golden make my_kernels.py --dir golden/ --accept "release 1.4 on MI300"

        moeracle golden make my_kernels.py:my_moe --dir golden/ --accept "our shapes" --case moe_w4a16/T33-E8-k2-…
    """
    start_early(not in_process)
    from .golden import run_make

    return run_make(target, folder, accept, case or [], op, device, dry_run, in_process)
