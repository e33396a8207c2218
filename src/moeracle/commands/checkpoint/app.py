"""The options and the help of `moeracle checkpoint`; what its commands do is in the files beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

checkpoint_app = typer.Typer(
    help="Real checkpoints: what files hold, whether two are the same weights, repacking (moeracle docs checkpoints). "
    "Exit code 0: nothing is wrong. 1: a contradiction or a difference. 2: usage, files that cannot be read, or a "
    "repacking that would lose bits. 3: nothing could be compared.",
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


@checkpoint_app.command(name="diff")
def checkpoint_diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint that is right.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another, in any format, quantized or not.")],
    layer: Annotated[list[int] | None, typer.Option(min=0, help="Only this layer; may be repeated.")] = None,
    zeros: _Zeros = None,
    json: Annotated[Path | None, typer.Option(help="Write what differs as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page.")] = None,
) -> int:
    """Compare every weight of two checkpoints exactly; where they differ, say where, how much, and what it looks like.

    Examples:

        moeracle checkpoint diff Qwen3-GPTQ/ Qwen3-AWQ/

        moeracle checkpoint diff Qwen3-GPTQ/ dumped-by-my-loader/ --layer 0
    """
    from .diff import run_diff

    return run_diff(a, b, tuple(layer or ()), zeros, json, html)


@checkpoint_app.command(name="repack")
def checkpoint_repack(
    path: _Path,
    to: Annotated[
        str,
        typer.Option(
            metavar="LAYOUT|FORMAT",
            help="gptq, gptq_v2, awq, compressed-tensors; or a layout: exllama, nibble_pairs, compressed_tensors.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    zeros: _Zeros = None,
) -> int:
    """Write a checkpoint in another format, or its experts in a kernel's layout, without losing a bit.

    What would lose one is refused with the reason, and nothing is written. What is written is read back and compared.

    Examples:

        moeracle checkpoint repack Qwen3-GPTQ/ --to compressed-tensors --out Qwen3-CT/

        moeracle checkpoint repack Qwen3-GPTQ/ --to exllama --out Qwen3-exllama/
    """
    from .repack import run_repack

    return run_repack(path, to, out, zeros)


@checkpoint_app.command(name="quantize-head")
def checkpoint_quantize_head(
    path: _Path,
    option: Annotated[
        str, typer.Option("--as", metavar="int8[:gN]", help="int8 is one scale a row, int8:g32 one for 32 columns.")
    ] = "int8:g32",
    activations: Annotated[
        Path | None, typer.Option(help="A safetensors file with one [T, K]; by default normal ones are drawn.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, max=4096, help="Activations to draw.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them by group size into this PNG (matplotlib).")] = None,
    save: Annotated[Path | None, typer.Option(help="Write codes and scales to this .safetensors file.")] = None,
) -> int:
    """Say what int8 does to the lm_head: error of logits, arg-maxes that change, margins; for each group size.

    Examples:

        moeracle checkpoint quantize-head Qwen3.5-35B-A3B/ --as int8:g32

        moeracle checkpoint quantize-head model/ --as int8 --activations hidden.safetensors --plot head.png
    """
    from .head import run_head

    return run_head(path, option, activations, tokens, seed, json, plot, save)
