"""The options and the help of `moeracle models`; what its commands do is in `commands/models/models.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

models_app = typer.Typer(
    help="Bit models of matrix instructions, and recorded vectors to hold against them (moeracle docs bit-models). "
    "Exit code 0: every result is predicted. 1: one is not. 2: usage, or a file that is damaged. "
    "3: nothing could be predicted.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_Vectors = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder of vectors, or the file that infer --probe-hardware wrote.")
]
_Sets = Annotated[list[str] | None, typer.Option("--set", help="Only this set of it; may be repeated.")]


@models_app.command(name="list")
def models_list() -> int:
    """List every model: its numbers, and what each rests on.

    Examples:

        moeracle models list
    """
    from .models import run_list

    return run_list()


@models_app.command(name="replay")
def models_replay(
    vectors: _Vectors,
    model: Annotated[str | None, typer.Option(help="This model, in place of the one that each set says.")] = None,
    sets: _Sets = None,
    json: Annotated[Path | None, typer.Option(help="Write what was found as JSON.")] = None,
) -> int:
    """Predict recorded results bit for bit: the share that is right, and the first that is not.

    Examples:

        moeracle models replay vectors/

        moeracle models replay vectors/ --set A100.bf16.fp32 --model mma.m16n8k16.sm90
    """
    from .models import run_replay

    return run_replay(vectors, model, sets or [], json)


@models_app.command(name="fit")
def models_fit(
    vectors: _Vectors,
    sets: _Sets = None,
    json: Annotated[Path | None, typer.Option(help="Write what was found as JSON.")] = None,
) -> int:
    """Search which matrix unit explains recorded results, and say what they leave open.

    Exit code 0: each set is explained in every bit, by the unit found or by a known model.

    Examples:

        moeracle models fit vectors/ --set A100.bf16.fp32

        moeracle models fit strix_halo.json
    """
    from .models import run_fit

    return run_fit(vectors, sets or [], json)
