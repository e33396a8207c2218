"""What can be wrong with the options of `moeracle kernels …`: one line each, and said before that there is no GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moeracle.cli import main
from moeracle.commands.kernels import bench_options
from moeracle.commands.kernels import compile as kernels_compile
from moeracle.commands.kernels import tune as kernels_tune
from moeracle.kernels import tuned


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bench"], "bench: needs a GPU"),
        (["sweep"], "sweep: needs a GPU"),
        (["tune"], "needs a GPU"),
        (["bench", "--op", "grouped"], "op: got 'grouped'"),
        (["bench", "--shape", "qwen4"], "shape: got 'qwen4'"),
        (["bench", "--shape", "E8-H96-I32-k2-G64"], "must divide H=96"),
        (["bench", "--archetype", "zipf3"], "archetype: got 'zipf3'"),
        (["bench", "--kernel", "moe_w4a16.hoper"], "did you mean 'moe_w4a16.hopper'"),
        (["bench", "--dtype", "fp32"], "dtype: got 'fp32'"),
        (["bench", "--zero", "asym"], "zero: got 'asym'"),
        (["bench", "--json", "/no/such/folder/b.json"], "/no/such/folder"),
        (["bench", "--plot", "/no/such/folder/b.png"], "/no/such/folder"),
        (["bench", "--resume"], "resume: needs --json"),
        (["sweep", "--op", "moe"], "op: got 'moe'"),
        (["sweep", "--shape", "E8-H96-I32-k2-G64"], "must divide H=96"),
        (["sweep", "--json", "/no/such/folder/s.json"], "/no/such/folder"),
        (["tune", "--shape", "E8-H96-I32-k2-G64"], "must divide H=96"),
        (["tune", "--kernel", "int4_linear"], "kernel: got 'int4_linear', must be one of grouped_gemm, padded_gemm"),
        (["bench", "--shape", "E8-H64"], "or all of E, H, I, k, G: E8-H256-I128-k2-G32"),
        (["tune", "--archetype", "zipf3"], "archetype: got 'zipf3'"),
        (["tune", "--dtype", "fp8"], "dtype: got 'fp8'"),
        (["tune", "--json", "/no/such/folder/t.json"], "/no/such/folder"),
        (["tune", "--arch", "sm_90"], "must be a gfx architecture"),
        (["tune", "--arch", "gfx90"], "arch: got 'gfx90'"),
        (["compile", "--arch", "gfx115"], "did you mean 'gfx1151'"),
        (["compile", "--kernel", "grouped_gem"], "did you mean 'grouped_gemm'"),
        (["compile", "--diff", "int4_gemv", "int4_gem"], "kernel: got 'int4_gem'"),
        (["compile", "--diff", "int4_gemv:DECOD=1", "int4_gemv"], "macro: got 'DECOD'"),
        (["tune", "--arch", "gfx1151", "--kernel", "grouped"], "kernel: got 'grouped', must be left out"),
        (["tune", "--arch", "gfx1151", "--dtype", "fp16"], "dtype: got 'fp16', must be left out"),
        # Whatever can be wrong without a GPU is said before that there is none.
        (["bench", "--kernel", "moe_w4a16.hopper"], "bench: needs a GPU"),
        (["bench", "--against", "moeracle.kernels:moe_w4a16.hopper"], "bench: needs a GPU"),
        (["bench", "--against", "two.py:a"], "bench: needs a GPU"),
        (["bench", "--against", "nope.py"], "TARGET nope.py: no such file"),
        (["bench", "--against", "boom.py"], "boom.py: does not import: RuntimeError: boo"),
        (["bench", "--against", "two.py:c"], "got 'c', must be one of a, b"),
        (
            ["bench", "--against", "two.py"],
            "with a (silu_and_mul), b (silu_and_mul), must name one kernel of silu_and_mul",
        ),
        (["bench", "--op", "moe_w4a16", "--against", "two.py:a"], "must name one kernel of moe_w4a16"),
        (["bench", "--against", "two.py:a", "--against", "two.py:b"], "got two implementations of silu_and_mul"),
        (["bench", "--against", "moeracle.kernels:"], "must have a kernel's name after the colon"),
        (["bench", "--against", "moeracle.kernels:moe"], "kernel of moeracle.kernels: got 'moe'"),
        (["bench", "--against", "moeracle.kernels"], "(moe_align_block_size) and "),
        (["bench", "--op", "moe_w4a16", "--kernel", "grouped_gemm"], "none of grouped_gemm implements moe_w4a16"),
        (["bench", "--op", "quantize_int8"], "no kernel here implements quantize_int8"),
        (["bench", "--op", "reference", "--op", "tiny_dot"], "op: got 'reference' beside others, must stand alone"),
        (["bench", "--op", "reference", "--tokens", "4"], "tokens: got '4', must be left out with --op reference"),
        (["bench", "--op", "reference", "--kernel", "tiny_dot"], "kernel: got 'tiny_dot', must be left out"),
        (["bench", "--shape", "E8-H0-I128-k2-G32"], "shape: got H=0, must be at least 1"),
        (["bench", "--shape", "E8-H256-I128-k2-G0"], "shape: got G=0, must be at least 1"),
        (["bench", "--shape", "E8-E9-H256-I128-k2-G32"], "shape: got 'E8-E9"),
        (["bench", "--op", "int8_lm_head", "--shape", "E8-H256-I128-k2-G32"], "must fit int8_lm_head: "),
        (["bench", "--shape", "E8-H12-I12-k2-G12"], "must fit grouped_gemm: "),
        (["bench", "--zero", "v1"], "zero: got 'v1', must be one of sym, rdna, unpacked"),
        (["bench", "--plot", "b.jpg"], "plot: got b.jpg, must end in .png, .svg, .pdf"),
        (["bench", "--json", "b", "--plot", "./b"], "plot: got b, must be another file than --json's"),
        (["bench", "--json", "bad.json", "--resume"], "resume: bad.json is not a benchmark's JSON"),
        (["bench", "--modifier", "biass"], "modifier: got 'biass', must be one of"),
        (["bench", "--peer", "bad.json"], "peer: needs --parts"),
        (["bench", "--parts", "--peer", "bad.json"], "peer: bad.json must hold {shape: {T: microseconds}} as JSON"),
        (["bench", "--op", "reference", "--parts"], "parts: got True, must be left out with --op reference"),
        (["bench", "--against", "moeracle.bench.baselines:torch.rout"], "did you mean 'torch.route'"),
        (["bench", "--op", "int4_linear", "--against", "moeracle.bench.baselines"], "bench: needs a GPU"),
        (["sweep", "--op", "reference"], "op: got 'reference', must be one of unpack_int4"),
        (["sweep", "--op", "moe_w4a16", "--kernel", "grouped_gemm"], "none of grouped_gemm implements"),
        (["tune", "--kernel", "moe_w4a16.hopper", "--archetype", "zipf1"], "archetype: got 'zipf1', must be 'uniform'"),
        (["tune", "--arch", "gfx1151", "--tokens", "4"], "tokens: got '4', must be left out"),
        (
            ["compile", "--arch", "sm_80", "--arch", "sm_90", "--diff", "tiny_dot", "tiny_dot"],
            "must be one with --diff",
        ),
        (
            ["compile", "--kernel", "int4_gemv", "--diff", "int4_gemv", "int4_gemv"],
            "kernel: got 'int4_gemv', must be left",
        ),
    ],
)
def test_a_mistake_is_one_line(arguments, says, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("{")
    Path("boom.py").write_text("raise RuntimeError('boo')\n")
    one = "@moeracle.kernel('silu_and_mul', device='cpu')\ndef {}(x):\n    return x\n"
    Path("two.py").write_text("import moeracle\n" + one.format("a") + one.format("b"))
    assert main(["kernels", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder in which nobody can make a file")
@pytest.mark.parametrize("command", [["bench"], ["sweep"], ["tune"], ["tune", "--arch", "gfx1151"], ["compile"]])
def test_a_file_that_cannot_be_written_is_said_at_once(command, capsys):
    assert main(["kernels", *command, "--json", "/proc/x.json"]) == 2
    assert capsys.readouterr().err.startswith("error: /proc/x.json: cannot be written")


@pytest.mark.parametrize("arch", [[], ["--arch", "gfx1151"]])
def test_a_table_that_cannot_be_written_is_said_before_tuning(arch, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuned, "FOLDER", tmp_path / "nowhere")
    monkeypatch.setattr(tuned, "places", lambda device: ("gpu", "sm_90"))
    monkeypatch.setattr(bench_options, "require_gpu", lambda what: "cuda")
    gpu = SimpleNamespace(name="GPU", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(kernels_tune, "GraphTimer", lambda *a: None)
    assert main(["kernels", "tune", *arch]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_kernel_that_an_architecture_does_not_launch_is_named():
    rows = [{"arch": "gfx1151", "entry": "int4_gemv.hip", "kernel": "int4_gemv"}]
    rows += [{"arch": "sm_90", "entry": "grouped_gemm", "kernel": "grouped_gemm_kernel"}]
    archs = ("gfx1151", "sm_90")
    assert kernels_compile.absent(rows, archs, ()) == []
    first, second = kernels_compile.absent(rows, archs, ("int4_gemv", "grouped_gemm"))
    assert first == "int4_gemv for sm_90: HIP is compiled for gfx1151, gfx1100, gfx1201"
    assert second == "grouped_gemm for gfx1151: nothing of that name is launched there, at these T"
