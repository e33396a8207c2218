"""`moeracle op` and `moeracle new`: how an op's kernel is called, and a file to start from, out of the op's record."""

from __future__ import annotations

from pathlib import Path

from moeracle.properties.cases.optable import OPS, Argument, Op
from moeracle.ref.errors import require, unknown

from .console import print_table, say

WEIGHT = (
    (".packed", "the packed words, in the shape of .layout (moeracle docs formats, section 1)"),
    (".scale", "D [..., N, K/G]; of layouts gptq and awq a transposed view of [K/G, N]"),
    (".zero", "the packed zero points in the form .zero_layout, or None: every zero point is 8"),
    (".layout, .zero_layout, .group_size", "names of the forms, and G as the case gives it (-1: one group)"),
    (".E, .N, .K, .G", "sizes; E is None without experts, G is never -1"),
    (".codes(), .zeros()", "uint8 [..., N, K] and [..., N, K/G], unpacked"),
    (".dequantize(dtype)", "[..., N, K] of (code - zero point) * scale, in fp32 unless said"),
)
STARTER = '''{imports}

@moeracle.kernel(
{options}
)
def {signature}:
    """{summary}

    Args (D is the activation dtype):
{arguments}
    Returns:
{results}
    """
    # Launch your kernel here, and say in `contract` where it rounds; without one, `moeracle check` infers it.
    {body}
'''


def starter_file(op: Op) -> str:
    """Return a kernel file for an op: right as it stands, in torch, with the place to launch something faster."""
    options = [f'"{op.name}"']
    options += ['layout="exllama"'] if op.weight else []
    options += [f'contract="{op.starter_contract}"'] if op.starter_contract else []
    options += ['device="cpu"']
    return STARTER.format(
        imports="import moeracle\nfrom moeracle import ref\n" if "ref." in op.starter else "import moeracle\n",
        options="\n".join(f"    {option}," for option in options),
        signature=op.signature(f"my_{op.name}"),
        summary=op.summary,
        arguments="\n".join(f"        {a.name}: {form_of(a)}. {a.meaning}" for a in op.arguments),
        results="\n".join(f"        {r.name}: {r.form}. {r.meaning}" for r in op.results),
        body=op.starter,
    )


def run_op(name: str | None) -> int:
    """Print an op's signature, arguments, results, what its cases may say, and a kernel file; without a name, all ops.

    Raises:
        ValueError: an unknown op, with the nearest name.
    """
    if name is None:
        rows = [(op.signature(op.name), op.summary) for op in OPS.values()]
        print_table(("op", "what it computes"), rows, text_columns=2)
        return 0
    op = _known(name)
    say(f"{op.signature(op.name)}\n  {op.summary}\n")
    listed = (*op.arguments, *([op.extra] if op.extra else []))
    arguments = [(a.name, form_of(a), a.meaning) for a in listed]
    print_table(("argument", "dtype and shape", "meaning"), arguments, text_columns=3)
    if op.weight:
        say()
        print_table(("of an Int4Weight", "what it is"), WEIGHT, text_columns=2)
    say()
    results = [(r.name, r.form, r.meaning) for r in op.results]
    print_table(("result", "dtype and shape", "meaning"), results, text_columns=3, title=f"returns {returned(op)}")
    say("\nD is the activation dtype. A case of this op may say:")
    for field, values in (
        ("dimensions", [f"[{letter}]" if letter in op.optional else letter for letter in op.dims]),
        ("dtype", op.dtypes),
        ("routing", (*op.routings, *(f"+{flag}" for flag in op.routing_flags))),
        ("data", (*op.data, *(f"+{flag}" for flag in op.data_flags))),
    ):
        if tuple(values) != ("-",):
            say(f"  {field:<11} {' '.join(values)}")
    say(f"\nA kernel file to start from (moeracle new {op.name} FILE writes it):\n\n{starter_file(op).rstrip()}")
    return 0


def run_new(name: str, file: Path) -> int:
    """Write a kernel file for an op.

    Raises:
        ValueError: an unknown op, a file that is there already or does not end in .py, or cannot be written.
    """
    op = _known(name)
    require(file.suffix == ".py", f"FILE: got {str(file)!r}, must end in .py")
    try:
        with file.open("x") as new:
            new.write(starter_file(op))
    except FileExistsError:
        raise ValueError(f"FILE: {file} is there already, must be a new file") from None
    except OSError as error:
        raise ValueError(f"FILE: {file} cannot be written: {error.strerror or error}") from None
    say(f"wrote {file}: a right kernel in torch; judge it with: moeracle check {file}")
    return 0


def returned(op: Op) -> str:
    """Say in words what a kernel of an op returns."""
    if op.layer:
        return "the tensor `out`, or a dict of `out` and those of the other stages that it stores"
    return "a tuple of tensors, in this order" if len(op.results) > 1 else "one tensor"


def form_of(argument: Argument) -> str:
    """Return an argument's dtype and shape, and whether it may be None."""
    return f"{argument.form} or None" if argument.optional else argument.form


def _known(name: str) -> Op:
    if name not in OPS:
        raise unknown("op", name, OPS)
    return OPS[name]
