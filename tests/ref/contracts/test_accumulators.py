"""Accumulators: every record answers every question, bounds are in the order it says, and a new one is one entry."""

from pathlib import Path

import pytest
import torch

from moeracle.ref.bitmodels.accumulate import accumulate
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.bitmodels.tensor_core import CDNA3, HOPPER, INSTRUCTIONS, VOLTA, Instruction, TensorCore
from moeracle.ref.bounds.band import exactly
from moeracle.ref.bounds.dot import DotWeights, dot_band, dot_radius
from moeracle.ref.contracts import accumulators
from moeracle.ref.contracts.accumulators import (
    ACCUMULATORS,
    EVIDENCE,
    Accumulator,
    covering,
    elsewhere,
    of_instruction,
    of_step,
)
from moeracle.ref.contracts.contract import CHOICES, Contract, contract

DOCS = Path(__file__).resolve().parents[3] / "docs"
DTYPES = (torch.bfloat16, torch.float16)
PATHS = ("cast", "exact", "post", "hoisted")
# Unit of bf16 and fp16, products a block, most a block loses and mean that a product loses in units of 2^-23.
BY_HAND = {
    "fp32": (2.0**-24, 2.0**-24, 1, 0.5, 0.0),
    "tensor_core": (2.0**-23, 2.0**-23, 1, 1.0, 0.5),
    "hopper": (2.0**-23, 2.0**-23, 16, 5.25, 5.25 / 32),
    "ampere": (2.0**-23, 2.0**-23, 8, 5.5, 5.5 / 16),
    "truncating": (2.0**-23, 2.0**-23, 1, 1.0, 0.5),
    "rdna": (2.0**-22, 2.0**-22, 1, 2.0, 1.0),
    "chains": (2.0**-8, 2.0**-11, 1, 2.0**15, 0.0),
    "dtype": (2.0**-8, 2.0**-11, 1, 2.0**15, 0.0),
}
TOY = TensorCore("toy", 4, 24)
TOY_ADDER = Accumulator(
    "a unit of four products", 2.0**-23, within=("tensor_core", "rdna"), instructions=("toy.k4",), core=TOY
)


@pytest.fixture
def toy(monkeypatch):
    """Enter a new matrix unit, its instruction and its record."""
    monkeypatch.setitem(INSTRUCTIONS, "toy.k4", Instruction(TOY, 4))
    monkeypatch.setitem(ACCUMULATORS, "toy", TOY_ADDER)


