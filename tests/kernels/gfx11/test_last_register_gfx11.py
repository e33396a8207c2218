"""An operand of several registers that would end past v255 is none that gfx11 has: it stops, and reads nothing."""

from __future__ import annotations

import pytest

from moeracle.kernels.gfx11.decode import decode
from moeracle.kernels.gfx11.table import encode

pytestmark = pytest.mark.usefixtures("toolchain")
V = 256  # the source code of v0
NONE = 124  # the null register
WIDE = [  # of each form: fields, the field that lies near the end, and how many registers it has
    ("VOP1", "V_CVT_F32_F64_E32", {"vdst": V, "src0": V}, "src0", 2),
    ("VOP1", "V_CVT_F64_F32_E32", {"vdst": V, "src0": V}, "vdst", 2),
    ("VOP3", "V_ADD_F64", {"vdst": V, "src0": V, "src1": V}, "src1", 2),
    ("VOP3", "V_ADD_F32_E64", {"vdst": V, "src0": V, "src1": V}, "src1", 1),
    ("VOP3SD", "V_MAD_U64_U32", {"vdst": V, "src0": V, "src1": V, "src2": V}, "src2", 2),
    ("VOP3SD", "V_MAD_U64_U32", {"vdst": V, "src0": V, "src1": V, "src2": V}, "src0", 1),
    ("VOPC", "V_CMP_LT_U64_E32", {"src0": V, "vsrc1": V}, "vsrc1", 2),
    ("VOP3P", "V_WMMA_F32_16X16X16_BF16", {"vdst": V, "src0": V, "src1": V + 8, "src2": V + 16}, "vdst", 8),
    ("GLOBAL", "GLOBAL_LOAD_B128", {"vdst": V, "addr": V, "saddr": NONE}, "vdst", 4),
    ("GLOBAL", "GLOBAL_LOAD_B32", {"vdst": V, "addr": V, "saddr": NONE}, "addr", 2),
    ("GLOBAL", "GLOBAL_LOAD_B32", {"vdst": V, "addr": V, "saddr": 4}, "addr", 1),
    ("GLOBAL", "GLOBAL_STORE_B96", {"addr": V, "data": V, "saddr": NONE}, "data", 3),
    ("GLOBAL", "GLOBAL_ATOMIC_CMPSWAP_B64", {"vdst": V, "addr": V, "data": V, "saddr": NONE, "glc": 1}, "data", 4),
    ("GLOBAL", "GLOBAL_ATOMIC_CMPSWAP_B64", {"vdst": V, "addr": V, "data": V, "saddr": NONE, "glc": 1}, "vdst", 2),
    ("GLOBAL", "GLOBAL_ATOMIC_ADD_U64", {"vdst": V, "addr": V, "data": V, "saddr": NONE}, "vdst", 1),
    ("DS", "DS_STORE_2ADDR_B64", {"addr": V, "data0": V, "data1": V}, "data1", 2),
    ("DS", "DS_LOAD_2ADDR_B64", {"vdst": V, "addr": V}, "vdst", 4),
    ("MUBUF", "BUFFER_LOAD_B128", {"vdata": V, "vaddr": V, "srsrc": 0, "soffset": 128, "offen": 1}, "vdata", 4),
    ("MUBUF", "BUFFER_LOAD_B32", {"vdata": V, "vaddr": V, "srsrc": 0, "soffset": 128, "offen": 1}, "vaddr", 1),
    ("MUBUF", "BUFFER_LOAD_B32", {"vdata": V, "vaddr": V, "srsrc": 0, "soffset": 128, "offen": 1, "idxen": 1},
     "vaddr", 2),
    ("MUBUF", "BUFFER_ATOMIC_ADD_U32", {"vdata": V, "vaddr": V, "srsrc": 0, "soffset": 128, "offen": 1, "glc": 1},
     "vdata", 1),
    ("SCRATCH", "SCRATCH_LOAD_B64", {"vdst": V, "addr": V, "saddr": NONE, "sve": 1}, "vdst", 2),
]  # fmt: skip


@pytest.mark.parametrize(("form", "name", "fields", "late", "registers"), WIDE)
def test_an_operand_ends_at_v255_or_stops(
    form: str, name: str, fields: dict[str, int], late: str, registers: int
) -> None:
    plain = name.removesuffix("_E32").removesuffix("_E64")
    last = V + 256 - registers
    for code, known in ((last, True), (last + 1, False)):
        if code > V + 255:
            continue
        one = decode(encode(form, name, **{**fields, late: code}) + encode("SOPP", "S_ENDPGM"))[0]
        assert (one.name, one.form == "UNKNOWN") == (plain if known else f"{plain}_PAST_V255", not known)
