"""`moeracle infer`, and `check` of a kernel that declares no contract."""

import json
import re

import pytest

from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.contracts.contract import Contract, contract
from support.schemas import fits

KERNELS = """
import moeracle
from moeracle.properties.simulate import Simulation

simulated = Simulation("marlin,accumulator=fp32", "pairwise")

@moeracle.kernel("padded_gemm", CONTRACT)
def my_gemm(*args):
    return simulated.padded_gemm(*args)

@moeracle.kernel("topk_softmax")
def my_softmax(*args):
    return simulated.topk_softmax(*args)
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

SIZED = """
import moeracle
from moeracle.properties.simulate import Simulation

one = Simulation("grouped,accumulator=fp32", "sequential")
other = Simulation("grouped,accumulator=fp32", "reversed")

@moeracle.kernel("grouped_gemm")
def by_width(x, w, offsets):  # another order for other widths than the 8 columns that infer asks for
    return (one if w.N == 8 else other).grouped_gemm(x, w, offsets)
"""
LAYER = """
import moeracle
from moeracle.properties.simulate import Simulation

one = Simulation("grouped,accumulator=fp32", "pairwise")
other = Simulation("grouped,accumulator=fp32", "sequential")
one.replace_step("dot", lambda s, right, a, w, D, which: (other.dot if which == "w2" else right)(a, w, D, which))

@moeracle.kernel("moe_w4a16", contract="grouped,accumulator=fp32,schedule=fma")
def my_layer(*args):
    return one.moe_w4a16(*args)["out"]

@moeracle.kernel("moe_w4a16")
def undeclared(*args):
    return one.moe_w4a16(*args)
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
    written = fits("infer", mine / "found.json")
    assert written["format"] == 1
    (kernel,) = written["kernels"]
    assert (kernel["nearest"], kernel["explained"]) == ("marlin", True)
    fields = {f["field"]: f for f in kernel["fields"]}
    assert fields["router_weight"]["value"] == "gemm2_dtype"
    assert all(f["status"] in ("measured", "undecided", "not asked") and f["evidence"] for f in kernel["fields"])
    code = next(line for line in done.out.splitlines() if line.strip().startswith("Contract("))
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
    assert "error: broken raised RuntimeError: no such kernel" in done.err
    assert done.err.endswith(", on a probe\n")
    done = cli("infer", "wrong.py", "--k", "64")  # beside another it is noted, and the other one is inferred
    assert done.code == 1
    assert "not inferred: broken raised" in done.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["infer"], "TARGET: got none"),
        (["infer", "mine.py", "--op", "silu_and_mul"], "TARGET mine.py: no kernel for op silu_and_mul; it has padded"),
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
    assert "inferred marlin,accumulator=fp32,schedule=fma/pairwise in" in done.err
    assert "judged at tolerance zero where its order predicts the bits" in done.err
    judged = re.search(r"legal in (\d+) cases, .*; under its order in (\d+) of them", done.err)
    assert judged, done.err
    assert judged[1] == judged[2]
    assert int(judged[1]) >= 42
    assert "marlin,accumulator=fp32,schedule=fma/pairwise" in done.out
    told = cli("check", "told.py:my_gemm", "--profile", "smoke")
    assert told.code == 0
    assert "inferring" not in told.err


def test_check_does_not_hold_an_order_against_other_sizes(cli, mine):
    (mine / "sized.py").write_text(SIZED)
    done = cli("check", "sized.py", "--profile", "smoke")
    assert done.code == 0
    assert "inferred grouped,accumulator=fp32,schedule=fma in" in done.err
    assert "but the order inferred does not predict out of grouped_gemm/" in done.err
    assert "judged within the bound" in done.err


def test_what_has_nothing_to_infer_says_so(cli, mine):
    done = cli("infer", "mine.py:my_softmax")
    assert done.code == 0
    assert done.out.startswith("[topk_softmax] my_softmax: nothing to infer: its weights are fp32 within a bound")
    done = cli("check", "mine.py:my_softmax", "--profile", "smoke")
    assert done.code == 0
    assert "inferring" not in done.err


def test_each_gemm_of_a_layer_that_shows_only_out(cli, mine):
    (mine / "layer.py").write_text(LAYER)
    done = cli("infer", "layer.py:my_layer", "--k", "32", "--json", "found.json")
    assert done.code == 0
    text = "grouped,accumulator=fp32,schedule=fma/pairwise,gemm2_schedule=fma,sum_schedule=mul_add"
    assert f'contract="{text}"' in done.out
    assert "order of sums of GEMM2, probed at moe_w4a16/T256-E8-k1-H64-I32-G32/bf16" in done.out
    assert "declared schedule=fma: does not predict the bits asked for here" in done.out
    assert "declared gemm2_schedule=fma: predicts every bit asked for here" in done.out
    (kernel,) = json.loads((mine / "found.json").read_text())["kernels"]
    assert (kernel["contract"], kernel["gemm2"]["schedule"]) == (text, "fma")
    assert ["schedule", "fma", "does not predict the bits"] in kernel["declared"]
    done = cli("check", "layer.py:undeclared", "--profile", "smoke", "--case",
               "moe_w4a16/T3-E4-k2-H64-I32-G32/bf16/exllama-sym/uniform/normal/s1")  # fmt: skip
    assert done.code == 0
    assert "gemm2_schedule=fma" in done.out


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
