"""models fit: the numbers of known and made-up units are found from their results alone, or said to be left open."""

import re
from pathlib import Path

import pytest
import torch

from moeracle.properties.infer.unit_fit import Guess, Results, _listed, fit_unit
from moeracle.properties.recordings.vectors import MANIFEST, model_of_set, read_vectors
from moeracle.ref.bitmodels.models import MODELS, predict

SHARED = Path(__file__).resolve().parents[4] / "shared" / "hardware_vectors"
ROWS = 600
SETS = [
    f"{gpu}.{kind}"
    for gpu, kinds in {
        "V100": ("fp16.fp32", "fp16.fp16"),
        "A100": ("bf16.fp32", "fp16.fp32", "fp16.fp16", "tf32.fp32"),
        **dict.fromkeys(
            ("Ada", "B200", "H100"),
            ("bf16.fp32", "fp16.fp32", "fp16.fp16", "tf32.fp32", "e4m3.fp32", "e4m3.fp16", "e5m2.fp32", "e5m2.fp16"),
        ),
    }.items()
    for kind in kinds
]


@pytest.fixture(scope="module")
def shared():
    if not (SHARED / MANIFEST).is_file():
        pytest.skip("no ../shared/hardware_vectors here")
    torch.set_num_threads(1)
    return {one.name: one for one in read_vectors(SHARED)}


def values(text):
    """The values that a text like "8, 18 to 36" lists."""
    found = set()
    for part in text.split(", "):
        if ends := re.fullmatch(r"(-?\d+) to (-?\d+)", part):
            found |= set(map(str, range(int(ends[1]), int(ends[2]) + 1)))
        elif most := re.fullmatch(r"(-?\d+) or less", part):
            found |= set(map(str, range(-400, int(most[1]) + 1)))
        else:
            found.add(part)
    return found


def allows(fit, name, value):
    """Whether a fit found a number, or says that it is open."""
    return str(fit.guess[name]) == str(value) or str(value) in values(fit.open.get(name, ""))


def numbers(how, K):
    """What a known model's numbers are, of results of K products."""
    core = how.core
    return {
        "products": min(how.step, K), "bits": core.bits, "form": core.form, "store": core.store,
        "cut": core.cut, "least": core.least_exponent,
        "accumulator": "last, to nearest" if how.late else "with the products",
        "order": "bits1.4.8.16.2" if how.late else "consecutive",
    }  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_other_laboratories_units_are_found_or_said_to_be_open(shared, name):
    one = shared[name]
    data = Results(one.operands, one.a, one.b, one.c, one.d).rows(torch.arange(ROWS))
    fit = fit_unit(data)
    assert fit.exact, (fit.equal, fit.total, fit.guess)
    known = model_of_set(one)
    assert known in fit.like
    how = MODELS[known]
    wrong = {key: v for key, v in numbers(how, one.a.shape[1]).items() if not allows(fit, key, v)}
    if how.late and one.out == "fp32":  # one rounding of all: which steps the products took is not in these results
        step = f"{how.step} products a step (bits1.4.8.16.2), "
        assert any(unit.startswith(step) and "last, to nearest" in unit for unit in fit.units), fit.units
    else:
        assert not wrong, (wrong, fit.guess, fit.open)
    assert "least" in fit.open  # no result is tiny


def test_the_sets_are_those_of_the_manifest(shared):
    assert sorted(SETS) == sorted(shared)


def drawn(K, operands=torch.bfloat16, n=600, seed=3, tiny=0.0):
    g = torch.Generator().manual_seed(seed)
    a, b = (
        torch.randn(n, K, generator=g) * torch.exp2(torch.randint(-4, 5, (n, K), generator=g).float()) for _ in "ab"
    )
    c = torch.randn(n, generator=g) * torch.exp2(torch.randint(-12, 13, (n,), generator=g).float())
    if tiny:
        part = slice(0, n // 2)
        a[part], b[part], c[part] = a[part] * 2.0**-70, b[part] * 2.0**-76, 0.0
    return a.to(operands), b.to(operands), c


def of(unit, *parts):
    a, b, c = parts
    data = Results("bf16", a, b, c, torch.zeros(len(a)))
    return Results("bf16", a, b, c, unit.predict(data))


@pytest.mark.parametrize(
    "unit",
    [
        Guess(2, 27, "fp32", "rtz"),
        Guess(4, 26, "fp32", "rne", cut="floor"),
        Guess(8, 22, "fp32", "rtz", exponents="product"),
        Guess(8, 24, "fp32", "rtz", accumulator="last, to nearest"),
    ],
    ids=lambda unit: f"{unit.products}x{unit.bits}",
)
def test_units_that_nobody_has_built_are_found(unit):
    fit = fit_unit(of(unit, *drawn(16)))
    assert fit.exact
    assert fit.like == ()
    for name in ("products", "bits", "store", "cut", "exponents", "accumulator"):
        assert fit.guess[name] == getattr(unit, name), name
        assert fit.open.get(name, "normalized_operands") == "normalized_operands", fit.open  # no operand is subnormal


def test_cdna3_is_found():
    a, b, c = drawn(16)
    fit = fit_unit(Results("bf16", a, b, c, predict("mfma.k16.cdna3", a, b, c)))
    assert fit.exact
    assert (fit.guess["products"], fit.guess["bits"], fit.guess["store"]) == (8, 24, "rne")
    assert allows(fit, "sum_bits", 31)
    assert "mfma.k16.cdna3" in fit.like


def test_tiny_results_decide_the_least_exponent():
    parts = drawn(16, n=2000, tiny=1.0)
    fit = fit_unit(of(Guess(16, 25, "fp32", "rtz", least=-128), *parts))
    assert fit.exact
    assert fit.guess["least"] == -128 or "-128" in values(fit.open["least"])
    assert not allows(fit, "least", -126)
    assert not allows(fit, "least", -133)


def test_what_no_unit_explains_is_said():
    a, b, c = drawn(16)
    noisy = predict("wgmma.k16.sm90", a, b, c)
    noisy.view(torch.int32)[::7] ^= 5
    fit = fit_unit(Results("bf16", a, b, c, noisy))
    assert not fit.exact
    assert fit.like == ()
    assert fit.first == 0
    assert 0.8 < fit.equal / fit.total < 0.9
    assert (fit.guess["products"], fit.guess["bits"]) == (16, 25)
    assert (fit.open, fit.units) == ({}, ())
    one_wrong = predict("wgmma.k16.sm90", a, b, c)
    one_wrong.view(torch.int32)[599] ^= 1
    assert fit_unit(Results("bf16", a, b, c, one_wrong)).first == 599


def test_special_values_and_signs_of_zero_must_be_predicted_too():
    a, b, c = drawn(16)
    a[0, 0], a[1, :], c[1], a[2, 0], b[2, 0] = torch.inf, 0.0, -0.0, torch.inf, 0.0
    d = predict("wgmma.k16.sm90", a, b, c)
    fit = fit_unit(Results("bf16", a, b, c, d))
    assert fit.exact
    assert fit.guess["zeros"] == "+0"
    assert "special values" not in fit.open
    d[1] = -0.0
    assert not fit_unit(Results("bf16", a, b, c, d)).exact
    assert fit_unit(Results("bf16", a[2:3], b[2:3], c[2:3], d[2:3])).total == 1  # nothing to search by


def test_lists_are_short():
    assert _listed([8, 18, 19, 20, 21]) == "8, 18 to 21"
    assert _listed([1, 2, 4]) == "1, 2, 4"
    assert _listed(["floor"]) == "floor"
    assert _listed([None, 3]) == "None, 3"
