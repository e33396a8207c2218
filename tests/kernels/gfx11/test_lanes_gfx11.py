"""Each cross-lane operation by itself, against tables written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moeracle.kernels.gfx11 import lanes
from moeracle.kernels.gfx11.decode import Dpp

LANE = np.arange(32, dtype=np.uint32)[None]
ALL = np.ones((1, 32), np.bool_)
ROW = list(range(16))
# control word -> the lane of the row that lanes 0..15 read; None: no such lane.
TABLE: dict[int, list[int | None]] = {
    0xE4: ROW,  # quad_perm:[0,1,2,3]
    0x1B: [3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12],  # quad_perm:[3,2,1,0]
    0x101: [*range(1, 16), None],  # row_shl:1
    0x111: [None, *range(15)],  # row_shr:1
    0x118: [None] * 8 + list(range(8)),  # row_shr:8
    0x121: [15, *range(15)],  # row_ror:1
    0x12C: [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3],  # row_ror:12
    0x140: ROW[::-1],  # row_mirror
    0x141: [7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8],  # row_half_mirror
    0x153: [3] * 16,  # row_share:3
    0x161: [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14],  # row_xmask:1
    0x168: [8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7],  # row_xmask:8
}


def dpp(control: int, **changes: object) -> Dpp:
    fields = {"row_mask": 15, "bank_mask": 15, "bound": True, "inactive": False} | changes
    return Dpp(control, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("control", TABLE)
def test_dpp_patterns(control: int) -> None:
    moved, writes = lanes.apply_dpp(dpp(control), LANE + 100, ALL)
    want = [0 if lane is None else 100 + row + lane for row in (0, 16) for lane in TABLE[control]]
    assert moved[0].tolist() == want
    assert writes.all()


def test_without_bound_control_a_lane_outside_keeps_its_destination() -> None:
    _, writes = lanes.apply_dpp(dpp(0x111, bound=False), LANE, ALL)
    assert np.flatnonzero(~writes[0]).tolist() == [0, 16]


def test_an_inactive_source_lane_gives_zero_or_nothing() -> None:
    active = ALL.copy()
    active[0, 4] = False
    moved, writes = lanes.apply_dpp(dpp(0x111), LANE + 100, active)
    assert moved[0, 5] == 0
    assert writes[0, 5]
    assert not lanes.apply_dpp(dpp(0x111, bound=False), LANE, active)[1][0, 5]
    assert lanes.apply_dpp(dpp(0x111, inactive=True), LANE + 100, active)[0][0, 5] == 104
    assert not writes[0, 4]


def test_row_and_bank_masks() -> None:
    _, writes = lanes.apply_dpp(dpp(0xE4, row_mask=2, bank_mask=1), LANE, ALL)
    assert np.flatnonzero(writes[0]).tolist() == [16, 17, 18, 19]


def test_an_unknown_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="dpp_ctrl: got 0x142"):
        lanes.dpp_source(0x142)


def test_permlanex16_reads_the_other_row() -> None:
    identity = [np.array([[v]], np.uint32) for v in (0x76543210, 0xFEDCBA98)]
    assert lanes.permlanex16(LANE, *identity)[0].tolist() == [*range(16, 32), *range(16)]
    backwards = [np.array([[v]], np.uint32) for v in (0x89ABCDEF, 0x01234567)]
    assert lanes.permlanex16(LANE, *backwards)[0].tolist() == [*range(31, 15, -1), *range(15, -1, -1)]
    assert lanes.permlane16(LANE, *backwards)[0].tolist() == [*range(15, -1, -1), *range(31, 15, -1)]


def test_readfirstlane_takes_the_lowest_active_lane() -> None:
    active = np.zeros((2, 32), np.bool_)
    active[0, [7, 9]] = True
    both = np.concatenate([LANE + 100, LANE + 200])
    assert lanes.first_active(both, active).tolist() == [107, 200]  # none active: lane 0


def test_bpermute_takes_byte_addresses_and_wraps() -> None:
    address = (LANE * 7 % 32 + 32) * 4
    assert lanes.bpermute(address, LANE + 50, ALL)[0].tolist() == [50 + 7 * i % 32 for i in range(32)]
    active = ALL.copy()
    active[0, 3] = False
    assert lanes.bpermute(np.full((1, 32), 12, np.uint32), LANE + 50, active)[0].tolist() == [0] * 32


def test_swizzle() -> None:
    assert lanes.swizzle(0x041F, LANE, ALL)[0].tolist() == [i ^ 1 for i in range(32)]  # and 31, or 0, xor 1
    assert lanes.swizzle(0x801B, LANE, ALL)[0].tolist() == [i ^ 3 for i in range(32)]  # quad mode [3,2,1,0]
    with pytest.raises(ValueError, match="ds_swizzle_b32"):
        lanes.swizzle(0xC000, LANE, ALL)
