"""Paths of earlier releases still give the same objects."""

from __future__ import annotations

from importlib import import_module

import pytest

import moeracle.ref


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("moeracle.ref.contract", "moeracle.ref.contracts.contract", "Contract"),
        ("moeracle.ref.contract", "moeracle.ref.contracts.contract", "contract"),
        ("moeracle.ref.weight", "moeracle.ref.weights.weight", "Int4Weight"),
        ("moeracle.properties.case", "moeracle.properties.cases.case", "Case"),
        ("moeracle.target", "moeracle.target.load", "load_target"),
        ("moeracle.target", "moeracle.target.load", "kernel"),
    ],
)
def test_an_old_path_gives_the_same_object(old: str, new: str, name: str) -> None:
    assert getattr(import_module(old), name) is getattr(import_module(new), name)


def test_the_old_path_of_contracts_does_not_hide_the_function() -> None:
    import_module("moeracle.ref.contract")
    assert callable(moeracle.ref.contract)
