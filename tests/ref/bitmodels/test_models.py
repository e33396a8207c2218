"""Models of matrix instructions by name: hand-worked results of each form, a slow exact model, evidence, mistakes."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from moeracle.ref.bitmodels.models import E2M1, EMULATED, MODELS, model_of, predict
from moeracle.ref.bitmodels.tensor_core import CDNA3, EVIDENCE, INSTRUCTIONS, OPERANDS, fused_dot, fused_rows
from support.sums import bits, float_bits, one

FORMS = {"fp32": (-126, 23, 2.0**128), "e8m13": (-126, 13, 2.0**128), "fp16": (-14, 10, 65520.0)}
EMIN = {"bf16": -126, "fp16": -14, "tf32": -126, "e4m3": -6, "e5m2": -14}
FP8 = ("e4m3", "e5m2")


def of(name, a, w, acc=0.0, dtype="fp16", K=None):
    """The value of one result, the operands filled with zeros to K."""
    fill = [0.0] * ((K or len(a)) - len(a))
    rows = [torch.tensor([[*x, *fill]]).to(OPERANDS[dtype]) for x in (a, w)]
    return predict(name, *rows, torch.tensor([acc]))


# By hand.


def test_an_fp16_accumulator_is_rounded_once_to_nearest():
    # 1 + 2^-11 is a tie, which goes to even; 2^-25 above it decides, where a store to fp32 first would cut it.
    hopper, ampere = "mma.m16n8k16.f16.sm90", "mma.m16n8k16.f16.sm80"
    assert of(hopper, [1.0, 2.0**-11], [1.0, 1.0]).item() == 1.0
    assert of(hopper, [1.0, 2.0**-11, 2.0**-12], [1.0, 1.0, 2.0**-13]).item() == 1 + 2.0**-10
    assert of(hopper, [1.0, 2.0**-11, 2.0**-13], [1.0, 1.0, 2.0**-13]).item() == 1.0  # below its 25 bits
    assert of(ampere, [1.0, 2.0**-11, 2.0**-12], [1.0, 1.0, 2.0**-13]).item() == 1.0  # below its 24
    assert of(ampere, [1.0, 2.0**-11, 2.0**-12], [1.0, 1.0, 2.0**-12]).item() == 1 + 2.0**-10


def test_an_fp16_accumulator_at_its_ends():
    name = "wgmma.k16.f16.sm90"
    assert of(name, [65504.0, 15.0], [1.0, 1.0]).item() == 65504.0
    assert of(name, [65504.0, 16.0], [1.0, 1.0]).item() == math.inf
    assert of(name, [255.875, -1.0], [256.0, 1.0], K=32).item() == 65504.0  # 65503 lies 1 below: to nearest
    assert of(name, [1.0] * 17, [65504.0] * 16 + [-65504.0]).item() == math.inf  # an accumulator at infinity stays
    nan = of(name, [math.inf, 1.0], [0.0, 1.0])
    assert nan.dtype == torch.float16
    assert nan.view(torch.int16).item() == 0x7FFF
    assert of(name, [2.0**-12, 2.0**-24], [2.0**-13, 2.0**-22]).item() == 2.0**-24  # a tie, and 2^-46: kept
    assert of(name, [2.0**-12, 2.0**-24], [2.0**-13, 2.0**-23]).item() == 0.0  # 2^-47: cut below 2^(-21-25)
    assert of(name, [2.0**-12, 2.0**-24], [2.0**-13, 2.0**-16], acc=2.0**-24).item() == 2.0**-23  # 2^-40 is cut


def test_tf32_reads_ten_fractional_bits():
    name = "mma.m16n8k8.tf32.sm90"
    assert of(name, [1 + 2.0**-10], [1.0], dtype="tf32").item() == 1 + 2.0**-10
    assert of(name, [1 + 2.0**-11], [1.0], dtype="tf32").item() == 1.0
    assert of(name, [-(1 + 2.0**-10 + 2.0**-23)], [1.0], dtype="tf32").item() == -(1 + 2.0**-10)
    # Four units of 2^-24 beside 1: Ampere takes four products at once and keeps 24 bits.
    assert of("mma.m16n8k8.tf32.sm80", [1.0, *[2.0**-24] * 3], [1.0] * 4, dtype="tf32").item() == 1 + 2.0**-23
    assert of("mma.m16n8k8.tf32.sm80", [1.0, *[2.0**-25] * 7], [1.0] * 8, dtype="tf32").item() == 1.0
    assert of(name, [1.0, *[2.0**-25] * 7], [1.0] * 8, dtype="tf32").item() == 1 + 2.0**-23  # 7 units of 2^-25


def test_fp8_into_fp32_keeps_13_bits_of_terms_and_sum():
    wgmma = "wgmma.k32.fp8.sm90"
    assert of(wgmma, [1.0], [1.0], acc=2.0**-13, dtype="e4m3", K=32).item() == 1 + 2.0**-13
    assert of(wgmma, [1.0], [1.0], acc=2.0**-14, dtype="e4m3", K=32).item() == 1.0
    assert of(wgmma, [0.0], [0.0], acc=1 + 2.0**-14, dtype="e4m3", K=32).item() == 1.0  # without a product, too
    assert (
        of(wgmma, [1.5, 2.0**-7], [1.5, 2.0**-6], dtype="e5m2", K=32).item() == 2.25
    )  # kept as a term, lost as stored
    # 17 products, of which Ada's second step holds one: 2^-13 beside 1, beside 2 it is cut.
    a = [1.0, 1.0] + [0.0] * 14 + [2.0**-7]
    w = [1.0, 1.0] + [0.0] * 14 + [2.0**-6]
    assert of(wgmma, a, w, dtype="e5m2", K=32).item() == 2.0
    assert (
        of("mma.m16n8k32.fp8.sm89", [*a[:1], 0.0, *a[2:]], [*w[:1], 0.0, *w[2:]], dtype="e5m2").item() == 1 + 2.0**-13
    )


def test_emulated_fp8_adds_the_accumulator_last():
    assert sorted(EMULATED) == list(range(32))
    assert EMULATED[:16] == tuple(k for k in range(32) if k % 4 < 2)
    name = "mma.m16n8k32.fp8.sm90"
    assert of(name, [1.0], [2.0**-9], acc=2.0**16, dtype="e4m3", K=32).item() == 2.0**16  # 2^-9 beside 2^16: a tie
    assert of(name, [1.5], [2.0**-9 * 3], acc=2.0**16, dtype="e4m3", K=32).item() == 2.0**16 + 2.0**-7  # rounded up
    # Two halves: 448 * 448 and its negative cancel within the first step, or meet in fp16, where they are infinite.
    half = "mma.m16n8k32.fp8.f16.sm90"
    assert of(half, [448.0, -448.0], [448.0, 448.0], dtype="e4m3", K=32).item() == 0.0
    assert math.isnan(of(half, [448.0, 0.0, -448.0], [448.0, 0.0, 448.0], dtype="e4m3", K=32).item()) is False
    assert of(half, [448.0, 0.0, -448.0], [448.0, 0.0, 448.0], dtype="e4m3", K=32).item() == math.inf
    # An e4m3 subnormal is a normal fp16 number: its own exponent counts.
    a = [2.0**-9, 1.0]
    assert of(name, a, [2.0**-9, 0.0], dtype="e4m3", K=32).item() == 2.0**-18


E8M0 = getattr(torch, "float8_e8m0fnu", torch.float32)  # torch 2.6 has none: powers of two all the same


def scaled(name, a, w, sa, sw, acc=0.0, form=E8M0):
    rows = [torch.zeros(1, MODELS[name].k) for _ in "aw"]
    for row, values in zip(rows, (a, w), strict=True):
        row[0, : len(values)] = torch.tensor(values)
    if "e2m1" in MODELS[name].takes:
        rows = [torch.stack([(v == E2M1).nonzero()[0, 0] for v in row[0]])[None].to(torch.uint8) for row in rows]
    else:
        rows = [row.to(torch.float8_e4m3fn) for row in rows]
    scales = {key: torch.tensor([s]).to(form) for key, s in (("a_scale", sa), ("w_scale", sw))}
    return predict(name, *rows, torch.tensor([acc]), **scales).item()


def test_block_scales():
    for name in ("tcgen05.k32.mxf8.sm100", "mma.m16n8k32.mxf8.sm120"):
        assert scaled(name, [1.5, 2.0], [1.0, 1.0], [2.0**40], [2.0**-38]) == 14.0
        assert scaled(name, [1.0], [1.0], [2.0**24], [1.0], acc=3.5) == 2.0**24 + 2  # cut by the store
        assert scaled(name, [1.0], [1.0], [2.0**26], [1.0], acc=1.0) == 2.0**26
    mx, nv = "tcgen05.k64.mxf4.sm100", "mma.m16n8k64.nvf4.sm120"
    assert scaled(mx, [6.0] * 16, [6.0] * 16, [2.0, 1.0], [4.0, 1.0]) == 8 * 576.0
    assert scaled(mx, [0.5] * 64, [0.5] * 64, [1.0, 2.0], [1.0, 1.0]) == 8.0 + 16.0
    four = [[1.5, 1.0, 1.0, 448.0], [1.0, 2.0, 1.0, 448.0]]
    assert scaled(nv, [1.0] * 64, [1.0] * 64, *four, form=torch.float8_e4m3fn) == 16 * (1.5 + 2 + 1 + 448.0**2)
    # The publications' contradiction: 2^-27 beside 1 is kept with 35 bits and cut with 25.
    assert (
        scaled(mx, [1.0, *[0.0] * 31, 1.0], [1.0] + [0.0] * 31 + [1.0], [1.0, 2.0**-27], [1.0, 1.0], acc=-1.0)
        == 2.0**-27
    )
    with pytest.raises(ValueError, match=r"a_scale, w_scale: got none, must be there for tcgen05.k64.mxf4"):
        predict(mx, torch.zeros(1, 64, dtype=torch.uint8), torch.zeros(1, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"a, w: got codes up to 16, must be 0 to 15"):
        predict(mx, torch.full((1, 64), 16, dtype=torch.uint8), torch.zeros(1, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"a, w: got torch.uint8 and torch.uint8, must both be e2m1"):
        fused_dot(*[torch.zeros(1, 64, dtype=torch.uint8)] * 2, MODELS[mx].core)
    with pytest.raises(ValueError, match=r"a_scale, w_scale: got \(1, 1\) .* must be \[1, K/32\]"):
        scaled(mx, [1.0], [1.0], [1.0], [1.0])


def test_cdna3_counts_a_zero_accumulator():
    tie = ([2.0**-75, 2.0**-80], [2.0**-75, 2.0**-80])  # 2^-150 is half of the smallest; 2^-160 lies below 2^(-126-31)
    assert one(*tie, CDNA3) == 0
    assert one(*tie, replace(CDNA3, zero_accumulator=None)) == 1
    assert one([2.0**-75, 2.0**-78], [2.0**-75, 2.0**-79], CDNA3) == 1  # 2^-157 is kept


# Against a slow model that shares nothing with the fast one.


def slow(a, w, how, dtype, acc):
    core, (emin, p, limit) = how.core, FORMS[how.core.form]
    low = EMIN["fp16" if how.late else dtype]

    def exponent(x, least):
        n = x.numerator.bit_length() - x.denominator.bit_length()
        return max(n if x >= Fraction(2) ** n else n - 1, least)

    def stored(x):
        unit = Fraction(2) ** ((exponent(abs(x), emin) if x else emin) - p)
        x = round(x / unit) * unit if core.store == "rne" else math.trunc(x / unit) * unit
        return x if abs(x) < limit else Fraction(0)

    def step(products, c):
        terms = [(Fraction(x) * Fraction(y), exponent(abs(Fraction(x)), low) + exponent(abs(Fraction(y)), low))
                 for x, y in products if x * y]  # fmt: skip
        tops = [e for _, e in terms] + [core.least_exponent] + ([exponent(abs(c), emin)] if c else [])
        unit = Fraction(2) ** (max(tops) - core.bits)
        return stored(sum((math.trunc(t / unit) * unit for t, _ in terms), math.trunc(c / unit) * unit))

    pairs, total = list(zip(a, w, strict=True)), Fraction(acc)
    for k in range(0, len(pairs), how.k):
        part = pairs[k : k + how.k]
        if how.late:
            held = Fraction(0)
            for half in ([q for i, q in enumerate(part) if i % 4 < 2], [q for i, q in enumerate(part) if i % 4 >= 2]):
                held = step(half, held)
            unit = lambda x: Fraction(2) ** (exponent(abs(x), emin) - p) if x else Fraction(1)
            total = round((held + total) / unit(held + total)) * unit(held + total)
        else:
            for i in range(0, len(part), how.step):
                total = step(part[i : i + how.step], total)
    return float(total)


@pytest.mark.parametrize("name", [n for n, how in MODELS.items() if how.core.sum_bits is None and not how.scaled])
def test_agrees_with_exact_fractions(name):
    how, seen = MODELS[name], 0
    for dtype in how.takes:
        g = torch.Generator().manual_seed(len(name))
        shape, spread = (6, how.k + how.step), 3 if dtype == "e4m3" else 6
        a, w = (torch.randn(shape, generator=g) for _ in "aw")
        a, w = (x * torch.exp2(torch.randint(-spread, 3, shape, generator=g).float()) for x in (a, w))
        a[3:] *= 2.0 ** {"e4m3": -5, "e5m2": -10, "fp16": -10}.get(dtype, -70)
        w[3:] *= 2.0 ** {"e4m3": -5, "e5m2": -10, "fp16": -10}.get(dtype, -70)
        a, w = (x.to(OPERANDS[dtype]) for x in (a, w))
        if dtype == "tf32":
            a, w = ((x.view(torch.int32) & -(1 << 13)).view(torch.float32) for x in (a, w))
        acc = torch.tensor([0.5, -3.0, 100.0, 0.0, 2.0**-24, 0.0])
        got = predict(name, a, w, acc).double().tolist()
        want = [
            slow(x, y, how, dtype, c)
            for x, y, c in zip(a.double().tolist(), w.double().tolist(), acc.tolist(), strict=True)
        ]
        assert got == want, (name, dtype)
        seen += 1
    assert seen


def test_rows_are_the_diagonal_of_a_product():
    a, w = (torch.randn(5, 40, generator=torch.Generator().manual_seed(s)).bfloat16() for s in (1, 2))
    core = MODELS["wgmma.k16.sm90"].core
    rows = fused_rows(a, w, core, torch.ones(5))
    assert bits(rows) == bits(fused_dot(a, w, core, torch.ones(5, 5)).diagonal())


# Names, evidence, mistakes.


def test_every_instruction_of_a_matrix_unit_is_a_model():
    assert {name for name, how in INSTRUCTIONS.items() if how.core is not None} <= set(MODELS)
    for name, how in MODELS.items():
        assert set(how.evidence) <= set(EVIDENCE) - {"assumed"}
        assert (how.core.form == "fp16") == (".f16." in name)
        assert set(how.takes) <= {*OPERANDS, "e2m1"}
        assert name.rpartition(".")[2].startswith("sm") or name.endswith("cdna3")


@pytest.mark.parametrize(
    ("described", "name"),
    [
        (
            ("NVIDIA A2 (sm_86)", "wmma m16n16k16 bf16 -> fp32 (nvcuda::wmma::mma_sync)", "bf16", "fp32"),
            "mma.m16n8k16.sm86",
        ),
        (("NVIDIA A2 (sm_86)", "wmma m16n16k16", "fp16", "fp16"), "mma.m16n8k16.f16.sm86"),
        (("NVIDIA H200 (sm_90)", "wmma m16n16k8 tf32 -> fp32", "tf32", "fp32"), "mma.m16n8k8.tf32.sm90"),
        (("NVIDIA H200 (sm_90)", "wgmma m64nNk32 f32.e4m3.e4m3", "e4m3", "fp32"), "wgmma.k32.fp8.sm90"),
        (("NVIDIA H200 (sm_90)", "mma.sync.aligned.m16n8k32.row.col.f16", "e5m2", "fp16"), "mma.m16n8k32.fp8.f16.sm90"),
        (("sm_90", "mma.sync.aligned.m16n8k8", "bf16", "fp32"), "mma.m16n8k8.sm90"),
        (("sm_100a", "tcgen05.mma.kind::f16", "fp16", "fp32"), "tcgen05.k16.sm100"),
    ],
)
def test_the_model_of_an_instruction_in_words(described, name):
    assert model_of(*described) == name


def test_mistakes():
    x = torch.ones(1, 16)
    with pytest.raises(ValueError, match=r"model: got 'wgmma.k16.sm9', .* did you mean 'wgmma.k16.sm90'"):
        predict("wgmma.k16.sm9", x.half(), x.half())
    with pytest.raises(ValueError, match=r"a, w: got bf16 and bf16, must be fp16 for mma.m8n8k4.sm70"):
        predict("mma.m8n8k4.sm70", x.bfloat16(), x.bfloat16())
    with pytest.raises(ValueError, match=r"a, w: got fp16 and fp16, must be e4m3, e5m2 for wgmma.k32.fp8.sm90"):
        predict("wgmma.k32.fp8.sm90", x.half(), x.half())
    with pytest.raises(ValueError, match=r"must be \[P, K\]"):
        predict("wgmma.k16.sm90", x.half(), x.half()[:, :8])
    with pytest.raises(ValueError, match="device: got 'an H100', must name an architecture"):
        model_of("an H100", "wgmma", "fp16", "fp32")
    with pytest.raises(ValueError, match="instruction: got tcgen05 of sm_90, fp16 into fp32"):
        model_of("sm_90", "tcgen05.mma", "fp16", "fp32")
    assert float_bits(1.0) == 0x3F800000
