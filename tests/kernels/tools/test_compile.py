"""Every kernel compiles for every target with none at hand, spills nothing and holds the instructions that it must."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from moeracle.kernels.common.weight_args import RDNA, SYMMETRIC, UNPACKED
from moeracle.kernels.compile import hip as compile_hip
from moeracle.kernels.compile.table import complaints, expectations
from moeracle.kernels.registry import REGISTRY
from moeracle.kernels.toolchain.architectures import ARCHITECTURES, architecture
from moeracle.kernels.toolchain.compilers import ToolchainError, gfx_compiler
from moeracle.kernels.toolchain.machine_code import MachineCode, read_amd, read_nvidia
from moeracle.kernels.triton.tiles import cuda_tile

FIELDS = ("registers", "spills", "scratch", "local", "code", "waves", "kinds", "strix_halo_us")


SCRIPT = "import sys\nfrom moeracle.kernels.compile import table as t\n{prepare}\nt.main(sys.argv[1])"


@pytest.fixture
def table(compiling):
    """(arch, prepare="", **asked) -> the rows of compile.table, after a statement in its process."""
    return lambda arch, prepare="", **asked: compiling(
        SCRIPT.format(prepare=prepare), {"arch": arch, "layers": 1, "tokens": [4096], "once": True, **asked}
    )


def triton_version() -> str:
    return pytest.importorskip("triton").__version__


def spilling(rows: list[dict]) -> list[str]:
    """Demand that nothing is wrong; return the kernels that spill where an older triton than 3.9 compiled them."""
    wrong = [(r["kernel"], r["entry"], r["size"], r["wrong"]) for r in rows if r["wrong"]]
    version = tuple(map(int, triton_version().split(".")[:2]))
    spills = [re.fullmatch(r"spills \d+ registers|\d+ bytes of scratch", text) for *_, texts in wrong for text in texts]
    if version < (3, 9) and all(spills):
        return [f"{kernel} of {entry} at {size}: {', '.join(texts)}" for kernel, entry, size, texts in wrong]
    assert wrong == []
    return []


def skip_where_older(spills: list[str]) -> None:
    """Skip, at a test's end, what only an older triton's register allocation would fail."""
    if spills:
        pytest.skip(
            f"the tiles were chosen with triton 3.9; under triton {triton_version()} spill: {'; '.join(spills)}"
        )


HOPPER_LAYER = "moe_w4a16.hopper"  # half of all machine codes of its architecture: looked at in a test of its own


PTX = """
import re
row = t.row
def with_ptx(launch, *rest):
    ptx = launch.compiled.asm["ptx"]
    calls = re.findall(r"wgmma\\.mma_async[^;]*;", ptx)
    return row(launch, *rest) | {
        "wgmma": len(calls), "from_registers": sum(bool(re.search(r"\\}, *\\{", call)) for call in calls),
        "waits": ptx.count("griddepcontrol.wait"),
        "registers_of": [int(n) for n in re.findall(r"setmaxnreg[^;]*?(\\d+);", ptx)]}
