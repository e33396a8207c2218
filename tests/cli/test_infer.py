"""`moeracle infer`, and `check` of a kernel that declares no contract."""

import json

import pytest

KERNELS = """
import moeracle
from moeracle.properties.simulate import Simulation

simulated = Simulation("marlin,accumulator=fp32", "pairwise")

@moeracle.kernel("padded_gemm", CONTRACT)
def my_gemm(*args):
    return simulated.padded_gemm(*args)

@moeracle.kernel("silu_and_mul")
def my_silu(h):
    return simulated.silu_and_mul(h)
"""
WRONG = """
import moeracle
from moeracle.properties.simulate import Simulation

simulated = Simulation("grouped,accumulator=fp32", "sequential")

@moeracle.kernel("int4_linear")
def my_linear(x, w, bias):
    return simulated.int4_linear(x, w, bias) * 1.0078125

@moeracle.kernel("grouped_gemm")
def broken(x, w, offsets):
    raise RuntimeError("no such kernel\\nsecond line")
"""


@pytest.fixture
def mine(folder):
    (folder / "mine.py").write_text(KERNELS.replace("CONTRACT", "name='my_gemm'"))
    (folder / "told.py").write_text(KERNELS.replace("CONTRACT", "contract='marlin,accumulator=fp32'"))
    (folder / "wrong.py").write_text(WRONG)
    return folder


def test_the_contract_is_printed_and_written(cli, mine):
    done = cli("infer", "mine.py", "--k", "64", "--json", "found.json")
    assert done.code == 0
    assert 'contract="marlin,accumulator=fp32,schedule=fma/pairwise"' in done.out
    assert "random cases judged with it: all legal" in done.out
    assert "order of sums: 64 in pairs" in done.out
    assert "nearest preset: marlin; differences (found, preset's): accumulator: fp32, tensor_core" in done.out
    assert "Contract('marlin,accumulator=fp32,schedule=fma/pairwise'" in done.out
    written = json.loads((mine / "found.json").read_text())
    assert written["format"] == 1
    (kernel,) = written["kernels"]
    assert (kernel["nearest"], kernel["explained"]) == ("marlin", True)
    fields = {f["field"]: f for f in kernel["fields"]}
    assert fields["router_weight"]["value"] == "gemm2_dtype"
    assert all(f["status"] in ("measured", "undecided", "not asked") and f["evidence"] for f in kernel["fields"])


def test_the_printed_code_is_the_contract(cli, mine):
    from moeracle.ref.contract import Contract, contract
    from moeracle.ref.schedule import Schedule

    out = cli("infer", "mine.py", "--k", "64").out
    code = next(line for line in out.splitlines() if line.strip().startswith("Contract("))
    made = eval(code.strip(), {"Contract": Contract, "Schedule": Schedule})
    assert made == contract(made.name)


def test_a_kernel_of_no_contract_is_unknown_and_exit_1(cli, mine):
    done = cli("infer", "wrong.py:my_linear", "--k", "64")
    assert done.code == 1
    assert "UNKNOWN: no contract explains its outputs; the nearest is" in done.out
    assert "what does not fit: weight path" in done.out


def test_a_kernel_that_raises_is_one_line(cli, mine):
    done = cli("infer", "wrong.py:broken", "--k", "64")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "broken raised RuntimeError on a probe: no such kernel" in done.err
    done = cli("infer", "wrong.py", "--k", "64")  # beside another it is noted, and the other one is inferred
    assert done.code == 1
    assert "not inferred: broken raised" in done.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["infer"], "TARGET: got none"),
        (["infer", "mine.py", "--op", "silu_and_mul"], "op: got 'silu_and_mul', must be one with a GEMM"),
        (["infer", "mine.py", "--op", "padded_gem"], "op: got 'padded_gem'"),
        (["infer", "mine.py", "--op", "int4_linear"], "TARGET mine.py: no kernel for op int4_linear"),
        (["infer", "mine.py", "--dtype", "fp32"], "dtype: got 'fp32', must be bf16 or fp16"),
        (["infer", "mine.py", "--k", "30"], "k: got 30, must be at least 32"),
        (["infer", "mine.py", "--device", "tpu"], "device: got 'tpu'"),
        (["infer", "mine.py", "--json", "no/where.json"], "no/where.json: cannot be written"),
        (["infer", "mine.py", "--probe-hardware"], "TARGET: got 'mine.py', must be left out"),
        (["infer", "--probe-file", "none.json"], "probe file: found no file none.json"),
    ],
)
def test_a_mistake_is_one_line(cli, mine, argv, said):
    done = cli(*argv)
    assert done.code == 2
    assert done.err.startswith(f"error: {said}")
    assert done.err.count("\n") == 1


def test_probe_hardware_on_the_cpu_and_its_file(cli, folder):
    done = cli("infer", "--probe-hardware", "--device", "cpu", "--json", "cpu.json")
    assert done.code == 0
    assert "predicted bit for bit by: fma sequential, mul_add sequential" in done.out
    assert "written to cpu.json" in done.out
    again = cli("infer", "--probe-file", "cpu.json")
    assert again.code == 0
    assert again.out.splitlines()[1:] == [line for line in done.out.splitlines()[1:] if "written to" not in line][:-1]


def test_check_infers_a_contract_where_none_is_declared(cli, mine):
    done = cli("check", "mine.py:my_gemm", "--profile", "smoke")
    assert done.code == 0
    assert "[padded_gemm] my_gemm: declares no contract; inferring one first" in done.err
    assert "inferred marlin,accumulator=fp32 in" in done.err
    assert 'schedule=fma/pairwise" would judge it at tolerance zero' in done.err
    assert "marlin,accumulator=fp32" in done.out
    told = cli("check", "told.py:my_gemm", "--profile", "smoke")
    assert told.code == 0
    assert "inferring" not in told.err


def test_check_judges_what_no_contract_explains_under_the_default(cli, mine):
    done = cli("check", "wrong.py:my_linear", "--profile", "smoke", "--case",
               "int4_linear/T3-N8-K64-G32/bf16/exllama-sym/-/normal/s1")  # fmt: skip
    assert done.code == 1
    assert "no contract explains its outputs" in done.err
    assert "judged under the op's default, grouped" in done.err
    done = cli(
        "check", "wrong.py:broken", "--case", "grouped_gemm/T3-E2-k1-N8-K64-G32/bf16/exllama-sym/uniform/normal/s1"
    )
    assert done.code == 1
    assert "no contract inferred (broken raised RuntimeError" in done.err
