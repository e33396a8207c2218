"""The gfx machine code of every HIP kernel: dot2 or WMMA, no NaN path, no scratch, registers, wide streaming loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from moeracle.kernels.hip.common import knobs_for
from moeracle.kernels.toolchain.compilers import SOURCES, ToolchainError, gfx_compiler
from support.machine import Wanted, asm_of, changed, complaints

ARCHITECTURES = ("gfx1151", "gfx1100", "gfx1201")
SMALL_K = {"YTILE": 2, "WAVES": 16, "A_CHUNK": 16, "UNRL": 2}  # seeds: 113 VGPRs, 512 threads a group, 75 % occupancy
FP16 = {"DTYPE_FP16": 1}


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    try:
        gfx_compiler("gfx1151")
    except ToolchainError as error:
        pytest.skip(str(error))


def int4(rows: int, knobs: dict[str, int], decode: int = 1, **more: object) -> Wanted:
    """Expect every product, every chunk in the widest load it fills, and every reduction."""
    products = rows * knobs["YTILE"] * knobs["UNRL"] * knobs["A_CHUNK"] // 2
    ones = rows * knobs["UNRL"] * knobs["A_CHUNK"] // 2 if decode == 2 else 0
    width = 128 if knobs["A_CHUNK"] % 32 == 0 else 64
    loads = knobs["YTILE"] * knobs["UNRL"] * knobs["A_CHUNK"] * 4 // width
    return Wanted(products + ones, loads=loads, width=width, plain=rows, sums=rows * knobs["YTILE"], **more)  # type: ignore[arg-type]


def build(kernel: str, rows: int = 1, K: int = 2048, G: int = 32, **defines: int) -> tuple[str, dict[str, int], Wanted]:
    """Return the build that kernels/hip/source/knobs.json chooses, and what it must hold."""
    name = "dense_gemv.silu_mul" if defines.get("EPILOGUE") == 2 else kernel
    knobs = knobs_for(name, rows, K, G)
    macros = {**knobs, "ROWS": rows, **defines}
    if kernel in ("int4_gemv", "moe_gemv", "moe_gemm2_reduce"):
        silu = ("v_exp_f32", "v_rcp_f32") if defines.get("FUSE_SILU") else ()
        return kernel, macros, int4(rows, knobs, defines.get("DECODE", 1), also=silu)
    columns = knobs["YTILE"] * (2 if defines.get("EPILOGUE") == 2 else 1)
    products = rows * columns * knobs["UNRL"] * knobs["A_CHUNK"] // 2
    loads = columns * knobs["UNRL"] * knobs["A_CHUNK"] * (1 if kernel == "int8_gemv" else 2) // 16
    silu = ("v_exp_f32", "v_rcp_f32") if defines.get("EPILOGUE", 0) else ()
    plain = rows + (4 if defines.get("EPILOGUE") == 3 else 0)  # the gate's row and weight, twice 16 bytes each
    return kernel, macros, Wanted(products, loads=loads, plain=plain, sums=rows * columns, also=silu)


BUILDS = [
    ("int4_gemv", {**SMALL_K, "ROWS": 1}, int4(1, SMALL_K)),
    ("moe_gemv", {**SMALL_K, "ROWS": 1}, int4(1, SMALL_K)),
    ("moe_gemv", {**SMALL_K, "ROWS": 1, **FP16}, int4(1, SMALL_K)),
    ("moe_gemv", {**SMALL_K, "A_CHUNK": 32}, int4(1, {**SMALL_K, "A_CHUNK": 32})),
    build("int4_gemv"),
    build("int4_gemv", DECODE=0),
    build("int4_gemv", DECODE=2),
    build("int4_gemv", rows=5, ZERO=2),
    build("int4_gemv", rows=5, **FP16),
    build("moe_gemv", **FP16),
    build("moe_gemv", rows=2),
    build("moe_gemv", rows=4, ZERO=1),
    build("moe_gemm2_reduce", K=512),
    build("moe_gemm2_reduce", K=512, FUSE_SILU=1, DECODE=2),
    build("moe_gemm2_reduce", K=512, FUSE_SILU=1, **FP16),
    build("int8_gemv"),
    build("int8_gemv", rows=5, **FP16),
    build("dense_gemv"),
    build("dense_gemv", EPILOGUE=2),
    build("dense_gemv", rows=5, EPILOGUE=3),
    # K of a step: 2 fragments a 32-wide tile, KTILE / 32 of them, NTILES columns and (bf16) one of ones.
    ("moe_wmma", {}, Wanted(wmma=2 * 2 * 3, loads=4, together=2, plain=2, vgprs=128)),
    ("moe_wmma", FP16, Wanted(wmma=2 * 2 * 2, loads=4, together=2, plain=2, vgprs=128)),
    ("silu_and_mul", {}, Wanted(vgprs=32, also=("v_exp_f32", "v_rcp_f32"))),
    ("dequantize_int4", {}, Wanted(vgprs=48, plain=0)),
    ("moe_sum", {}, Wanted(vgprs=32, plain=0)),
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("kernel", "macros", "wanted"), BUILDS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_machine_code(kernel: str, macros: dict[str, int], wanted: Wanted, arch: str) -> None:
    assert complaints(asm_of(kernel, arch, macros), wanted) == []


def test_every_kernel_of_the_folder_is_compiled_here() -> None:
    assert {kernel for kernel, _, _ in BUILDS} == {path.stem for path in SOURCES.glob("*.hip")}


# What the seeds removed, or what would cost as much, put back one at a time: (file, old, new, macros, complaint).
PLANTS = [
    ("codes.h", "bf16_bits_finite(low) |", "bit_cast<unsigned short>((__bf16)low) |",
     {"DECODE": 0}, "compare for NaN"),
    ("codes.h", "return bf16_store_bits(x)", "return bf16_bits_quiet(x)", {}, "compare with the bits of infinity"),
    ("int4_rows.h", "load_nt(reinterpret_cast<const u32x2*>(from + i))",
     "*reinterpret_cast<const u32x2*>(from + i)", {}, "plain wide loads: 5"),
    ("int4_rows.h", "part[r][y] = dot2<D>(a[r].v[j], b[j], part[r][y]);",
     "{ part[r][y] = fmaf(pair_low<D>(a[r].v[j]), pair_low<D>(b[j]), part[r][y]);"
     " part[r][y] = fmaf(pair_high<D>(a[r].v[j]), pair_high<D>(b[j]), part[r][y]); }", {}, "v_dot2: 0"),
    ("stage.h", "return k < K ? ChunkAt{k, k / 8, K / 8} : ChunkAt{0, ROWS * (K / 8), 0};",
     "if (k < K) return ChunkAt{k, k / 8, K / 8}; __builtin_amdgcn_s_waitcnt(0); return ChunkAt{0, ROWS * (K / 8), 0};",
     {}, "weight loads in flight together: 2"),
    ("lanes.h", "return xor16_add(v MOERACLE_PASS_SITE);",
     "return shfl(v, lane_id() ^ 16) + v;", {}, "ds_bpermute: present|v_permlanex16: 0"),
    ("", "", "", {"YTILE": 16, "UNRL": 1, "ROWS": 5}, "private_segment_fixed_size"),  # a tile that spills
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "macros", "complaint"), PLANTS, ids=lambda value: "")
def test_a_planted_violation_is_seen(
    tmp_path: Path, file: str, old: str, new: str, macros: dict[str, int], complaint: str
) -> None:
    if new:
        asm = asm_of(changed(tmp_path, file, old, new) / "moe_gemv.hip", "gfx1151", {**SMALL_K, **macros})
    else:
        asm = asm_of("moe_gemv", "gfx1151", {**SMALL_K, **macros})
    found = "; ".join(complaints(asm, int4(1, SMALL_K)))
    assert any(part in found for part in complaint.split("|")), found


def test_an_ieee_division_in_silu_is_seen(tmp_path: Path) -> None:
    folder = changed(tmp_path, "numbers.h", "rcp_f32(1.0f + exp_f32(-g))", "1.0f / (1.0f + exp_f32(-g))")
    found = complaints(asm_of(folder / "silu_and_mul.hip", "gfx1151", {}), Wanted(also=("v_exp_f32",)))
    assert found == ["v_div_: present"]
