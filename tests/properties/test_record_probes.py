"""What inference and bisection ask of an op, its record answers: nothing is claimed without the method behind it."""

from dataclasses import fields

import pytest

from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import OpRecord, record_of
from moeracle.ref.contracts.contract import Contract

CONTRACT_FIELDS = {field.name for field in fields(Contract)}
OF_GEMM = ("probe_arguments", "probe_weights", "predicted_sums")
OF_PROBES = ("questions", "probe_bench")


def answered(op, names):
    """The methods of a record that are its own, or its family's."""
    return {name for name in names if getattr(type(record_of(op)), name, None) is not getattr(OpRecord, name, None)}


@pytest.mark.parametrize("op", OPS)
def test_what_is_inferred_can_be_probed(op):
    record = record_of(op)
    assert set(record.inferred) <= CONTRACT_FIELDS
    assert ("accumulator" in record.inferred) == record.sums_products
    assert answered(op, OF_GEMM) == (set(OF_GEMM) if record.sums_products else set())
    small = bool(record.inferred) and not record.sums_products
    assert answered(op, ("find_rules",)) == ({"find_rules"} if small else set())


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_one_stage_or_has_questions(op):
    record = record_of(op)
    assert answered(op, OF_PROBES) == (set() if record.one_stage else set(OF_PROBES))
    assert record.one_stage or record.questions("")
