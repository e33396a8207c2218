"""What a kernel's file switches in torch changes how its kernels run, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import moeracle
from moeracle.properties.common.torch_state import PLAIN, TorchState, current, keeping, put, switched
from moeracle.properties.trial.trial import run_trial
from moeracle.target.load import load_target

HEAD = "import torch\nimport moeracle\n"
KERNEL = """
@moeracle.kernel("int4_linear", layout="exllama", contract="grouped")
def mine(x, w, bias):
    {first}
    y = x.float() @ w.dequantize().to(x.dtype).float().T
    return (y if bias is None else y + bias.float()).to(x.dtype)
"""
CASES = [
    "int4_linear/T3-N16-K64-G32/bf16/exllama-sym/-/normal/s1",
    "int4_linear/T3-N16-K64-G32/fp16/exllama-sym/-/integers+bias/s2",
]
SWITCHES = {
    "torch.set_default_dtype(torch.bfloat16)": TorchState(dtype=torch.bfloat16),
    "torch.set_default_device('meta')": TorchState(device="meta"),
    "torch.set_flush_denormal(True)": TorchState(flushes=True),
}


@pytest.fixture(autouse=True)
def _plain_again() -> Any:
    yield
    put(PLAIN)


@pytest.mark.parametrize(("switch", "state"), SWITCHES.items())
def test_a_file_that_switches_torch_is_judged_as_if_it_did_not(write: Any, switch: str, state: TorchState) -> None:
    seen = (
        f"assert {state.dtype} == torch.get_default_dtype(); assert '{state.device}' == str(torch.get_default_device())"
    )
    (kernel,) = load_target(write(f"{HEAD}{switch}\n{KERNEL.format(first=seen)}")).kernels
    assert current() == PLAIN
    for text in CASES:
        verdict = run_trial(kernel, moeracle.Case.parse(text))
        assert verdict.ok, verdict.text()
    assert current() == PLAIN


@pytest.mark.parametrize(("switch", "state"), SWITCHES.items())
def test_what_a_kernel_switches_ends_with_its_call(write: Any, switch: str, state: TorchState) -> None:
    first = f"x = x.clone(); {switch}; torch.set_default_device(None)"
    (kernel,) = load_target(write(HEAD + KERNEL.format(first=first))).kernels
    verdict = run_trial(kernel, moeracle.Case.parse(CASES[0]))
    assert verdict.ok, verdict.text()
    assert current() == PLAIN


def test_a_kernel_that_flushes_subnormals_for_the_whole_process_is_caught(write: Any) -> None:
    """With the oracle flushing, too, the same outputs were taken for legal."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU has no such switch")
    put(PLAIN)
    case = moeracle.Case.parse("int4_linear/T1-N1-K32-G32/bf16/exllama-sym/-/subnormal/s4")
    for switch, ok in (("pass", True), ("torch.set_flush_denormal(True)", False)):
        (kernel,) = load_target(write(f"{HEAD}{switch}\n{KERNEL.format(first='pass')}")).kernels
        assert run_trial(kernel, case).ok is ok


def test_a_module_is_imported_once_and_keeps_its_switches(write: Any, folder: Any, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(Path(folder)))
    write(
        f"{HEAD}torch.set_default_dtype(torch.float64)\n{KERNEL.format(first='return torch.ones(3)')}", "a_switcher.py"
    )
    for _ in range(2):
        (kernel,) = load_target("a_switcher").kernels
        assert kernel.fn(None, None, None).dtype == torch.float64
    del sys.modules["a_switcher"]


@pytest.mark.parametrize("state", SWITCHES.values())
def test_a_case_and_the_judge_are_the_same_in_a_process_that_switched(state: TorchState) -> None:
    case = moeracle.Case.parse(CASES[0].replace("normal", "integers"))
    right = moeracle.ref.int4_linear(*case.build().args.values()).to(torch.bfloat16)
    problem = case.build()
    put(state)
    again = case.build()
    assert torch.equal(again.args["x"], problem.args["x"])
    assert again.args["x"].device.type == "cpu"
    assert moeracle.judge(again, right).ok
    assert current() == state


def test_the_switches_are_set_back_after_an_exception() -> None:
    def fails() -> None:
        torch.set_default_dtype(torch.float64)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        keeping(fails, TorchState(dtype=torch.float16))()
    assert current() == PLAIN
    with switched(TorchState(device="meta")):
        assert torch.empty(1).device.type == "meta"
    assert current() == PLAIN
