"""Laws: what every right kernel obeys, whatever the formula. Two or more for each op; `hunt` puts them to a kernel.

Each law is a callable (kernel, case) -> Verdict, or None where it says nothing about that case or kernel. They do not
use the reference's arithmetic, so a mistake shared by a kernel and the reference cannot hide from them. The text of the
case is enough to see a failure again: `moeracle check TARGET --case TEXT` judges the case and then puts its laws to it.
"""

from __future__ import annotations

from ..cases.case import Case
from ..cases.changes import local_slots
from ..cases.kernel_like import KernelLike
from ..cases.record import record_of
from ..common.verdict import Verdict, failed
from .bench import Bench, Broken


def law_grouped_equals_padded(
    grouped: KernelLike, padded: KernelLike, case: Case, *, bits: bool = False
) -> Verdict | None:
    """Return whether a grouped and a padded GEMM agree, slot by slot, on one problem; None if either declines.

    Bit for bit on exact data. With `bits` on the case's own data too: for two kernels of one family and one tile, which
    promise it.

    Args:
        grouped, padded: kernels for grouped_gemm and padded_gemm.
        case: a grouped_gemm case; the padded one has block size 16.
        bits: demand equal bits on any data.
    """
    name = "law_grouped_equals_padded"
    bench = Bench(name, "grouped GEMM and padded GEMM of the same rows are equal", grouped, case)
    sizes, text = {**case.sizes, "B": 16}, str(case).split("/")
    text[0], text[1] = "padded_gemm", "-".join(f"{letter}{size}" for letter, size in sizes.items())
    if grouped.why_not(case) is not None or padded.why_not(Case.parse("/".join(text))) is not None:
        return None
    try:
        problem, results = bench.start(exact=not bits)
        same = Case.parse("/".join(text)).replace(data=problem.case.data).build()
        other = Bench(name, bench.identity, padded, same.case)
        got = record_of(same.case.op).by_token(same, other.run(same, "the padded kernel"))["out"]
        expected = record_of(problem.case.op).by_token(problem, results)["out"]
        where = local_slots(problem)[:, :, None]
        bench.equal("out", got, expected, ("token", "slot", "n"), where, f"padded by {padded.name}")
    except Broken as broken:
        failed(bench.verdict, "law", name, *broken.args, f"law: {bench.identity}")
    return bench.verdict
