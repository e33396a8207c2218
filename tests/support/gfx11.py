"""Single gfx11 instructions, encoded by tinygrad's tables and executed by the core on registers that a test gives."""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moeracle.kernels.gfx11.code_object import BASE
from moeracle.kernels.gfx11.core import Launch, Region, core, formulas
from moeracle.kernels.gfx11.decode import decode
from moeracle.kernels.gfx11.program import assemble
from moeracle.kernels.gfx11.table import encode

EXEC, VCC, M0 = 126, 106, 125
FULL = 0xFFFFFFFF


def tables() -> Any:
    """Return tinygrad's gfx11 formats."""
    return importlib.import_module("tinygrad.runtime.autogen.amd.rdna3.ins")


@dataclass
class State:
    """Registers of one wave: vector [256, 32], scalar [128], scc, and 64 KiB of LDS."""

    v: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros((256, 32), np.uint32))
    s: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(128, np.uint32))
    scc: int = 0
    lds: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(1 << 16, np.uint8))

    def __post_init__(self) -> None:
        self.s[EXEC] = FULL


def execute(code: bytes, state: State, memory: np.ndarray[Any, Any] | None = None) -> State:
    """Execute encoded instructions on a state, in place; `memory` lies at BASE.

    Raises:
        RuntimeError: the core stopped; the fault's kind, lane and address.
    """
    end = encode("SOPP", "S_ENDPGM", simm16=0)
    program = assemble(decode(code + end), formulas())
    assert not program.missing, f"no formula: {[str(one) for one in program.missing]}"
    records = program.records
    core().moeracle_gfx_link(ctypes.c_void_p(records.ctypes.data), ctypes.c_int64(len(records)))
    counts, flags = np.zeros(len(records), np.uint64), np.zeros(len(records), np.uint8)
    numbers = np.zeros(len(records), np.int32)
    held = np.zeros(64, np.uint8) if memory is None else memory.view(np.uint8)
    region = Region(held.ctypes.data, held.nbytes, 1)
    launch = Launch(records.ctypes.data, counts.ctypes.data, ctypes.addressof(region))
    launch.region_count, launch.instruction_count, launch.budget = 1, len(records), 1 << 40
    launch.lds, launch.scratch, launch.vgprs, launch.image_base = 1 << 16, 1 << 10, 256, BASE
    launch.index_of, launch.index_count = program.index_of.ctypes.data, len(program.index_of)
    launch.unwritten, launch.unwritten_register = flags.ctypes.data, numbers.ctypes.data
    scc = ctypes.c_uint32(state.scc)
    vector, scalar = np.ascontiguousarray(state.v), np.ascontiguousarray(state.s)
    failed = core().moeracle_gfx_step(
        ctypes.byref(launch), ctypes.c_void_p(vector.ctypes.data), ctypes.c_void_p(scalar.ctypes.data),
        ctypes.byref(scc),
        ctypes.c_void_p(state.lds.ctypes.data),
    )  # fmt: skip
    if failed:
        raise RuntimeError(
            f"fault {launch.fault.kind} at lane {launch.fault.lane}, {launch.fault.address & (1 << 64) - 1:#x}"
        )
    state.v, state.s, state.scc = vector, scalar, scc.value
    return state


def lanes_of(form: str, name: str, *sources: Any, dst: int = 100, **fields: Any) -> np.ndarray[Any, Any]:
    """Return the destination [count] of an instruction of up to 32 lanes; its sources lie in v1, v2, v3."""
    state = State()
    names = {
        "VOP1": ("src0",),
        "VOP2": ("src0", "vsrc1"),
        "VOP3": ("src0", "src1", "src2"),
        "VOP3P": ("src0", "src1", "src2"),
    }
    places = {}
    for i, source in enumerate(sources):
        bits = np.atleast_1d(np.asarray(source))
        state.v[1 + i, : len(bits)] = (
            bits.astype(np.float32).view(np.uint32) if bits.dtype.kind == "f" else bits.astype(np.uint32)
        )
        places[names[form][i]] = 257 + i
    execute(encode(form, name, vdst=256 + dst, **places, **fields), state)
    count = max(len(np.atleast_1d(np.asarray(s))) for s in sources)
    return state.v[dst, :count]