def radius(name, K, dtype, **changed):
    """The derived bound on fixed data, at its tightest (|y| = T) and with much cancelled."""
    t = torch.tensor([[1.0, 1.0, 1000.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    return dot_radius(y, t, K, Contract("c", accumulator=name, **changed), dtype)


def not_covered(name):
    """List the looser accumulators of one, weight paths, dtypes and K whose bound is below its own."""
    return [
        (looser, weight, dtype, K)
        for looser in ACCUMULATORS[name].within
        for weight in PATHS
        for dtype in DTYPES
        for K in (1, 2, 7, 8, 9, 16, 17, 100, 4096)
        if bool((radius(looser, K, dtype, weight=weight) < radius(name, K, dtype, weight=weight)).any())
    ]


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_every_accumulator_answers_every_question(name):
    adder = ACCUMULATORS[name]
    assert contract(f"grouped,accumulator={name}").adder is adder
    assert adder.what
    assert adder.source
    assert adder.evidence in EVIDENCE
    assert {type(getattr(adder, flag)) for flag in ("nearest", "sums_nearest", "one_sign", "in_dtype")} == {bool}
    assert set(adder.within) <= set(ACCUMULATORS) - {name}
    assert set(adder.instructions) <= set(INSTRUCTIONS)
    assert elsewhere(name) in (name, *adder.within)
    assert adder.core is None or (adder.core.evidence == adder.evidence and ACCUMULATORS[elsewhere(name)].core is None)
    for dtype in DTYPES:
        assert adder.bits_in(dtype) == (24 if not adder.in_dtype else 8 if dtype == torch.bfloat16 else 11)
        assert 0 <= adder.mean_loss <= adder.block_error_in(dtype) / adder.block <= adder.unit_in(dtype)
        assert bool((radius(name, 64, dtype) > 0).all())


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_the_facts_worked_by_hand(name):
    adder = ACCUMULATORS[name]
    bf16, fp16 = DTYPES
    in_units = adder.block_error_in(bf16) * 2.0**23, adder.mean_loss * 2.0**23
    assert (adder.unit_in(bf16), adder.unit_in(fp16), adder.block, *in_units) == BY_HAND[name]


def test_the_documentation_says_what_the_records_say():
    numerics, contracts = ((DOCS / file).read_text() for file in ("numerics.md", "contracts.md"))
    for name, adder in ACCUMULATORS.items():
        unit = "2^-8 (bf16), 2^-11 (fp16)" if adder.unit is None else f"2^{torch.tensor(adder.unit).log2():.0f}"
        assert f"| `{name}` | {unit} | {adder.what} |" in numerics
        if adder.core is not None:
            units = adder.block_error_in(torch.bfloat16) * 2.0**23
            assert f"ceil(K/{adder.block})·{units:g}·2^-23·M·(1+g)" in numerics
    row = next(line for line in contracts.splitlines() if line.startswith("| `accumulator` |"))
    assert sorted(row.split("|")[2].replace("`", "").replace(" ", "").split(",")) == sorted(ACCUMULATORS)


def test_every_instruction_has_one_accumulator_whose_bound_covers_it():
    named = [i for adder in ACCUMULATORS.values() for i in adder.instructions]
    assert sorted(named) == sorted(INSTRUCTIONS)
    for instruction, how in INSTRUCTIONS.items():
        adder = ACCUMULATORS[of_instruction(instruction)]
        if how.core is None:
            assert (adder.core, adder.nearest, adder.sums_nearest) == (
                None,
                how.rounding == "rne",
                how.rounding == "rne",
            )
        elif adder.core is not None:
            lost = (how.step + 1) * 2.0**-how.core.bits + 2.0**-23
            assert how.core.store == "rtz"
            for K in range(1, 300):
                assert -(-K // how.step) * lost <= -(-K // adder.block) * adder.block_error_in(torch.bfloat16)


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_looser_accumulators_cover(name):
    within = ACCUMULATORS[name].within
    assert not_covered(name) == []
    for at, looser in enumerate(within):  # the narrowest first, and what covers a cover is named too
        assert set(ACCUMULATORS[looser].within) <= set(within[at + 1 :])


def test_a_cover_that_is_too_narrow_would_be_seen(monkeypatch):
    wrong = Accumulator("toward zero", 2.0**-23, within=("fp32", "hopper"), source="planted")
    monkeypatch.setitem(ACCUMULATORS, "truncating", wrong)
    assert {looser for looser, *_ in not_covered("truncating")} == {"fp32", "hopper"}


def test_what_covers_two():
    assert covering("fp32", "truncating") == "truncating"
    assert covering("hopper", "ampere") == covering("fp32", "hopper") == "tensor_core"
    assert covering("rdna", "hopper") == "rdna"
    assert covering("dtype", "fp32") == "dtype"
    for first in ACCUMULATORS:
        assert covering(first, first) == first
        for second in ACCUMULATORS:
            assert covering(first, second) == covering(second, first)


def test_the_accumulator_of_a_step():
    assert [of_step(16, 25), of_step(8, 24), of_step(8, 25)] == ["hopper", "ampere", "ampere"]
    assert of_step(16, 24) == of_step(4, 23) == accumulators.ANY_MATRIX_UNIT


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"evidence": "believed"}, "evidence: got 'believed', must be one of derived"),
        ({"unit": None}, "nearest: got False without a unit"),
        ({"core": CDNA3, "within": ("rdna",)}, "core: got cdna3, must align"),
        ({"core": HOPPER}, "within: got none with core hopper"),
        ({"core": VOLTA, "within": ("rdna",)}, "unit: got .*, must be 1.78814e-07 or more: what volta loses a product"),
    ],
)
def test_mistakes(changed, message):
    with pytest.raises(ValueError, match="^" + message):
        Accumulator(**{"what": "planted", "unit": 2.0**-23, **changed})


def test_an_unknown_instruction_is_refused():
    with pytest.raises(ValueError, match=r"instruction: got 'wgmma', must be one of"):
        of_instruction("wgmma")


@pytest.mark.usefixtures("toy")
def test_a_new_accumulator_is_one_entry():
    rules = contract("grouped,accumulator=toy,schedule=toy.k4")
    assert rules.adder is TOY_ADDER
    assert "toy" in CHOICES["accumulator"]
    assert of_instruction("toy.k4") == of_step(4, 24) == "toy"
    assert covering("toy", "hopper") == elsewhere("toy") == "tensor_core"
    assert not_covered("toy") == []
    torch.manual_seed(0)
    a, w = torch.randn(8, 256).bfloat16(), torch.randn(16, 256).bfloat16()
    got = accumulate(a, w, Schedule.parse("toy.k4")).double()
    weights = DotWeights(w.double(), w.abs().float())
    of_toy, of_any = (
        dot_band(exactly(a), weights, contract(f"grouped,accumulator={name}"), torch.bfloat16)
        for name in ("toy", "tensor_core")
    )
    assert bool(((of_toy.lo <= got) & (got <= of_toy.hi)).all())
    assert bool((of_toy.radius < of_any.radius).all())
    fewer = accumulate(a, w, Schedule.parse("mma.m16n8k16.sm80")).double()
    assert not torch.equal(got, fewer)
    assert bool((dot_band(exactly(a), weights, rules.unscheduled, torch.bfloat16).radius == of_toy.radius).all())
