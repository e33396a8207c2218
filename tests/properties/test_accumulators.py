"""What properties ask an accumulator's record: statistics, inference and simulation follow a new entry."""

import pytest

from moeracle.properties.cases.case import Case
from moeracle.properties.compare.statistics import errors_of
from moeracle.properties.infer.fit import candidates
from moeracle.properties.infer.found import nearest_preset
from moeracle.properties.simulate.orders import ACCUMULATOR, CORES, ORDERS
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.bitmodels.tensor_core import INSTRUCTIONS, Instruction, TensorCore
from moeracle.ref.contracts.accumulators import ACCUMULATORS, Accumulator
from moeracle.ref.contracts.contract import Contract, contract

CASE = Case.of("int4_linear", T=4, N=8, K=256, G=32, dtype="bf16", seed=1)
SUM = Case.of("moe_unpermute", T=4, E=4, k=4, K=32, dtype="bf16", seed=1)


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_statistics_allow_the_mean_that_the_record_says(name):
    adder, rules = ACCUMULATORS[name], Contract("c", accumulator=name)
    of_dot, of_sum = errors_of(CASE, rules), errors_of(SUM, rules)
    assert of_dot.systematic == (0.0 if adder.nearest else 0.5)
    assert of_dot.loss == (float("inf") if adder.nearest else 256 * adder.mean_loss)
    assert of_sum.systematic == (0.0 if adder.sums_nearest else 0.5)


def test_every_matrix_unit_of_a_record_is_simulated():
    assert set(CORES) <= set(ORDERS)
    assert {ACCUMULATOR[name] for name in CORES} == set(CORES)
    assert set(ACCUMULATOR.values()) <= set(ACCUMULATORS)


def test_a_new_accumulator_is_one_entry(monkeypatch):
    core = TensorCore("toy", 4, 24)
    toy = Accumulator("a toy", 2.0**-23, within=("tensor_core", "rdna"), instructions=("toy.k4",), core=core)
    monkeypatch.setitem(INSTRUCTIONS, "toy.k4", Instruction(core, 4))
    monkeypatch.setitem(ACCUMULATORS, "toy", toy)
    rules = contract("grouped,accumulator=toy")
    assert errors_of(CASE, rules).loss == 256 * 3.5 / 8 * 2.0**-23  # 5 terms cut at 2^-24 and a store at 2^-23
    assert errors_of(CASE, rules).loss < errors_of(CASE, contract("grouped")).loss
    found = candidates([Schedule("toy.k4")], contract("grouped"), 4)
    assert "toy" in {c.accumulator for c in found if c.schedule.instruction == "toy.k4"}
    assert nearest_preset(rules, "int4_linear")[0] == "grouped"
