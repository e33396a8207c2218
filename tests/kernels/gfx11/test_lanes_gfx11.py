"""Each cross-lane operation by itself, against tables written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from support.gfx11 import EXEC, FULL, State, encode, execute

pytestmark = pytest.mark.usefixtures("toolchain")
LANE = np.arange(32, dtype=np.uint32)
ROW = list(range(16))
OLD = 7  # what the destination holds at first
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


def moved(
    control: int, active: int = FULL, bound: bool = True, inactive: bool = False, rows: int = 15, banks: int = 15
) -> list[int]:
    """Return what v_mov_b32 with DPP leaves of lane + 100, where the destination held OLD."""
    state = State()
    state.v[1], state.v[2], state.s[EXEC] = LANE + 100, OLD, active
    fields = {"bc": int(bound), "fi": int(inactive), "row_mask": rows, "bank_mask": banks}
    code = encode("VOP1_DPP16", "V_MOV_B32_E32", vdst=258, src0=250, vsrc0=257, dpp=control, **fields)
    return execute(code, state).v[2].tolist()


@pytest.mark.parametrize("control", TABLE)
def test_dpp_patterns(control: int) -> None:
    want = [0 if lane is None else 100 + row + lane for row in (0, 16) for lane in TABLE[control]]
    assert moved(control) == want


def test_dpp8_picks_within_eight_lanes() -> None:
    state = State()
    state.v[1] = LANE + 100
    word = int.from_bytes(encode("VOP1", "V_MOV_B32_E32", vdst=258, src0=257), "little") & ~0x1FF | 233
    selectors = sum(7 - i << 3 * i for i in range(8))
    code = word.to_bytes(4, "little") + (1 | selectors << 8).to_bytes(4, "little")
    assert execute(code, state).v[2].tolist() == [100 + (lane ^ 7) for lane in range(32)]


def test_without_bound_control_a_lane_outside_keeps_its_destination() -> None:
    assert [i for i, x in enumerate(moved(0x111, bound=False)) if x == OLD] == [0, 16]


def test_an_inactive_source_lane_gives_zero_or_nothing() -> None:
    without_4 = FULL & ~(1 << 4)
    assert moved(0x111, without_4)[5] == 0
    assert moved(0x111, without_4, bound=False)[5] == OLD
    assert moved(0x111, without_4, inactive=True)[5] == 104
    assert moved(0x111, without_4)[4] == OLD


def test_row_and_bank_masks() -> None:
    assert [i for i, x in enumerate(moved(0xE4, rows=2, banks=1)) if x != OLD] == [16, 17, 18, 19]


def test_an_unknown_pattern_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"no formula: .*v_mov_b32_dpp_142"):
        moved(0x142)


def permuted(name: str, low: int, high: int) -> list[int]:
    state = State()
    state.v[1], state.s[4], state.s[5] = LANE, low, high
    return execute(encode("VOP3", name, vdst=258, src0=257, src1=4, src2=5), state).v[2].tolist()


def test_permlanex16_reads_the_other_row() -> None:
    assert permuted("V_PERMLANEX16_B32", 0x76543210, 0xFEDCBA98) == [*range(16, 32), *range(16)]
    backwards = (0x89ABCDEF, 0x01234567)
    assert permuted("V_PERMLANEX16_B32", *backwards) == [*range(31, 15, -1), *range(15, -1, -1)]
    assert permuted("V_PERMLANE16_B32", *backwards) == [*range(15, -1, -1), *range(31, 15, -1)]


@pytest.mark.parametrize(("active", "want"), [(1 << 7 | 1 << 9, 107), (0, 100), (FULL, 100)])
def test_readfirstlane_takes_the_lowest_active_lane(active: int, want: int) -> None:
    state = State()
    state.v[1], state.s[EXEC] = LANE + 100, active
    assert execute(encode("VOP1_SDST", "V_READFIRSTLANE_B32_E32", vdst=8, src0=257), state).s[8] == want


def across(name: str, address: np.ndarray, active: int = FULL, offset: int = 0) -> list[int]:
    state = State()
    state.v[1], state.v[2], state.s[EXEC] = address, LANE + 50, active
    code = encode("DS", name, vdst=259, addr=257, data0=258, offset0=offset & 255, offset1=offset >> 8)
    return execute(code, state).v[3].tolist()


def test_bpermute_takes_byte_addresses_and_wraps() -> None:
    assert across("DS_BPERMUTE_B32", (LANE * 7 % 32 + 32) * 4) == [50 + 7 * i % 32 for i in range(32)]
    got = across("DS_BPERMUTE_B32", np.full(32, 12, np.uint32), FULL & ~8)
    assert [x for i, x in enumerate(got) if i != 3] == [0] * 31


def test_permute_sends_to_the_lane_of_its_address() -> None:
    assert across("DS_PERMUTE_B32", (LANE + 1) % 32 * 4) == [50 + (i - 1) % 32 for i in range(32)]


def test_swizzle() -> None:
    assert across("DS_SWIZZLE_B32", LANE, offset=0x041F) == [i ^ 1 for i in range(32)]  # and 31, or 0, xor 1
    assert across("DS_SWIZZLE_B32", LANE, offset=0x801B) == [i ^ 3 for i in range(32)]  # quad mode [3,2,1,0]
    assert across("DS_SWIZZLE_B32", LANE, offset=0xC020) == [(i + 1) % 32 for i in range(32)]  # rotate left by one
    with pytest.raises(RuntimeError, match="fault 12"):  # FFT mode is not modelled
        across("DS_SWIZZLE_B32", LANE, offset=0xE000)
