"""Laws about weights: words and codes, experts alone, layouts among themselves, and the quantizers' round trips."""

from __future__ import annotations

from dataclasses import replace

import torch

from moeracle.ref.weights.layouts import pack_codes

from ..cases.case import Case, Problem
from ..cases.changes import like, other_codes, with_args
from ..cases.optable import zero_forms
from ..cases.record import record_of
from .agree import agree
from .bench import Bench, Silent, law

V1 = "gptq_v1"


def _axes(value: torch.Tensor) -> tuple[str, ...]:
    return ("expert", "n", "k")[-value.ndim :]


@law
def law_packing_again(bench: Bench, case: Case) -> None:
    """pack(f(words)) = words: the codes that come out, packed again, are the words that went in.

    Integers: every kernel, every layout, padded or not.
    """
    problem, results = bench.start()
    w, codes = problem.args["w"], results["out"]
    top = w.packing.top
    small = (codes >= 0) & (codes <= top)
    bench.demand("out", small, codes, codes.clamp(0, top), _axes(codes), None, "the words", f"0..{top}")
    if codes.dtype != torch.uint8:
        bench.fail(f"out: got {codes.dtype}, must be torch.uint8")
    words = pack_codes(codes, w.layout, w.bits)
    axes = ("expert", "row", "word")[-words.ndim :]
    bench.equal("packed again", words, w.packed.view(words.dtype), axes, None, "the words", "the words themselves")


@law
def law_inverting_words(bench: Bench, case: Case) -> None:
    """f(~words) = 15 - f(words): every layout keeps each code in four bits of its own; 255 for codes of eight.

    Integers: every kernel. An unmasked arithmetic shift or a bit shared between codes breaks it.
    """
    problem, results = bench.start()
    w, codes = problem.args["w"], results["out"]
    everywhere = torch.ones(w.packed.shape[:-2], dtype=torch.bool)
    got = bench.run(with_args(problem, w=other_codes(w, everywhere)), "every bit of the words inverted")["out"]
    bench.equal("out", got.int(), w.packing.top - codes.int(), _axes(codes), on="every bit of the words inverted")


@law
def law_layouts_agree(bench: Bench, case: Case) -> None:
    """The same codes, scales and zero points in another layout give the same result.

    Asked of kernels that read several layouts. Exact for unpack_int4 and dequantize_int4; on exact data for GEMMs,
    whose tiles a layout may change. Zero points of GPTQ v1 are left out where the contract reads a stored 15 in
    another way than 0, which is what stands in the other layouts.
    """
    problem, results = bench.start(exact=True)
    record, other_reading = record_of(case.op), bench.contract.v1_zeros != "modulo"
    if other_reading and case.zero_layout == V1:
        raise Silent
    for layout, forms in zero_forms(case.flags).items():
        for zero, stored in forms.items():
            if other_reading and stored == V1:
                continue
            same_kind = (zero == "sym") == (case.zero == "sym")  # the middle for all, or one each
            if (layout, zero) == (case.layout, case.zero) or not same_kind:
                continue
            try:
                other_case = problem.case.replace(layout=layout, zero=zero, pad=0)
            except ValueError:
                continue  # the sizes do not fit that layout's words
            if bench.kernel.why_not(other_case) is not None:
                continue
            other, on = record.exact_under(other_case.build(), bench.contract), f"{layout}-{zero}"
            got = bench.run(other, on)
            agree(bench, other, record.by_token(other, got), record.by_token(problem, results), on)


@law
def law_an_expert_alone(bench: Bench, case: Case) -> None:
    """f(w)[e] = f(w[e]): an expert's matrix decoded alone is its slice of all.

    Exact: every kernel that takes weights with and without experts; those that need experts get one expert.
    """
    problem, results = bench.start()
    w = problem.args["w"]
    if w.E is None:
        raise Silent
    for e in dict.fromkeys((0, w.E - 1, case.seed % w.E)):
        zero = None if w.zero is None else w.zero[e : e + 1]
        of = None if w.group_of is None else w.group_of[e : e + 1]
        one = replace(w, packed=w.packed[e : e + 1], scale=w.scale[e : e + 1], zero=zero, group_of=of)
        alone = Problem(case.replace(E=1), {"w": one}, exact=True)
        on = f"expert {e} alone"
        expected = results["out"][e : e + 1]
        bench.equal("out", bench.run(alone, on)["out"], expected, _axes(expected), on=on)


@law
def law_codes_at_their_zero_point(bench: Bench, case: Case) -> None:
    """A weight whose every code is its zero point is 0, whatever the scales.

    Exact: every kernel. A zero point off by one, from a neighbour, or in another order breaks it.
    """
    problem, _ = bench.start()
    w = problem.args["w"]
    zeros = w.zeros()
    spread = torch.full(w.shape, w.middle, dtype=torch.uint8) if zeros is None else w.spread(zeros)
    packed = like(w.packed, pack_codes(spread.contiguous(), w.layout, w.bits).view(w.packed.dtype))
    on = "codes equal to their zero points"
    got = bench.run(with_args(problem, w=replace(w, packed=packed)), on)["out"]
    bench.equal("out", got, torch.zeros_like(got), _axes(got), None, on, "zeros")


@law
def law_negating_weights(bench: Bench, case: Case) -> None:
    """quantize(-w) has the codes of quantize(w) negated, and its scales.

    Bit for bit, same computation: division and round-half-even do not know the sign; round-half-up does. Codes of -128
    have no opposite and are left out.
    """
    problem, results = bench.start()
    negated = with_args(problem, w=like(problem.args["w"], -problem.args["w"]))
    got, codes = bench.run(negated, "-w"), results["codes"].int()
    bench.equal("codes", got["codes"].int(), -codes, ("row", "k"), codes > -128, "-w")
    bench.equal("scale", got["scale"], results["scale"], ("row", "group")[: got["scale"].ndim], on="-w")


@law
def law_quantizing_again(bench: Bench, case: Case) -> None:
    """quantize(codes) = codes where the largest code of each group is 127: its scale is then 1.

    Every kernel: quotients are whole numbers within an approximate division's 2^-21, far from any tie.
    """
    problem, results = bench.start()
    K = problem.args["w"].shape[1]
    codes = results["codes"].clamp(min=-127)
    codes[:, :: K if case.G == -1 else case.G] = 127
    w = codes.to(problem.args["w"].dtype)
    on = "codes whose groups hold a 127"
    got = bench.run(with_args(problem, w=w), on)
    bench.equal("codes", got["codes"].int(), codes.int(), ("row", "k"), None, on, "those codes")
    ones = torch.ones_like(got["scale"])
    close = (got["scale"] - 1).abs() <= 2.0**-21
    bench.demand("scale", close, got["scale"], ones, ("row", "group")[: ones.ndim], None, on, "1")


@law
def law_negative_scales(bench: Bench, case: Case) -> None:
    """f(w with -s) = -f(w): AutoRound writes negative scales for half of all groups.

    On exact data, without a bias: every kernel, whatever its order. One that takes |s|, or clamps scales, breaks it.
    """
    problem, results = bench.start(exact=True, without=frozenset({"bias"}))
    w, on = problem.args["w"], "negated scales"
    got = bench.run(with_args(problem, w=replace(w, scale=like(w.scale, -w.scale))), on)["out"]
    used = record_of(case.op).rows_with_meaning(problem) if record_of(case.op).sums_products else None
    axes = ("row", "n") if record_of(case.op).sums_products else _axes(got)
    bench.equal("out", got, -results["out"], axes, None if used is None else used[:, None], on, "minus its own result")
