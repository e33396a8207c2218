"""What `moeracle check` says and returns: right kernels, wrong kernels, kernels that cannot be judged."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest

QUICK = ("--examples", "5", "--profile", "smoke")
CASE = "int4_linear/T3-N16-K64-G32/bf16/exllama-sym/-/normal/s1"
# What a broken kernel returns, given the right answer y; the check that must see it; and what it must say.
BROKEN = [
    ("1 / 0", "call", "raised ZeroDivisionError: division by zero"),
    ("None", "shape", "returned None, must return a tensor"),
    ("'text'", "shape", "returned str, must return a tensor"),
    ("y[:, 1:]", "shape", "got shape"),
    ("y.float()", "shape", "got dtype torch.float32, must be torch.bfloat16"),
    ("y.to('meta')", "shape", "got device meta, must be cpu"),
    ("(x.zero_(), y)[1]", "inputs", " x; inputs"),
    ("(w.scale.mul_(2), y)[1]", "inputs", " w.scale; inputs"),
    ("torch.empty_like(y)", "nonfinite", "elements illegal"),
    ("torch.zeros_like(y)", "interval", "elements illegal"),
    ("torch.where(torch.arange(y.shape[1]) < 8, y, y * 1.01)", "interval", "first bad column 8"),
    ("(COUNT.append(0), y * (1 + len(COUNT) % 2))[1]", "determinism", "second run gave other bits"),
]


def broken(returned: str) -> str:
    """Return a kernel file whose kernel returns this expression."""
    return (
        "import torch\nimport moeracle\nCOUNT = []\n"
        '@moeracle.kernel("int4_linear", layout="exllama")\n'
        "def my_linear(x, w, bias):\n"
        "    y = x.float() @ w.dequantize(torch.float32).to(x.dtype).float().T\n"
        "    y = (y if bias is None else y + bias.float()).to(x.dtype)\n"
        f"    return {returned}\n"
    )


def test_a_right_kernel_is_legal(cli: Any, write: Any) -> None:
    done = cli("check", write(), *QUICK)
    assert done.code == 0
    lines = done.out.splitlines()
    assert " ".join(lines[0].split()) == "kernel op contract verdict cases elements exact ulp err/bound skipped s"
    kernel, op, contract, verdict, cases, elements = lines[1].split()[:6]
    plain = contract.partition(",schedule=")[0]  # the order inferred is this machine's BLAS's
    assert (kernel, op, plain, verdict) == ("my_linear", "int4_linear", "grouped,accumulator=fp32", "legal")
    assert int(cases) > 15
    assert int(elements.replace(",", "")) > 1000
    assert "FAIL" not in done.out
    assert "my_linear: legal in" in done.err


def test_a_given_case_and_no_tokens_at_all(cli: Any, write: Any) -> None:
    assert cli("check", write(), "--case", CASE).code == 0
    done = cli("check", write(), "--case", CASE.replace("T3", "T0"), "--case", CASE)
    assert done.code == 0
    assert done.out.splitlines()[1].split()[4] == "2"


@pytest.mark.parametrize(("returned", "tier", "cause"), BROKEN, ids=[b[0][:24] for b in BROKEN])
def test_a_broken_kernel_is_illegal_in_one_clear_text(
    cli: Any, write: Any, returned: str, tier: str, cause: str
) -> None:
    done = cli("check", write(broken(returned)), "--case", CASE)
    assert done.code == 1
    assert "Traceback" not in done.out + done.err
    text = done.out[done.out.index("\n[int4_linear]") + 1 :].splitlines()
    assert text[0].startswith(f"[int4_linear] my_linear  {CASE}  FAIL  tier={tier}")
    assert cause in "\n".join(text[1:])
    assert text[-1] == f"  replay: moeracle check my_kernels.py --case {CASE}"


@pytest.mark.parametrize("returned", ["y[:, 1:]", "torch.where(torch.arange(y.shape[1]) < 8, y, y * 1.01)"])
def test_a_hunt_shrinks_and_its_last_line_replays(cli: Any, write: Any, returned: str) -> None:
    done = cli("check", write(broken(returned)), *QUICK)
    assert done.code == 1
    last = done.out.splitlines()[-1]
    assert last.startswith("  replay: moeracle check my_kernels.py --case int4_linear/T1-")
    again = cli(*last.split()[2:])
    assert again.code == 1
    assert again.out.splitlines()[-1] == last


def test_the_same_seed_finds_the_same_case(cli: Any, write: Any) -> None:
    target = write(broken("y * 1.01 if x.shape[0] > 3 and w.K > 64 else y"))
    first, second = cli("check", target, *QUICK), cli("check", target, *QUICK)
    assert first.out.splitlines()[-1] == second.out.splitlines()[-1]


def test_a_replay_line_keeps_the_device_and_names_the_kernel(cli: Any, write: Any) -> None:
    source = broken("None") + "\n\n" + broken("y").replace("my_linear", "other").split("COUNT = []\n")[1]
    done = cli("check", write(source), "--device", "cpu", "--case", CASE)
    last = f"  replay: moeracle check my_kernels.py:my_linear --case {CASE} --device cpu"
    assert done.out.splitlines()[-1] == last
    assert cli(*last.split()[2:]).code == 1


def test_nothing_to_judge_is_neither_right_nor_wrong(cli: Any, write: Any) -> None:
    target = write(broken("y").replace('"exllama")', '"exllama", supports=lambda case: "needs a full moon")'))
    for done in (cli("check", target, *QUICK), cli("check", target, "--case", CASE)):
        assert done.code == 3
        assert done.err.splitlines()[-1] == "error: nothing could be judged of my_linear: needs a full moon"
        assert ": needs a full moon" in done.out


def test_one_unjudged_kernel_among_others_is_not_hidden(cli: Any, write: Any) -> None:
    other = broken("y").replace("my_linear", "picky").replace('"exllama")', '"exllama", supports=lambda case: "no")')
    done = cli("check", write(broken("y") + "\n" + other), "--profile", "smoke", "--examples", "0")
    assert done.code == 3
    assert done.err.splitlines()[-1] == "error: nothing could be judged of picky: no"


def test_json_and_junit(cli: Any, write: Any, folder: Any) -> None:
    done = cli("check", write(broken("y * 1.01")), *QUICK, "--json", "out.json", "--junit", "out.xml")
    assert done.code == 1
    assert sorted(p.name for p in folder.iterdir() if p.suffix != ".py" and p.is_file()) == ["out.json", "out.xml"]
    report = json.loads((folder / "out.json").read_text())
    assert (report["format_version"], report["exit_code"], report["seed"], report["profile"]) == (1, 1, 0, "smoke")
    (kernel,) = report["kernels"]
    assert (kernel["kernel"], kernel["status"], kernel["contract"]) == ("my_linear", "illegal", "grouped")
    (failure,) = kernel["failures"]
    assert failure["case"] in done.out
    assert failure["illegal"] > 0
    assert kernel["stages"][0]["illegal"] >= failure["illegal"]
    root = ElementTree.parse(folder / "out.xml").getroot()
    failures = root.findall("./testsuite/testcase/failure")
    assert [f.text for f in failures] == [done.out[done.out.index("\n[int4") + 1 :].rstrip("\n")]


def test_an_old_report_survives_a_run_that_is_refused(cli: Any, write: Any, folder: Any) -> None:
    (folder / "out.json").write_text("old")
    assert cli("check", write("1 / 0"), "--json", "out.json").code == 2
    assert (folder / "out.json").read_text() == "old"


def test_where_a_kernel_hangs_is_said_when_one_stops_waiting(cli: Any, write: Any, folder: Any) -> None:
    text = (
        "import moeracle\n\n@moeracle.kernel('silu_and_mul', contract='grouped')\ndef mine(h):\n"
        "    if len(h) == 0:\n        raise KeyboardInterrupt  # as if it hung, and Ctrl-C was pressed\n"
        "    gate, up = h.float().chunk(2, 1)\n"
        "    return (gate.sigmoid() * gate).to(h.dtype) * up.to(h.dtype)\n"
    )
    done = cli("check", write(text), "--profile", "smoke", "--in-process", "--json", "out.json")
    assert done.code == 130
    assert "interrupted: mine had not returned from silu_and_mul/T0-" in done.err
    report = json.loads((folder / "out.json").read_text())
    assert (report["exit_code"], report["isolation"]) == (130, "none")
    assert report["kernels"][0]["cases_judged"] > 0
