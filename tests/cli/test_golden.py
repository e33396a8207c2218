"""`moeracle golden`, as typed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moeracle.properties.golden.catalogue import items
from moeracle.properties.golden.derive import derive
from moeracle.properties.golden.store import GoldenSet, file_bytes, make_entry
from moeracle.properties.golden.tensors import inputs_of
from moeracle.ref.contracts.contract import contract
from support.commands import Done

Cli = Callable[..., Done]
Write = Callable[..., str]
ROOT = Path(__file__).parents[2]
OFF = """
import torch
import moeracle

@moeracle.kernel("int4_linear", layout="exllama")
def my_linear(x, w, bias):
    weight = w.dequantize(torch.float32).to(x.dtype).float()
    y = (x.float() @ weight.T) * 1.0078125
    return (y if bias is None else y + bias.float()).to(x.dtype)
"""


def sums(folder: Path) -> dict[str, str]:
    """sha256 of every file of a set."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_shipped_set_verifies(cli: Cli) -> None:
    done = cli("golden", "verify", "--json", "verify.json")
    assert done.code == 0, done.out
    assert "derived again: as accepted" in done.out
    report = json.loads(Path("verify.json").read_text())
    assert (report["findings"], report["exit_code"]) == ([], 0)
    assert report["entries"] >= 300


def test_regenerating_gives_the_same_bytes_with_any_number_of_threads() -> None:
    """Derived from nothing but the catalogue: every file is, byte for byte, what lies in fixtures/.

    With two threads here; with one `golden verify` derived the same results, above.
    """
    threads = 2
    torch.set_num_threads(threads)
    try:
        made, about = GoldenSet(), {"reason": "", "date": "", "version": ""}
        for item in items():
            problem = item.problem()
            inputs = inputs_of(problem)
            for name in item.contracts:
                results = derive(problem, contract(name))
                made.add(make_entry(item, name, inputs, results, results, **about), inputs, results)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    fresh = {name: hashlib.sha256(file_bytes(made, name)).hexdigest() for name in made.inputs}
    shipped = sums(ROOT / "fixtures")
    assert len(fresh) >= 250
    assert fresh == {name: shipped.get(name) for name in fresh}
    assert fresh == json.loads((ROOT / "fixtures" / "manifest.json").read_text())["files"]


def test_a_set_of_ones_own(cli: Cli, write: Write) -> None:
    target = write()
    made = cli("golden", "make", target, "--dir", "mine", "--accept", "release 1")
    assert made.code == 0, made.err
    assert "new int4_linear: " in made.out
    same = cli("golden", "verify", target, "--dir", "mine")
    assert same.code == 0, same.out
    assert " same " in same.out

    write(OFF)
    drifted = cli("golden", "verify", target, "--dir", "mine")
    assert drifted.code == 1
    assert "drift of the kernel: int4_linear/" in drifted.out
    assert "illegal under 'grouped'; recorded " in drifted.out
    assert "drift of the reference" not in drifted.out
    before = sums(Path("mine"))
    refused = cli("golden", "make", target, "--dir", "mine", "--accept", "release 2")
    assert refused.code == 1
    assert "nothing written" in refused.err
    assert sums(Path("mine")) == before


def test_replaying_on_the_shipped_set(cli: Cli, write: Write) -> None:
    right = cli("golden", "verify", write(), "--op", "int4_linear")
    assert right.code == 0, right.out
    wrong = cli("golden", "verify", write(OFF), "--op", "int4_linear")
    assert wrong.code == 1
    assert "drift of the kernel (" in wrong.out
    assert "derived again: as accepted" in wrong.out  # the kernel's fault, not the reference's


def test_regen_says_what_changes_and_writes_only_then(cli: Cli) -> None:
    args = ("golden", "regen", "--dir", "set", "--op", "silu_and_mul", "--accept")
    dry = cli(*args, "first", "--dry-run")
    assert (dry.code, Path("set").exists()) == (0, False)
    assert "would write 30 new" in dry.out
    assert cli(*args, "first").code == 0
    again = cli(*args, "second")
    assert "nothing to change" in again.out
    entries = json.loads(Path("set/manifest.json").read_text())["entries"]
    assert {entry["reason"] for entry in entries} == {"first"}

    file = next(Path("set").rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-2])
    before = sums(Path("set"))
    dirty = cli(*args, "third")
    assert dirty.code == 2
    assert "will not overwrite" in dirty.err
    assert sums(Path("set")) == before
    broken = cli("golden", "verify", "--dir", "set")
    assert broken.code == 2
    assert len(broken.err.strip().splitlines()) == 1
    assert "is damaged" in broken.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("regen", "--accept", " "), "got no reason"),
        (("regen",), "--accept"),
        (("regen", "--accept", "x", "--op", "silu"), "did you mean 'silu_and_mul'"),
        (("verify", "--dir", "nowhere"), "found no manifest.json in nowhere"),
        (("verify", "--op", "gemm"), "op: got 'gemm'"),
        (("verify", "no_such_file.py"), "no such file"),
        (("verify", "broken.py"), "does not import: RuntimeError: boom"),
        (("verify", "--json", "."), "cannot be written"),
        (("verify", "--dir", "broken.py"), "found no manifest.json in broken.py"),
        (("regen", "--dir", "broken.py", "--accept", "x"), "broken.py is not a folder"),
        (("regen", "--dir", "broken.py/set", "--accept", "x"), "broken.py is not a folder"),
        (("make", "broken.py", "--dir", "broken.py", "--accept", "x"), "broken.py is not a folder"),
        (("make", "no_such_file.py", "--dir", "d", "--accept", "x"), "no such file"),
        (("make", "f.py", "--dir", "d", "--accept", "x", "--case", "nonsense"), "case: got 1 fields"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(cli: Cli, argv: tuple[str, ...], said: str) -> None:
    Path("broken.py").write_text("raise RuntimeError('boom')\n")
    done = cli("golden", *argv)
    assert Path("broken.py").read_text() == "raise RuntimeError('boom')\n"
    assert (done.code, len(done.err.strip().splitlines())) == (2, 1)
    assert said in done.err


def test_nothing_to_replay_is_not_a_pass(cli: Cli, write: Write) -> None:
    source = OFF.replace('layout="exllama"', 'layout="exllama", supports=lambda case: "not today"')
    done = cli("golden", "verify", write(source), "--op", "int4_linear")
    assert done.code == 3
    assert "nothing could be replayed of my_linear" in done.err
    made = cli("golden", "make", "my_kernels.py", "--dir", "d", "--accept", "x")
    assert made.code == 3
    assert "not today" in made.out
