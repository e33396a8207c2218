"""The options of the commands that have many: each is one field of a dataclass, with its type, default and help.

`from_options` makes a typer command of a function that takes such a dataclass. Nothing here imports torch: `--help` is
answered at once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

TARGET_FORMS = "module, module:name or path/to/file.py[:name]"
Target = Annotated[str, typer.Argument(metavar="TARGET", help=TARGET_FORMS)]
Op = Annotated[str | None, typer.Option(help="Only the kernels of this op.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N, in place of what kernels declare.")]
InProcess = Annotated[
    bool, typer.Option("--in-process", help="Run kernels in this process, for a debugger: one that ends it ends all.")
]
CaseTimeout = Annotated[
    float | None,
    typer.Option(min=0.001, metavar="SECONDS", help="Limit of one call of a kernel; by default from 30 s on."),
]
MaxMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory that a kernel may take, e.g. 2G; by default any. Linux only.")
]
Jobs = Annotated[int, typer.Option(min=1, help="Processes that share the work, each with torch of its own.")]
Kernels = Annotated[tuple[str, ...], typer.Option("--kernel", help="Only these kernels; may be repeated.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that wrote --json.")]
CompileJobs = Annotated[int, typer.Option(min=0, help="Processes that compile ahead; 0 for one a core, 1 for none.")]
ShapesAsForBench = Annotated[tuple[str, ...], typer.Option("--shape", help="Shapes, as for kernels bench.")]
Dtype = Annotated[str, typer.Option(help="bf16 or fp16.")]
Known = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Failures that are known, as TOML (moeracle docs ci).")
]
# Where weights come from a file.
Checkpoint = Annotated[
    Path | None, typer.Option(metavar="FILE|DIR", help="Take weights from this checkpoint (moeracle docs checkpoints).")
]
CheckpointLayer = Annotated[int | None, typer.Option(min=0, help="Its layer; by default the first that has experts.")]
CheckpointExperts = Annotated[
    str | None, typer.Option(metavar="0,3,8-11|all", help="Its experts; by default eight, evenly spread.")
]
# Of the commands of `moeracle bisect`.
BisectedCase = Annotated[str, typer.Option(help="The case that goes wrong: the text that a failure prints.")]
BisectedDevice = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N, in place of what the kernel declares.")]
BisectJson = Annotated[Path | None, typer.Option(help="Write what was found as JSON (moeracle docs bisect).")]
Repeat = Annotated[
    int, typer.Option(min=1, help="How often the case is judged each time; if the answers differ, it is flaky.")
]


def from_options(command: Callable[[Any], int]) -> Callable[..., int]:
    """Return a function for typer in place of one that takes a dataclass: with one parameter for each of its fields.

    Args:
        command: takes `options`, annotated with a dataclass whose fields are Annotated with typer.Option or Argument. A
            field of type tuple[X, ...] is an option that may be repeated.
    """
    kind = get_type_hints(command)["options"]
    hints = get_type_hints(kind, include_extras=True)
    parameters = [_parameter(field, hints[field.name]) for field in fields(kind)]
    repeated = {field.name for field in fields(kind) if _may_be_repeated(hints[field.name])}

    @functools.wraps(command)
    def run(**given: Any) -> int:
        return command(
            kind(**{name: tuple(value or ()) if name in repeated else value for name, value in given.items()})
        )

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _may_be_repeated(hint: Any) -> bool:
    kind = get_args(hint)[0]
    return get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis


def _parameter(field: Field[Any], hint: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    if _may_be_repeated(hint):  # typer has lists for that, and None where the option is not given
        kind, option = get_args(hint)
        hint, default = Annotated[list[get_args(kind)[0]] | None, option], None  # type: ignore[misc]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


@dataclass(frozen=True)
class CheckOptions:
    """The options of `moeracle check`."""

    target: Target
    op: Op = None
    cases: Annotated[
        tuple[str, ...], typer.Option("--case", help="Judge this case instead of hunting; may be repeated.")
    ] = ()
    after: Annotated[
        tuple[str, ...],
        typer.Option(help="Run this case before those of --case, in the same process; may be repeated."),
    ] = ()
    examples: Annotated[
        int | None, typer.Option(min=0, help="Drawn cases per kernel, in place of the profile's number.")
    ] = None
    profile: Annotated[str, typer.Option(help="smoke, ci or nightly: how many cases, and how large they are.")] = "ci"
    seed: Annotated[int, typer.Option(help="The same seed draws the same cases.")] = 0
    device: Device = None
    in_process: InProcess = False
    case_timeout: CaseTimeout = None
    max_memory: MaxMemory = None
    adversarial: Annotated[
        bool, typer.Option("--adversarial", help="Judge code nobody vouches for: confined, unknown seeds, a score.")
    ] = False
    checkpoint: Checkpoint = None
    layer: CheckpointLayer = None
    experts: CheckpointExperts = None
    shapes: Annotated[
        tuple[str, ...],
        typer.Option("--shape", help="Also judge cases of this shape: qwen3.5-35b, … or E8-H256-I128-k2-G32."),
    ] = ()
    require: Annotated[
        tuple[str, ...],
        typer.Option(metavar="T>=N", help="Exit 3 unless a size so large (<=: so small) was judged; may be repeated."),
    ] = ()
    max_skipped: Annotated[
        float | None, typer.Option(help="Exit 3 where more than this share of the cases (0 to 1) was skipped.")
    ] = None
    known: Known = None
    database: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Cases that failed once: judged first, and those that fail are added."),
    ] = None
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Judge part I of N of every kernel's cases (moeracle docs ci).")
    ] = None
    time_budget: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Begin no case after this time; exit 3 if any was left.")
    ] = None
    json: Annotated[Path | None, typer.Option(help="Write the results as JSON (moeracle docs json).")] = None
    junit: Annotated[Path | None, typer.Option(help="Write the results as JUnit XML.")] = None
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page (moeracle docs reports).")] = None


@dataclass(frozen=True)
class SoakOptions:
    """The options of `moeracle soak`."""

    targets: Annotated[
        tuple[str, ...],
        typer.Argument(
            metavar="[TARGET …]",
            help=f"{TARGET_FORMS}, or simulations: those that `faults` trusts; by default moeracle.kernels.",
        ),
    ] = ()
    op: Op = None
    device: Device = None
    elements: Annotated[float, typer.Option(min=1, help="End after so many judged elements, like 1e9.")] = 1e8
    seconds: Annotated[float, typer.Option(min=0, help="End after this time, between two cases.")] = 600.0
    seed: Annotated[int, typer.Option(min=0, help="Of the first round; each round has seeds of its own.")] = 0
    jobs: Jobs = 1
    in_process: InProcess = False
    case_timeout: CaseTimeout = None
    max_memory: MaxMemory = None
    json: Annotated[Path | None, typer.Option(help="Write what was judged as JSON.")] = None


@dataclass(frozen=True)
class LawOptions:
    """The options of `moeracle laws`."""

    op: Annotated[str | None, typer.Option(help="Only the laws of this op.")] = None
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same cases and orders of sums.")] = 0
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Of contracts with two fields changed, part I of N; all others are in each."),
    ] = None
    jobs: Jobs = 1
    json: Annotated[Path | None, typer.Option(help="Write what was checked and found as JSON, each minute.")] = None
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the interrupted run that wrote this JSON, and into it.")
    ] = None
    limit: Annotated[
        float,
        typer.Option(min=1, metavar="SECONDS", help="With --jobs: give up, and report, a contract that takes longer."),
    ] = 600.0


@dataclass(frozen=True)
class CampaignOptions:
    """The options of `moeracle sweep`."""

    targets: Annotated[tuple[str, ...], typer.Argument(metavar="TARGET …", help=TARGET_FORMS)]
    out: Annotated[Path, typer.Option(metavar="DIR", help="The campaign's folder; the same command goes on with it.")]
    cases: Annotated[int | None, typer.Option(min=1, help="Cases in all, of all kernels.")] = None
    hours: Annotated[float | None, typer.Option(min=0, help="End after this time, between two cases.")] = None
    op: Op = None
    device: Device = None
    shapes: Annotated[
        tuple[str, ...], typer.Option("--shapes", help="Also cases of this shape, as for check; may be repeated.")
    ] = ()
    profile: Annotated[str, typer.Option(help="smoke, ci or nightly: how large drawn cases are.")] = "ci"
    seed: Annotated[int, typer.Option(min=0, max=(1 << 20) - 1, help="The same seed draws the same cases.")] = 0
    failures: Annotated[
        tuple[Path, ...],
        typer.Option(metavar="DIR", help="First judge the failing cases of this campaign; may be repeated."),
    ] = ()
    database: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="First judge the cases of this file, and add those that fail, as check does."
        ),
    ] = None
    jobs: Annotated[int | None, typer.Option(min=1, help="Workers; by default one a core, or what Ray offers.")] = None
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Work on Ray: local, auto, or HOST:PORT of a cluster.")
    ] = None
    case_timeout: CaseTimeout = None
    max_memory: MaxMemory = None


@dataclass(frozen=True)
class ParityOptions:
    """The options of `moeracle parity`."""

    a: Annotated[str, typer.Argument(metavar="A", help=TARGET_FORMS)]
    b: Annotated[str, typer.Argument(metavar="B", help=f"{TARGET_FORMS}, of the same op.")]
    op: Op = None
    cases: Annotated[
        tuple[str, ...], typer.Option("--case", help="Compare on this case; may be repeated; by default fixed ones.")
    ] = ()
    examples: Annotated[int, typer.Option(min=1, help="Of the fixed cases that both take, so many at most.")] = 24
    declared: Annotated[
        bool, typer.Option("--declared", help="Take declared contracts in place of inferring them.")
    ] = False
    device: Device = None
    in_process: InProcess = False
    json: Annotated[Path | None, typer.Option(help="Write what was found as JSON.")] = None


@dataclass(frozen=True)
class InferOptions:
    """The options of `moeracle infer`."""

    target: Annotated[str | None, typer.Argument(metavar="[TARGET]", help=TARGET_FORMS)] = None
    op: Op = None
    device: Device = None
    dtype: Annotated[str | None, typer.Option(help="bf16 or fp16; by default bf16 if the kernel takes it.")] = None
    k: Annotated[
        int | None, typer.Option("--k", help="Length of the dot products; by default 2048, or what suits the op.")
    ] = None
    zero: Annotated[
        str | None, typer.Option(help="Zero points whose path is probed; by default sym if the kernel reads it.")
    ] = None
    rows: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows a call; by default 256 if it takes as many. Few rows may be added in another order."
        ),
    ] = None
    probe_hardware: Annotated[
        bool, typer.Option("--probe-hardware", help="Probe this machine's dot instruction; needs no TARGET.")
    ] = False
    probe_file: Annotated[
        Path | None, typer.Option("--probe-file", help="Read what --probe-hardware wrote, and say which model fits.")
    ] = None
    vectors: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of a probe: write questions and answers as vectors, for `moeracle models`."),
    ] = None
    in_process: InProcess = False
    case_timeout: CaseTimeout = None
    max_memory: MaxMemory = None
    json: Annotated[Path | None, typer.Option(help="Write the results as JSON (moeracle docs infer).")] = None


@dataclass(frozen=True)
class GitOptions:
    """The options of `moeracle bisect git`."""

    target: Target
    good: Annotated[str, typer.Option(metavar="REV", help="A revision at which the case is legal.")]
    bad: Annotated[str, typer.Option(metavar="REV", help="A later revision at which it is not.")]
    case: BisectedCase
    build: Annotated[
        str, typer.Option(metavar="CMD", help="Command to run in the worktree at each revision before judging.")
    ] = ""
    repo: Annotated[Path, typer.Option(metavar="DIR", help="A folder of the repository.")] = Path()
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one build, and for judging one revision.")] = (
        1800.0
    )
    device: BisectedDevice = None
    repeat: Repeat = 3
    forget: Annotated[bool, typer.Option("--forget", help="Judge anew what an interrupted run had judged.")] = False
    plot: Annotated[Path | None, typer.Option(help="Draw error over bound along the commits as PNG (matplotlib).")] = (
        None
    )
    json: BisectJson = None


@dataclass(frozen=True)
class ConfigOptions:
    """The options of `moeracle bisect config`."""

    target: Target
    case: BisectedCase
    good: Annotated[
        tuple[str, ...], typer.Option(metavar="KEY=VALUE", help="A setting with which it is legal; may be repeated.")
    ] = ()
    bad: Annotated[
        tuple[str, ...], typer.Option(metavar="KEY=VALUE", help="A setting with which it is not; may be repeated.")
    ] = ()
    each: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="KEY=VALUE",
            help="Instead of GOOD and BAD: one of the values of KEY to compare; every combination is judged.",
        ),
    ] = ()
    device: BisectedDevice = None
    repeat: Repeat = 2
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for judging under one set of settings.")] = 600.0
    json: BisectJson = None


@dataclass(frozen=True)
class CompileOptions:
    """The options of `moeracle kernels compile`."""

    archs: Annotated[tuple[str, ...], typer.Option("--arch", help="Architectures; by default every one.")] = ()
    kernels: Kernels = ()
    tokens: Annotated[
        tuple[int, ...], typer.Option(min=1, help="Numbers of tokens at which launches are compiled.")
    ] = ()
    variants: Annotated[bool, typer.Option(help="Also fp16, zero points and groups of 64.")] = False
    diff: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Two builds side by side: NAME or NAME:MACRO=VALUE,…")
    ] = None
    jobs: Annotated[int, typer.Option(min=0, help="Processes at once; 0 for one a core.")] = 0
    json: Annotated[Path | None, typer.Option(help="Write the table as JSON.")] = None


@dataclass(frozen=True)
class BenchOptions:
    """The options of `moeracle kernels bench`."""

    ops: Annotated[
        tuple[str, ...],
        typer.Option("--op", help="Ops to time; by default both GEMMs and the layer; reference and judge need no GPU."),
    ] = ()
    kernels: Kernels = ()
    against: Annotated[
        tuple[str, ...],
        typer.Option(metavar="TARGET", help="A second implementation, timed in turn; may be repeated, one an op."),
    ] = ()
    tokens: Annotated[tuple[int, ...], typer.Option(min=1, help="Numbers of tokens; by default 1 to 4096.")] = ()
    archetypes: Annotated[
        tuple[str, ...], typer.Option("--archetype", help="Routing archetypes; by default five.")
    ] = ()
    shapes: Annotated[
        tuple[str, ...],
        typer.Option("--shape", help="qwen3.5-35b, qwen3-omni-30b, or sizes: E8-H256-I128-k2-G32."),
    ] = ()
    dtype: Dtype = "bf16"
    zero: Annotated[str, typer.Option(help="sym, rdna or unpacked zero points.")] = "sym"
    block: Annotated[
        int | None,
        typer.Option(min=1, help="Block size of padded_gemm's alignment; by default 16, 32 or 64 by rows an expert."),
    ] = None
    rounds: Annotated[int, typer.Option(min=3, help="Measurements of each point.")] = 30
    seconds: Annotated[float, typer.Option(min=0.01, help="About how many seconds each point takes.")] = 0.3
    seed: Annotated[int, typer.Option(min=0, help="Seed of the routings and the data.")] = 1
    json: Annotated[Path | None, typer.Option(help="Write the measurements as JSON (moeracle docs bench).")] = None
    plot: Annotated[Path | None, typer.Option(help="Draw microseconds over tokens into this PNG.")] = None
    resume: Resume = False
    jobs: CompileJobs = 0
    modifiers: Annotated[
        tuple[str, ...],
        typer.Option("--modifier", help="bias, gate, renorm, … of the ops that have it (moeracle docs cases)."),
    ] = ()
    launches: Annotated[bool, typer.Option("--launches", help="Also count the GPU kernels of one call.")] = False
    parts: Annotated[
        bool,
        typer.Option(
            "--parts", help="Also time moe_w4a16.hopper's GEMMs, sum and layer, with the alignment made before."
        ),
    ] = False
    peer: Annotated[
        Path | None, typer.Option(help="JSON {shape: {T: us}} of another aligned layer, beside --parts.")
    ] = None


@dataclass(frozen=True)
class SweepOptions:
    """The options of `moeracle kernels sweep`."""

    op: Annotated[str, typer.Option(help="Op to sweep.")] = "moe_w4a16"
    kernels: Kernels = ()
    most: Annotated[int, typer.Option(min=3, help="The largest T.")] = 4096
    per_octave: Annotated[int, typer.Option("--per-octave", min=1, help="Steps between two powers of two.")] = 4
    tokens: Annotated[tuple[int, ...], typer.Option(min=1, help="These numbers of tokens in place of 1 to 4096.")] = ()
    archetypes: Annotated[
        tuple[str, ...], typer.Option("--archetype", help="Routing archetypes; by default uniform.")
    ] = ()
    shapes: ShapesAsForBench = ()
    rounds: Annotated[int, typer.Option(min=3, help="Measurements of each T.")] = 15
    seconds: Annotated[float, typer.Option(min=0.01, help="About how many seconds each T takes.")] = 0.15
    json: Annotated[Path | None, typer.Option(help="Write the measurements as JSON.")] = None
    plot: Annotated[Path | None, typer.Option(help="Draw the sweep into this PNG.")] = None
    resume: Resume = False
    jobs: CompileJobs = 0

    def as_bench(self) -> BenchOptions:
        """Return them as those of `moeracle kernels bench`, which measures every T."""
        shared = {field.name for field in fields(BenchOptions)} & {field.name for field in fields(self)}
        return BenchOptions(ops=(self.op,), **{name: getattr(self, name) for name in shared})


@dataclass(frozen=True)
class TuneOptions:
    """The options of `moeracle kernels tune`."""

    target: Annotated[
        str | None, typer.Argument(metavar="[TARGET]", help=f"Kernels that declare tiles: {TARGET_FORMS}.")
    ] = None
    cases: Annotated[
        tuple[str, ...], typer.Option("--case", help="Of a TARGET: time and judge on this case; may be repeated.")
    ] = ()
    kernels: Kernels = ()
    shapes: ShapesAsForBench = ()
    tokens: Annotated[
        tuple[int, ...],
        typer.Option(min=1, help="Numbers of tokens, one for each row of a table; by default 1 to 4096."),
    ] = ()
    arch: Annotated[
        str | None, typer.Option(help="Choose for this gfx architecture by its compiler; needs no GPU.")
    ] = None
    archetype: Annotated[str, typer.Option(help="Routing archetype.")] = "uniform"
    dtype: Dtype = "bf16"
    most: Annotated[int, typer.Option(min=1, help="Tiles of a GEMM to try for each bucket.")] = 40
    seconds: Annotated[float, typer.Option(min=0.001, help="Seconds for measuring each tile.")] = 0.05
    device: Device = None
    case_timeout: CaseTimeout = None
    max_memory: MaxMemory = None
    resume: Resume = False
    dry: Annotated[bool, typer.Option("--dry", help="Write no table.")] = False
    json: Annotated[Path | None, typer.Option(help="Write everything that was tried as JSON.")] = None
