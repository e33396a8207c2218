"""The options and the help of `moeracle checkpoint`; what its commands do is in the files beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

checkpoint_app = typer.Typer(
    help="Real checkpoints: what is in the files, whether two hold the same weights, repacking (docs/checkpoints.md). "
    "Exit code 0: nothing is wrong. 1: a contradiction, a difference, or bits that would be lost. 2: usage, or files "
    "that cannot be read.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_Path = Annotated[
    Path, typer.Argument(metavar="FILE|DIR", help="A folder, a .safetensors file, or an index of shards.")
]
_Zeros = Annotated[
    str | None, typer.Option(help="How GPTQ v1 zero points are read: modulo, plain, byte_carry or word_carry.")
]


@checkpoint_app.command(name="show")
def checkpoint_show(
    path: _Path,
    zeros: _Zeros = None,
    json: Annotated[Path | None, typer.Option(help="Write the survey as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page.")] = None,
) -> int:
    """Recognise a checkpoint by its config and its tensors, and say where the two contradict each other.

    Examples:

        moeracle checkpoint show Qwen3-30B-A3B-GPTQ/

        moeracle checkpoint show model.safetensors --json shown.json --html shown.html
    """
    from .show import run_show

    return run_show(path, zeros, json, html)