t.row = with_ptx
"""


def test_tiles_of_the_hopper_layer_compile_and_spill_nothing(table):
    """Of its tuning table those of two T, all four kernels; hopper/test_compile.py asks the same of other tiles."""
    rows = table("sm_90", PTX, layers=2, tokens=[4, 2048], names=[HOPPER_LAYER])
    spills = spilling(rows)
    assert {r["entry"] for r in rows} == {HOPPER_LAYER}
    assert all(field in r for r in rows for field in FIELDS)
    gemms = [r for r in rows if r["kernel"].startswith("hopper_")]
    assert {r["kernel"] for r in gemms} == {f"hopper_{kind}_kernel" for kind in ("few", "gemm", "stream", "duo")}
    for r in gemms:
        duo = r["kernel"] == "hopper_duo_kernel"
        assert r["wgmma"] >= 4, r
        assert r["from_registers"] == r["wgmma"], r  # every weight is a register operand
        assert r["waits"] >= 1, r  # for the launch ahead
        assert r["local"] <= (227 if duo else 113) * 1024, r  # one program, or two
        copying = r["constants"]["COPY_REGISTERS"] if duo else 0
        assert set(r["registers_of"]) >= {copying, (504 - copying) // 2} if duo else not r["registers_of"], r
    skip_where_older(spills)


# Every kernel for one target of each family; of the others what their compilers must know, the matrix instruction.
WHOLE = ("gfx1151", "gfx942", "sm_90", "sm_100")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_triton_kernels_compile_and_spill_nothing(arch, table):
    """At one size, and for gfx1151 every tile of its tuning table; `make compile` compiles it all."""
    asked = {"omit": [HOPPER_LAYER]} if arch in WHOLE else {"names": ["grouped_gemm"]}
    rows = table(arch, table=arch == "gfx1151", **asked)
    spills = spilling(rows)
    launched = {r["kernel"] for r in rows}
    assert "grouped_gemm_kernel" in launched
    assert arch not in WHOLE or launched >= {"padded_gemm_kernel", "topk_softmax_kernel"}, launched
    assert launched <= set(expectations()), (
        f"not in kernels/compile/expectations.json: {launched - set(expectations())}"
    )
    assert any(r["matrix"] for r in rows)
    if arch == "gfx1151":
        assert {r["constants"].get("BLOCK_M") for r in rows if r["kernel"] == "grouped_gemm_kernel"} >= {16, 32, 64}
    if arch.startswith("gfx"):
        assert any(r["register_waves"] is not None for r in rows)
    for r in rows:
        assert all(field in r for field in FIELDS), r
        if r["register_waves"] is not None:  # our formula against LLVM's, wherever registers decide
            assert r["register_waves"] == r["compiler_waves"], r
    skip_where_older(spills)


def test_layers_that_no_table_holds_take_tiles_that_spill_nothing_on_gfx1151(table):
    """Of a K that its steps do not divide, too; `make compile` has all named layers."""
    layers = "t.LAYERS = t.model_sizes(['gpt-oss-120b'], (1,))"
    rows = table("gfx1151", layers, tokens=[1, 4096], layers=2, names=["grouped_gemm"])
    spills = spilling(rows)
    gemms = [r for r in rows if r["kernel"] == "grouped_gemm_kernel"]
    assert {r["constants"]["BLOCK_M"] for r in gemms} == {16, 64}
    assert all(r["matrix"] for r in gemms)
    assert [r["wrong"] for r in rows if r["wrong"]] == []
    skip_where_older(spills)


def test_zero_points_in_bytes_spill_nothing(table):
    """They take the most registers; `moeracle kernels compile --variants` has fp16, packed zeros and groups of 64."""
    names = ["moe_w4a16.fused", "shared_expert"]  # their two accumulators do; fused launches the padded GEMM, too
    one = "t.VARIANTS = ({'zero': 'unpacked'},)"
    rows = table("sm_90", one, tokens=[], variants=True, names=names)
    spills = spilling(rows)
    launched = {(r["kernel"], r["constants"].get("ZERO")) for r in rows}
    assert launched >= {(f"{name}_kernel", 1) for name in ("silu_gemm", "padded_gemm", "gate_up", "down")}
    skip_where_older(spills)


def test_default_tiles_leave_registers_for_zero_points(monkeypatch):
    """Those that `moeracle kernels compile --variants` found to spill nothing."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    rows_and_inputs = lambda zero: [
        (t.block_m, t.block_k) for t in (cuda_tile(64, None, zero), cuda_tile(128, None, zero))
    ]
    capability = (9, 0)
    assert rows_and_inputs(SYMMETRIC) == rows_and_inputs(RDNA) == [(64, 64), (128, 64)]
    assert rows_and_inputs(UNPACKED) == [(64, 64), (64, 64)]
    capability = (8, 0)
    assert rows_and_inputs(SYMMETRIC) == [(64, 64), (64, 64)]
    assert rows_and_inputs(UNPACKED) == rows_and_inputs(RDNA) == [(64, 32), (64, 32)]


def test_each_op_is_in_the_table(tmp_path):
    from moeracle.kernels.compile.dry_args import ARGUMENTS

    compiled = [entry for entry in REGISTRY if "hip" not in entry.fn.partition(":")[0]]
    ops = {entry.op for entry in compiled if entry.dry_arguments is None}
    assert ops
    assert ops <= set(ARGUMENTS), f"kernels/compile/dry_args.py says nothing of {ops - set(ARGUMENTS)}"


@pytest.mark.parametrize("arch", compile_hip.TARGETS)
def test_every_hip_kernel_compiles_and_spills_nothing(arch):
    try:
        gfx_compiler(arch)
    except ToolchainError as error:
        pytest.skip(str(error))
    rows = list(compile_hip.rows(architecture(arch)))
    assert [(r["kernel"], r.get("constants"), r["wrong"]) for r in rows if r["wrong"]] == []
    assert {r["entry"] for r in rows} == {path.name for path in compile_hip.sources()}
    for r in rows:
        assert r["compiler_waves"] >= r["waves"], r


def test_a_tile_that_spills_is_a_complaint(compiling):
    script = (
        "import json\nfrom moeracle.kernels.tune.by_compiler import *\n"
        "(found,) = tried(architecture('gfx1151'), 128, 64, [(128, 32, 1, 1)])\n"
        "print(json.dumps(found['wrong']))"
    )
    (said,) = compiling(script)
    assert any(re.fullmatch(r"spills \d{3,} registers", text) for text in said), said


