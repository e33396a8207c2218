"""Occupancy against figures known by hand."""

from __future__ import annotations

import pytest

from moeracle.kernels.toolchain.architectures import architecture, occupancy, waves_by_registers


@pytest.mark.parametrize(
    ("arch", "vgprs", "waves"),
    [
        ("gfx1151", 96, 16),
        ("gfx1151", 97, 12),  # 120 of 1536
        ("gfx1151", 120, 12),
        ("gfx1151", 121, 10),
        ("gfx1151", 256, 5),
        ("gfx942", 64, 8),
        ("gfx942", 65, 7),
        ("gfx942", 128, 4),
        ("gfx942", 512, 1),
    ],
)
def test_waves_that_registers_allow(arch, vgprs, waves):
    assert waves_by_registers(architecture(arch), vgprs) == waves


def test_scalar_registers_limit_gfx9_alone():
    assert waves_by_registers(architecture("gfx942"), 32, 102) == 7
    assert waves_by_registers(architecture("gfx1151"), 32, 106) == 16


def test_113_registers_and_512_threads_are_75_percent():
    """The figure of github.com/ROCm/vllm/pull/933 for the small-K decode template on gfx1151."""
    held = occupancy(architecture("gfx1151"), 512, 113, 0)
    assert (held.waves, held.groups, held.percent, held.limit) == (12, 3, 75.0, "registers")


def test_local_memory_is_shared_by_a_whole_wgp():
    held = occupancy(architecture("gfx1151"), 128, 32, 32 * 1024)
    assert (held.groups, held.waves, held.limit) == (4, 4, "local memory")


def test_a_group_that_does_not_fill_the_simds_counts_whole():
    held = occupancy(architecture("gfx942"), 512, 100, 0)  # 8 waves a group, 4 a SIMD
    assert (held.groups, held.waves) == (2, 4)
    assert occupancy(architecture("gfx942"), 512, 96, 0).waves == 4  # 5 would fit, but groups come whole


def test_blocks_on_an_nvidia_multiprocessor():
    sm90 = architecture("sm_90")
    assert occupancy(sm90, 128, 128, 0).groups == 4
    assert occupancy(sm90, 128, 32, 0).groups == 16
    shared = occupancy(sm90, 128, 32, 100 * 1024)
    assert (shared.groups, shared.limit, shared.waves) == (2, "shared memory", 8)
    assert occupancy(sm90, 32, 16, 0).limit == "groups"
