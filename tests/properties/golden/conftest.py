"""A small golden set in memory and on disk, made from a few cases of the catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest

from moeracle.properties.golden.catalogue import Item, items
from moeracle.properties.golden.regen import plan_derived
from moeracle.properties.golden.store import GoldenSet, write_set

WANTED = (
    "unpack_int4/N16-K32-G16/fp16/exllama-rdna/-/codes16/s1",
    "int4_linear/T3-N16-K64-G32/bf16/exllama-sym/-/normal/s0",
    "silu_and_mul/T4-I32/bf16/-/-/normal/s0",
    "topk_softmax/T7-E16-k4/bf16/-/-/ties/s3",
    "moe_w4a16/T5-E4-k2-H32-I32-G16/bf16/exllama-sym/ignored/normal/s1",
)
LITERALS = ("moe_w4a16.by_hand", "int4_linear.ties")


@pytest.fixture(scope="session")
def few() -> list[Item]:
    """Five cases and two literals."""
    chosen = [item for item in items() if (item.literal or item.case) in (*WANTED, *LITERALS)]
    assert len(chosen) == len(WANTED) + len(LITERALS)
    return chosen


@pytest.fixture(scope="session")
def derived(few: list[Item]) -> GoldenSet:
    """Their golden set, made once."""
    return plan_derived(GoldenSet(), "for a test", "0", catalogue=few).golden


@pytest.fixture
def small(derived: GoldenSet) -> GoldenSet:
    """A copy of it to change."""
    return GoldenSet(list(derived.entries), dict(derived.inputs), {k: dict(v) for k, v in derived.results.items()})


@pytest.fixture
def folder(small: GoldenSet, tmp_path: Path) -> Path:
    """The same on disk."""
    write_set(tmp_path / "golden", small)
    return tmp_path / "golden"
