"""Public names are declared, and their docstrings say what a caller must know."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import NamedTuple

import pytest

import moeracle.ref
from support.docstrings import faults_of

# Modules from which users import; each declares its names in __all__.
PUBLIC = (
    "moeracle",
    "moeracle.clients",
    "moeracle.testing",
    "moeracle.tensors.errors",
    "moeracle.tensors.judge",
    "moeracle.tensors.saved",
    "moeracle.tensors.tolerance",
    "moeracle.tensors.verdict",
    "moeracle.ref",
    "moeracle.checkpoints",
    "moeracle.ref.rounding",
    "moeracle.ref.bitmodels.models",
    "moeracle.ref.contracts.contract",
    "moeracle.ref.contracts.accumulators",
    "moeracle.ref.bounds.band",
    "moeracle.ref.bounds.dot",
    "moeracle.ref.bounds.moe_w4a16",
    "moeracle.ref.bounds.shared_expert",
    "moeracle.properties.cases.case",
    "moeracle.properties.cases.optable",
    "moeracle.properties.cases.record",
    "moeracle.properties.common.verdict",
    "moeracle.properties.judge",
    "moeracle.properties.trial.trial",
    "moeracle.properties.hunt.hunt",
    "moeracle.properties.hunt.effort",
    "moeracle.properties.hunt.shrink",
    "moeracle.properties.laws.bench",
    "moeracle.properties.simulate",
    "moeracle.properties.faults",
    "moeracle.properties.fault_matrix.hunt",
    "moeracle.properties.fault_matrix.matrix",
    "moeracle.properties.fault_matrix.legal",
    "moeracle.properties.diagnose",
    "moeracle.properties.infer",
    "moeracle.properties.infer.unit_fit",
    "moeracle.properties.golden.derive",
    "moeracle.properties.golden.store",
    "moeracle.properties.golden.verify",
    "moeracle.properties.bisect.chain",
    "moeracle.properties.bisect.history",
    "moeracle.properties.recordings.recordings",
    "moeracle.properties.recordings.replay",
    "moeracle.properties.recordings.vectors",
    "moeracle.properties.report.report",
    "moeracle.target.load",
    "moeracle.kernels.entry",
)


@pytest.mark.parametrize("module", PUBLIC)
def test_public_docstrings_are_complete(module: str) -> None:
    public = import_module(module)
    assert public.__all__
    found = {name: faults for name in public.__all__ if (faults := faults_of(getattr(public, name)))}
    assert found == {}


@pytest.mark.parametrize("name", [n for n in moeracle.ref.__all__ if inspect.isfunction(getattr(moeracle.ref, n))])
def test_a_reference_cites_what_it_reimplements(name: str) -> None:
    assert faults_of(getattr(moeracle.ref, name), source=True) == []


def test_about_a_hundred_names_are_public() -> None:
    names = [getattr(import_module(module), name) for module in PUBLIC for name in import_module(module).__all__]
    checked = {id(thing) for thing in names if inspect.isfunction(thing) or isinstance(thing, type)}
    assert 100 <= len(checked) <= 180


class _Said(NamedTuple):
    """A class whose fields are named.

    Args:
        width, height: in pixels.
    """

    width: int
    height: int


class _Unsaid(NamedTuple):
    """A class that says nothing of one field.

    Args:
        width: in pixels.
    """

    width: int
    height: int


def _complete(x: int, *rest: int, y: int = 0, **options: int) -> int:
    """Add.

    Args:
        x, y: any.
        rest: more.
    Returns:
        The sum.
    Raises:
        ValueError: x is negative.
    Source: arithmetic.
    """
    if x < 0:
        raise ValueError("x")
    return x + y + sum(rest)


def _as_another(x: int) -> int:
    """Add nothing.

    Args, Returns: as `_complete`.
    """
    return x


def _without_args(x: int) -> None:
    """Take x.

    Args:
        y: something else, of which x: is no name.
    """


def _without_returns(x: int) -> int:
    """Return x.

    Args:
        x: any.
    """
    return x


def _without_raises(x: int) -> None:
    """Refuse.

    Args:
        x: any.
    """
    raise ValueError(x)


def _undocumented(x: int) -> None:
    pass


def test_a_complete_docstring_passes() -> None:
    assert faults_of(_complete, source=True) == []
    assert faults_of(_as_another) == []
    assert faults_of(_Said) == []


@pytest.mark.parametrize(
    ("thing", "fault"),
    [
        (_without_args, "Args does not name x"),
        (_without_returns, "no Returns"),
        (_without_raises, "Raises does not name ValueError"),
        (_undocumented, "no docstring"),
        (_Unsaid, "Args does not name height"),
    ],
)
def test_a_planted_gap_is_seen(thing: object, fault: str) -> None:
    assert faults_of(thing) == [fault]


def test_a_missing_source_is_seen() -> None:
    assert faults_of(_as_another, source=True) == ["no Source"]
