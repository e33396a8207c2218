"""What compilers make of the matrix instructions that a GPU recorded: which are units of their own, which emulated."""

from pathlib import Path

import pytest

from moeracle.ref.bitmodels.models import MODELS
from support.matrix_instructions import MMA, WGMMA

TESTS = Path(__file__).resolve().parents[2]
UNITS = {
    "mma.m16n8k32.fp8.sm89 89": "QMMA.16832.F32.E4M3.E4M3",
    "mma.m16n8k32.fp8.f16.sm89 89": "QMMA.16832.F16.E5M2.E5M2",
    "mma.m16n8k32.fp8.sm120 120": "QMMA.16832.F32.E4M3.E4M3",
    "mma.m16n8k8.tf32.sm90 90": "HMMA.1688.F32.TF32",
    "mma.m16n8k16.f16.sm90 90": "HMMA.16816.F16",
}


@pytest.fixture(scope="module")
def found(compiling):
    """What became of each, compiled in a process of its own, where Triton's interpreter is off."""
    program = str(TESTS / "support" / "matrix_instructions.py")
    script = f"import runpy, sys; sys.path.insert(0, {str(TESTS)!r}); runpy.run_path({program!r}, run_name='__main__')"
    return compiling(script)[-1]


def code_of(found, key):
    if key not in found:
        pytest.skip("this triton comes without nvdisasm")
    return found[key]


@pytest.mark.parametrize("capability", [90, 100])
@pytest.mark.parametrize(("out", "unit", "add"), [("", "HMMA.16816.F32", "FADD"), (".f16", "HMMA.16816.F16", "HADD2")])
def test_fp8_of_mma_sync_is_two_16_bit_instructions_from_zero_and_an_addition(found, capability, out, unit, add):
    model = f"mma.m16n8k32.fp8{out}.sm90"
    code = code_of(found, f"{model} {capability}")
    assert [name for name, _ in code] == [unit] * 2 + [add] * (2 if out else 4)
    assert code[0][1].split(", ")[-1].strip() == "RZ"  # the first starts at zero, the second from the first
    assert code[1][1].split(", ")[-1].strip() == code[0][1].split(", ")[0]
    assert MODELS[model].late


@pytest.mark.parametrize("key", UNITS)
def test_others_are_one_instruction(found, key):
    assert [name for name, _ in code_of(found, key)] == [UNITS[key]]
    assert not MODELS[key.split()[0]].late


@pytest.mark.parametrize(("model", "operands", "K"), WGMMA)
def test_wgmma_is_what_tl_dot_compiles_to(found, model, operands, K):
    out = "f16" if MODELS[model].core.form == "fp16" else "f32"
    kind = {"fp16": "f16"}.get(operands, operands)
    instruction = f"wgmma.mma_async.sync.aligned.m64n64{model.split('.')[1]}.{out}.{kind}.{kind}"
    assert found[model] == [instruction, []]  # nothing is added beside it, and no operand rounded


def test_every_compiled_instruction_is_looked_at():
    keys = {f"{model} {capability}" for model, _, capability in MMA}
    assert keys == set(UNITS) | {f"mma.m16n8k32.fp8{out}.sm90 {c}" for out in ("", ".f16") for c in (90, 100)}
