"""TARGETs that cannot be judged: one line each, and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import moeracle
from moeracle.target.load import Kernel, load_target


def refused(done: Any) -> str:
    """Return the one line of a refusal, having checked that it is one line on stderr and nothing else."""
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.endswith("\n")
    assert done.err.count("\n") == 1
    return str(done.err[len("error: ") : -1])


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found' (my_kernels.py:1)"),
        ("x = 1\n\ny = x / 0", "ZeroDivisionError: division by zero (my_kernels.py:3)"),
        ("def f(:\n  pass", "SyntaxError: invalid syntax (my_kernels.py:1)"),
        ("raise SystemExit(3)", "SystemExit: 3 (my_kernels.py:1)"),
        ("raise RuntimeError", "RuntimeError (my_kernels.py:1)"),
        ("raise RuntimeError('one\\ntwo')", "RuntimeError: one (my_kernels.py:1)"),
        ("import neighbour", "NameError: name 'oops' is not defined (my_kernels.py:1)"),
    ],
)
def test_a_file_that_does_not_import(cli: Any, write: Any, folder: Any, source: str, line: str) -> None:
    write("oops", "neighbour.py")
    said = refused(cli("check", write(source)))
    assert said == f"TARGET my_kernels.py: does not import: {line}"


def test_no_such_file_or_module(cli: Any, write: Any) -> None:
    assert refused(cli("check", "my_kernels.py")) == "TARGET my_kernels.py: no such file"
    assert refused(cli("check", "some/where.py:name")) == "TARGET some/where.py: no such file"
    assert refused(cli("check", "no_such_module")) == "TARGET no_such_module: no module named 'no_such_module'"
    for folder in (".", "..", "./"):
        assert refused(cli("check", folder)) == f"TARGET {folder}: is a folder, must be a module or a file in it"
    assert "must be a module's whole name" in refused(cli("check", ".my_kernels"))
    write()
    said = refused(cli("check", "my_kernels.nothing"))
    assert said == "TARGET my_kernels.nothing: no module named 'my_kernels.nothing'"
    assert "must be a module" in refused(cli("check", ":name"))
    assert "must have a kernel's name" in refused(cli("check", "my_kernels.py:"))


def test_no_kernels_and_no_kernel_of_that_name(cli: Any, write: Any) -> None:
    said = refused(cli("check", write("x = 1", "empty.py")))
    assert said == "TARGET empty.py: holds no kernels; put @moeracle.kernel(OP, …) above a function"
    said = refused(cli("check", write() + ":my_liner"))
    assert said == "kernel of my_kernels.py: got 'my_liner', must be one of my_linear; did you mean 'my_linear'?"
    said = refused(cli("check", "my_kernels.py", "--op", "grouped_gemm"))
    assert said == "TARGET my_kernels.py: no kernel for op grouped_gemm; it has int4_linear"


@pytest.mark.parametrize(
    ("declared", "start", "end"),
    [
        ('"moe_w4a61"', "op: got 'moe_w4a61', must be one of ", "did you mean 'moe_w4a16'?"),
        ('"int4_linear", layout="exlama"', "layout: got 'exlama', must be one of ", "did you mean 'exllama'?"),
        ('"int4_linear", contract="gruoped"', "contract: got 'gruoped', must be", "did you mean 'grouped'?"),
        ('"int4_linear", contract="grouped,depht=2"', "contract field: got 'depht'", "did you mean 'depth'?"),
        ('"int4_linear", dtypes=("bf61",)', "dtypes of int4_linear: got 'bf61'", "did you mean 'bf16'?"),
        ('"int4_linear", device="cud"', "device: got 'cud', must be", "did you mean 'cuda'?"),
        ('"int4_linear", zeros="asymm"', "zeros: got 'asymm', must be", "did you mean 'asym'?"),
        ('"int4_linear", layout="awq", zeros="v1"', "zeros: got v1, layout awq must have one of sym, asym", ""),
        ('"int4_linear", supports=1', "supports: got 1, must be a function of a Case", ""),
        ('"int4_linear", contrct="grouped"', "kernel's argument: got 'contrct', must be", "did you mean 'contract'?"),
        ("lambda x: x", "kernel: got a function in place of an op, must be called with one", ""),
    ],
)
def test_a_declaration_with_an_unknown_name(cli: Any, write: Any, declared: str, start: str, end: str) -> None:
    target = write(f"import moeracle\n@moeracle.kernel({declared})\ndef f(x, w, bias): ...")
    said = refused(cli("check", target))
    assert said.startswith(f"TARGET my_kernels.py: does not import: {start}")
    assert said.endswith(f"{end} (my_kernels.py:2)")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--op", "int4_liner"), "op: got 'int4_liner', must be one of "),
        (("--profile", "nightyl"), "profile: got 'nightyl', must be one of smoke, ci, nightly; did you mean"),
        (("--device", "cuda0"), "device: got 'cuda0', must be one of cpu, cuda, cuda:N; did you mean 'cuda'?"),
        (("--case", "int4_linear/T3"), "case: got 2 fields in 'int4_linear/T3', must be 7"),
        (("--json", "no/such/folder/out.json"), "no/such/folder/out.json: cannot be written"),
        (("--frobnicate",), "No such option: --frobnicate"),
        (("--examples", "-1"), "Invalid value for '--examples'"),
    ],
)
def test_an_option_with_no_legal_value(cli: Any, write: Any, options: tuple[str, ...], said: str) -> None:
    assert refused(cli("check", write(), *options)).startswith(said)


def test_cuda_asked_for_and_absent(cli: Any, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    expected = "asks for 'cuda', but torch finds no CUDA device here; --device cpu runs on the CPU"
    assert refused(cli("check", write(), "--device", "cuda")) == f"device: --device {expected}"
    target = write("import moeracle\n@moeracle.kernel('silu_and_mul', device='cuda')\ndef f(h): ...", "on_gpu.py")
    assert refused(cli("check", target)) == f"device: kernel f {expected}"


def test_a_declared_function_is_unchanged_and_kernels_keep_their_order(write: Any) -> None:
    target = write(
        "import moeracle\n"
        "@moeracle.kernel('silu_and_mul', name='second')\n@moeracle.kernel('silu_and_mul', name='first')\n"
        "def f(h): return 41\n"
        "@moeracle.kernel('moe_permute', contract='hybrid,ftz=true', dtypes='bf16')\ndef g(*args): ..."
    )
    kernels = load_target(target).kernels
    assert [k.name for k in kernels] == ["first", "second", "g"]
    assert kernels[0].fn(None) == 41
    assert (kernels[2].contract.ftz, kernels[2].dtypes, kernels[2].device) == (True, ("bf16",), "cpu")
    assert [k.name for k in load_target(f"{target}:second").kernels] == ["second"]
    assert [k.name for k in load_target(f"{target}:f").kernels] == ["first", "second"]
    assert {k.device for k in load_target(target, "cuda:1").kernels} == {"cuda:1"}


def test_a_module_is_found_with_its_submodules_and_reexports(write: Any, folder: Any) -> None:
    (folder / "some_package").mkdir()
    write("from .inner import f\nfrom elsewhere_kernels import g", "some_package/__init__.py")
    write("import moeracle\n@moeracle.kernel('silu_and_mul')\ndef f(h): ...", "some_package/inner.py")
    write("import moeracle\n@moeracle.kernel('silu_and_mul')\ndef g(h): ...", "elsewhere_kernels.py")
    assert [k.name for k in load_target("some_package").kernels] == ["f", "g"]
    assert [k.name for k in load_target("some_package:g").kernels] == ["g"]


def test_triton_kernels_get_the_corrected_interpreter_where_there_is_no_gpu(write: Any) -> None:
    """In a process of its own: Triton decides once, when it is first imported."""
    pytest.importorskip("triton")
    write(
        "import triton\nimport triton.language as tl\nimport torch\nimport moeracle\n"
        "@triton.jit\ndef add_one(out, x, n: tl.constexpr):\n"
        "    i = tl.arange(0, n)\n    tl.store(out + i, tl.load(x + i) + 1.0)\n"
        "@moeracle.kernel('silu_and_mul')\ndef f(h):\n"
        "    out = torch.empty(4, dtype=h.dtype)\n    add_one[(1,)](out, h, 4)\n    return out\n"
    )
    script = (
        (
            "import torch, moeracle.target.load as t, moeracle.target.interpreter\n"
            "k = t.load_target('my_kernels.py', 'cpu').kernels[0]\n"
            "assert k.fn(torch.tensor([1, 2, 3, 256]).bfloat16()).tolist() == [2, 3, 4, 256], 'bf16 is wrong'\n"
            "assert k.why_not(t.Case.parse(CASE)) is None\n"
            "from moeracle.kernels.triton.interpreter import enable as interpreter\n"
            "moeracle.target.interpreter._bf16_is_correct.cache_clear()\ninterpreter.bf16_is_correct = lambda: False\n"
            "print(k.why_not(t.Case.parse(CASE)), k.why_not(t.Case.parse(CASE.replace('bf16', 'fp16'))), sep='; ')\n"
        )
        .replace("t.Case", "moeracle.Case")
        .replace("import torch,", "import torch, moeracle,")
    )
    script = f"CASE = 'silu_and_mul/T3-I8/bf16/-/-/normal/s1'\n{script}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Triton's interpreter computes bf16 wrongly here, and is not corrected; None\n"


CASE = "int4_linear/T3-N16-K64-G32/bf16/exllama-sym/-/normal/s1"


def declared(supports: Callable[[Any], Any] | None = None, **more: Any) -> Kernel:
    moeracle.kernel("int4_linear", **{"layout": "exllama", "supports": supports, **more})(f := lambda x, w, bias: None)
    return f.__moeracle_kernels__[0]  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("kernel", "case", "reason"),
    [
        (declared(), CASE, None),
        (declared(), CASE.replace("exllama", "gptq"), "layout is exllama, not gptq"),
        (declared(), CASE.replace("exllama-sym", "exllama-rdna"), "zero points are sym, not rdna"),
        (declared(dtypes="fp16"), CASE, "dtype is fp16, not bf16"),
        (declared(layout=None), CASE.replace("exllama", "gptq"), None),
        (declared(lambda case: case.K % 64 == 0 or "K must be a multiple of 64"), CASE, None),
        (declared(lambda case: case.K % 48 == 0 or "K must be a multiple of 48"), CASE, "K must be a multiple of 48"),
        (declared(lambda case: False), CASE, "supports() said no"),
        (declared(), "silu_and_mul/T3-I8/bf16/-/-/normal/s1", "op is int4_linear, not silu_and_mul"),
    ],
)
def test_why_not(kernel: Kernel, case: str, reason: str | None) -> None:
    assert kernel.why_not(moeracle.Case.parse(case)) == reason


def test_a_supports_that_makes_no_sense_is_the_users_mistake(cli: Any, write: Any) -> None:
    text = "import moeracle\n@moeracle.kernel('silu_and_mul', supports=lambda case: {})\ndef f(h): return h"
    said = refused(cli("check", write(text.format("None"))))
    assert said.startswith("supports of f: returned None, must be True or the reason as text, on silu_and_mul/")
    said = refused(cli("check", write(text.format("case.H > 2"))))
    assert said.startswith("supports of f: raised ")
    assert "case.H: op 'silu_and_mul' has no dimension 'H'" in said
