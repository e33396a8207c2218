"""The `moeracle` command: its options, its help and its exit codes; what each command does is in `commands/`."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .commands.bisect.app import bisect_app
from .commands.checkpoint.app import checkpoint_app
from .commands.ci.app import ci_app
from .commands.console import print_error, stdout_lost
from .commands.golden.app import golden_app
from .commands.kernels.app import kernels_app
from .commands.models.app import models_app
from .commands.options import CheckOptions, InferOptions, Jobs, LawOptions, ParityOptions, SoakOptions, from_options
from .commands.sweep.app import sweep_app
from .exit_codes import INTERNAL, INTERRUPTED, USAGE

EXITS = """
Exit code 0: everything was judged and is legal. 1: something is wrong. 2: usage, or the TARGET cannot be loaded.
3: nothing could be judged. 4: an internal error. 130: interrupted by Ctrl-C.
"""

app = typer.Typer(
    name="moeracle",
    help="Could a correct kernel have produced these bits? Judges quantized Mixture-of-Experts kernels." + EXITS,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(kernels_app, name="kernels")
app.add_typer(golden_app, name="golden")
app.add_typer(bisect_app, name="bisect")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(models_app, name="models")
app.add_typer(ci_app, name="ci")
app.add_typer(sweep_app, name="sweep")


def _version(asked: bool) -> None:
    if asked:
        from moeracle import __version__

        typer.echo(f"moeracle {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass


@app.command()
def op(
    name: Annotated[str | None, typer.Argument(metavar="OP", help="The op; without it, all ops are listed.")] = None,
) -> int:
    """Show how a kernel of an op is called: signature, arguments, results, and a file to start from.

    Examples:

        moeracle op

        moeracle op moe_w4a16
    """
    from .commands.op import run_op

    return run_op(name)


@app.command()
def docs(
    page: Annotated[str | None, typer.Argument(metavar="PAGE", help="A page; without it, all are listed.")] = None,
) -> int:
    """Show the documents that came with this installation.

    Examples:

        moeracle docs

        moeracle docs contracts
    """
    from .commands.docs import run_docs

    return run_docs(page)


@app.command()
def schema(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Whose: check, faults, …; without it, all are listed.")
    ] = None,
) -> int:
    """Print the JSON Schema of a file that --json writes.

    Examples:

        moeracle schema

        moeracle schema check > check.schema.json
    """
    from .commands.schema import run_schema

    return run_schema(name)


@app.command()
def new(
    op: Annotated[str, typer.Argument(metavar="OP", help="The op, one of those that `moeracle op` lists.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, ending in .py.")],
) -> int:
    """Write a kernel file for an op: right as it stands, in torch, ready to be judged and then replaced.

    Examples:

        moeracle new int4_linear my_kernels.py
    """
    from .commands.op import run_new

    return run_new(op, file)


@app.command()
@from_options
def check(options: CheckOptions) -> int:
    """Judge kernels: fixed cases, then cases that Hypothesis draws and shrinks, then laws.

    A failure prints which elements of which stage are illegal, and a line that replays it.

    Examples:

        moeracle check my_kernels.py

        moeracle check my_kernels.py:my_moe --profile nightly --seed 3 --json result.json

        moeracle check my_kernels.py --case moe_w4a16/T33-E8-k2-H256-I128-G32/bf16/exllama-sym/zipf1/normal/s7
    """
    from .isolate.start import start_early
    from .torchrun import only_waits

    if only_waits():
        return 0
    start_early(not options.in_process)
    from .commands.check import run_check

    return run_check(options)


@app.command()
@from_options
def parity(options: ParityOptions) -> int:
    """Compare two kernels of one op: two engines, CUDA and ROCm, training and inference.

    Infers both contracts, prints the fields that differ, the first stage whose bits part on the same inputs, and which
    of these fields explain it. Exit code 1 says that something is left which no contract explains.

    Examples:

        moeracle parity mine.py theirs.py

        moeracle parity moeracle.kernels:moe_w4a16.grouped mine.py:layer --json parity.json
    """
    from .isolate.start import start_early

    start_early(not options.in_process)
    from .commands.parity import run_parity

    return run_parity(options)


@app.command()
@from_options
def soak(options: SoakOptions) -> int:
    """Judge legal kernels on as many elements as wanted, with new seeds every round: whatever is said is a false alarm.

    Examples:

        moeracle soak moeracle.kernels simulations --device cuda --elements 1e9 --jobs 14 --json soak.json

        moeracle soak simulations --op moe_w4a16 --seconds 60
    """
    from .isolate.start import start_early

    start_early(not options.in_process and options.jobs == 1 and options.targets != ("simulations",))
    from .commands.soak import run_soak

    return run_soak(options)


@app.command()
@from_options
def laws(options: LawOptions) -> int:
    """Put every law of every op to legal simulations, under every contract, on every recipe and dtype.

    The simulations add in random orders. Whatever a law says against one of them is a false alarm: exit code 1.

    Examples:

        moeracle laws --op moe_w4a16 --shard 1/40 --jobs 16 --json laws.json

        moeracle laws --jobs 16 --resume laws.json
    """
    from .commands.laws import run_law_sweep

    return run_law_sweep(options)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="What --json of an earlier check wrote.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="What --json of a later check wrote.")],
    bits: Annotated[bool, typer.Option("--bits", help="Other bits are worse, even where both are legal.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the changes as JSON.")] = None,
) -> int:
    """Say what changed between two runs of check: verdicts, bits, contracts, how far was judged, time.

    Exit code 1 if anything is worse: a kernel that is illegal, not judged or gone, or a dimension judged less far.

    Examples:

        moeracle compare main.json branch.json

        moeracle compare main.json branch.json --bits --json changes.json
    """
    from .commands.compare import run_compare

    return run_compare(old, new, bits, json)


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(metavar="F.json …", help="What --json of check or bisect wrote.")],
    html: Annotated[Path, typer.Option(help="Write one self-contained page here.")],
) -> int:
    """Make a page from the JSON of one check, or of several: the newest in full, and the history of every kernel.

    The JSON of bisect stages, git or config makes a page of its own.

    Examples:

        moeracle report result.json --html result.html

        moeracle report nightly/*.json --html nightly.html
    """
    from .commands.report import run_report

    return run_report(files, html)


@app.command()
@from_options
def infer(options: InferOptions) -> int:
    """Learn a kernel's contract by probing it, from its outputs alone: roundings, order of sums, instruction.

    Prints what was asked, seen and concluded, the contract as text and as code, and the nearest preset. Exit code 1: a
    kernel matches no contract.

    Examples:

        moeracle infer my_kernels.py:my_gemm --k 2048

        moeracle infer moeracle.kernels --op grouped_gemm --device cuda --json found.json

        moeracle infer --probe-hardware --json strix_halo.json
    """
    if options.probe_hardware or options.probe_file is not None:
        from .commands.probe import run_probe

        return run_probe(options.target, options.device, options.probe_file, options.json, options.vectors)
    if options.vectors is not None:
        raise ValueError("--vectors: goes with --probe-hardware or --probe-file")
    from .isolate.start import start_early

    start_early(not options.in_process)
    from .commands.infer import run_infer

    return run_infer(options)


@app.command(name="judge")
def judge_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What assert_legal saved, or verdict.save(FILE).")],
    contract: Annotated[str | None, typer.Option(help="Judge under this contract in place of the saved one.")] = None,
    device: Annotated[str, typer.Option(help="Where to judge: cpu, cuda, cuda:N.")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="Write the verdict as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the verdict and its heat maps as one page.")] = None,
) -> int:
    """Judge saved tensors again: inputs and outputs of one comparison; no kernel runs.

    Examples:

        moeracle judge .moeracle/moe_w4a16-92ad114194e0.safetensors

        moeracle judge failed.safetensors --contract marlin --device cuda
    """
    from .commands.judge import run_judge

    return run_judge(file, contract, device, json, html)


@app.command(name="case")
def case_(
    text: Annotated[str, typer.Argument(metavar="CASE", help="op/dimensions/dtype/layout-zero/routing/data/sSEED")],
    save: Annotated[Path | None, typer.Option(help="Write every tensor to this .safetensors file.")] = None,
) -> int:
    """Show what a case is made of: every tensor's shape, dtype, strides and digest, and who is routed where.

    The same text gives the same bits on every machine: compare the digests.

    Examples:

        moeracle case moe_w4a16/T33-E8-k2-H256-I128-G32/bf16/exllama-sym/zipf1/normal/s7

        moeracle case int4_linear/T5-N64-K96-G32/fp16/gptq-v2/-/outliers/s1 --save case.safetensors
    """
    from .commands.case import run_case

    return run_case(text, save)


@app.command()
def faults(
    op: Annotated[str | None, typer.Option(help="Only faults of this op.")] = None,
    fault: Annotated[list[str] | None, typer.Option(help="Only this fault, e.g. F29; may be repeated.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the matrix as JSON.")] = None,
    jobs: Jobs = 1,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the interrupted run that wrote this JSON, and into it.")
    ] = None,
    limit: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Give up, and report, a fault or kernel that takes longer.")
    ] = 600.0,
    made: Annotated[
        Path | None,
        typer.Option("--from", help="Plant nothing: take the JSON of a run, of all faults or of some, for --page."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Plant nothing: write the page of every fault here; its figures lie beside it.")
    ] = None,
) -> int:
    """Plant every known bug in a correct simulation: which check sees it, after how many cases, and false alarms.

    Beside it stands what published tolerances would have said of the same outputs.

    Examples:

        moeracle faults --op moe_w4a16 --json faults.json

        moeracle faults --fault F01 --fault F29

        moeracle faults --jobs 16 --json faults.json

        moeracle faults --jobs 16 --resume faults.json

        moeracle faults --from faults.json --page docs/faults.md
    """
    from .commands.faults import run_faults, write_faults_page

    if made is not None and page is None:
        raise ValueError("--from: must come with --page, the file to write")
    if page is not None:
        return write_faults_page(made, page)
    return run_faults(op, fault or [], json, jobs, resume, limit)


@app.command()
def routing(
    archetype: Annotated[list[str] | None, typer.Option(help="Routing archetypes; by default all of them.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(min=0, help="Numbers of tokens; by default 1 to 4096.")] = None,
    experts: Annotated[int, typer.Option(min=1, help="Number of experts, E.")] = 256,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Experts per token, k.")] = 8,
    block_m: Annotated[
        list[int] | None, typer.Option("--block-m", min=1, help="Block sizes; by default 16 and 32.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the table as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the map of useful rows into this PNG (matplotlib).")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the map as one page.")] = None,
) -> int:
    """Show how full the blocks of a grouped GEMM are: dead experts, load, useful rows, per archetype and tokens.

    Examples:

        moeracle routing --experts 128 --top-k 8

        moeracle routing --archetype zipf1 --tokens 64 --tokens 1024 --block-m 16 --block-m 64

        moeracle routing --plot map.png --html map.html
    """
    from .commands.routing import run_routing

    return run_routing(archetype or [], tokens or [], experts, top_k, block_m or [], seed, json, plot, html)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is one line on stderr and exit code 2.

    Args:
        argv: the arguments after the program's name; None: those of the process.
    """
    code, lost = _run(argv), stdout_lost()
    return code or (USAGE if lost else 0)  # a verdict that nobody could read is no success


def _run(argv: Sequence[str] | None) -> int:
    try:
        code = app(args=None if argv is None else list(argv), prog_name="moeracle", standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except ValueError as error:
        return _refused(str(error))
    except OSError as error:
        return _refused(f"{error.filename or 'file'}: {error.strerror}")
    except Exception as error:
        # Typer's usage errors; older releases take their classes from click, newer ones carry their own.
        if not hasattr(error, "format_message"):
            traceback.print_exc()
            print_error(f"internal error: {type(error).__name__}; please report it with the lines above")
            return INTERNAL
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
            return USAGE
        return _refused(error.format_message())
    return int(code or 0)


def _refused(message: str) -> int:
    lines = message.strip().splitlines() or ["unknown"]
    print_error(lines[0])
    return USAGE
