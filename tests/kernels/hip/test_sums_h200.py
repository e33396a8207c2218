"""What an H200 left in the fp32 accumulators of full-size GEMMs is what the emulation leaves, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from on_hardware import hip_sums

ROOT = Path(__file__).resolve().parents[3]
RECORDED = json.loads((ROOT / "fixtures" / "hardware" / "h200" / "hip_sums.json").read_text())
ENTRIES = {entry["name"]: entry for entry in RECORDED["entries"]}
SLOW = {"lm_head.g32"}  # 508 million products: emulated when it was recorded, on that machine


def test_everything_was_equal_where_it_was_recorded() -> None:
    assert RECORDED["gpu"] == "NVIDIA H200"
    assert set(ENTRIES) == set(hip_sums.JOBS)
    for name, entry in ENTRIES.items():
        assert entry["equal"], name
        assert entry["gpu"] == entry["host"], name
        assert (entry["runner"], entry["case"]) == hip_sums.JOBS[name], "recorded of another job: record again"


@pytest.mark.parametrize("name", sorted(set(hip_sums.JOBS) - SLOW))
def test_the_emulation_here_gives_the_h200s_bits(name: str) -> None:
    found, _ = hip_sums.digests(*hip_sums.JOBS[name], "cpu")
    assert found == ENTRIES[name]["gpu"]