@pytest.mark.parametrize(
    ("arch", "expected", "kinds", "says"),
    [
        ("gfx1151", ["matrix"], {"fma": 9}, ["no wmma"]),
        ("gfx942", ["matrix"], {"wmma": 4}, ["no mfma"]),
        ("sm_90", ["matrix"], {"mfma": 4}, ["no mma or wgmma or tcgen05"]),
        ("sm_90", ["matrix"], {"wgmma": 4}, []),
        ("gfx1100", ["dot2"], {"fma": 4}, ["no v_dot2"]),
        ("gfx942", ["dot2"], {"fma": 4}, []),  # it has none
        ("gfx1151", [], {}, []),
    ],
)
def test_a_missing_instruction_is_a_complaint(arch, expected, kinds, says):
    assert complaints(MachineCode("k", 32, kinds=kinds), architecture(arch), expected) == says


def test_only_an_older_tritons_spills_are_no_failure(monkeypatch):
    row = lambda *wrong: {"kernel": "k", "entry": "e", "size": "T1", "wrong": list(wrong)}
    spills, other = row("spills 9 registers"), row("spills 9 registers", "no wmma")
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", "3.6.0+git")
    assert spilling([spills, row(), row("16 bytes of scratch")]) == [
        "k of e at T1: spills 9 registers",
        "k of e at T1: 16 bytes of scratch",
    ]
    assert spilling([row()]) == []
    with pytest.raises(pytest.skip.Exception, match=r"triton 3\.6\.0.* spill: k of e at T1: spills 9 registers"):
        skip_where_older(spilling([spills]))
    with pytest.raises(AssertionError, match="no wmma"):
        spilling([spills, other])
    for version in ("3.9.0", "3.10.1", "4.0.0"):
        monkeypatch.setattr(triton, "__version__", version)
        with pytest.raises(AssertionError, match="spills 9 registers"):
            spilling([spills])


def test_scratch_alone_is_a_complaint():
    assert complaints(MachineCode("k", 32, scratch=16), architecture("gfx1151"), []) == ["16 bytes of scratch"]


def test_registers_of_a_cubin_are_those_that_ptxas_prints(tmp_path):
    triton = pytest.importorskip("triton")
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    if not ptxas.is_file():
        pytest.skip("triton came without ptxas")
    text = (
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 p, .param .u64 i)\n{\n"
        ".reg .b64 %rd<6>;\n.reg .f32 %f<3>;\n.local .align 4 .b8 room[64];\n"
        "ld.param.u64 %rd1, [p];\nld.param.u64 %rd3, [i];\ncvta.to.global.u64 %rd2, %rd1;\n"
        "mov.u64 %rd4, room;\nadd.u64 %rd5, %rd4, %rd3;\nld.global.f32 %f1, [%rd2];\n"
        "st.local.f32 [%rd5], %f1;\nld.local.f32 %f2, [%rd4];\n"
        "fma.rn.f32 %f2, %f2, %f1, %f1;\nst.global.f32 [%rd2], %f2;\nret;\n}\n"
    )
    (tmp_path / "k.ptx").write_text(text)
    command = [ptxas, "-v", "--gpu-name=sm_90", tmp_path / "k.ptx", "-o", tmp_path / "k.cubin"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code = read_nvidia(text, (tmp_path / "k.cubin").read_bytes())
    said = done.stdout + done.stderr
    assert code.registers == int(re.search(r"Used (\d+) registers", said).group(1)), said
    assert code.scratch == int(re.search(r"(\d+) bytes stack frame", said).group(1)) == 64, said
    assert code.kinds["fma"] == 1
    assert complaints(code, architecture("sm_90"), []) == ["spills 16 registers"]


def test_what_is_no_machine_code_is_refused():
    with pytest.raises(ValueError, match="asm: holds no kernel metadata"):
        read_amd("s_endpgm")
    with pytest.raises(ValueError, match="cubin: is no ELF file"):
        read_nvidia(".entry k()", b"no")


@pytest.mark.parametrize("formula", ["ROWS*X", "__import__('os')", "ROWS**2", "1.5*ROWS"])
def test_a_formula_is_integers_and_known_names(formula):
    assert compile_hip.evaluate("ROWS*K*2 - 1", {"ROWS": 2, "K": 8}) == 31
    with pytest.raises(ValueError, match="formula: got"):
        compile_hip.evaluate(formula, {"ROWS": 1})


def test_an_unknown_architecture_is_named():
    with pytest.raises(ValueError, match="did you mean 'gfx1151'"):
        architecture("gfx115")
