"""No published way of cheating an evaluation passes, and none touches the judge or the kernels beside it."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hostile.kernels import endings, tricks
from hostile.kernels.cheats import OURS, SOURCES, TIERS
from support.commands import run_here
from support.hostile import RIGHT, check

CASE = "silu_and_mul/T5-I16/bf16/-/-/normal/s3"


@pytest.mark.parametrize(("file", "tiers"), [("cheats.py", TIERS), ("tricks.py", tricks.TIERS)])
def test_no_cheat_passes_and_the_honest_kernel_is_judged(tmp_path: Path, file: str, tiers: dict[str, str]) -> None:
    started = time.monotonic()
    done, kernels = check(tmp_path, file, "--case-timeout", "60", "--html", "out.html", cases=(CASE,))
    assert done.code == 1, done.err
    assert "Traceback" not in done.err
    assert set(kernels) == {*tiers, "honest"}
    assert kernels.pop("honest")["status"] == "legal"
    found = {name: [failure["tier"] for failure in kernel["failures"]] for name, kernel in kernels.items()}
    wrong = {
        name: (seen, tiers[name]) for name, seen in found.items() if not seen or seen[0] not in tiers[name].split("|")
    }
    assert wrong == {}
    assert all(len(seen) == 1 for seen in found.values())
    assert "1 passed in" not in done.out.partition("[silu_and_mul]")[0]
    assert len(ElementTree.parse(tmp_path / "out.xml").getroot().findall("./testsuite/testcase/failure")) == len(tiers)
    assert (tmp_path / "out.html").read_text().rstrip().endswith("</html>")
    assert survivors(tricks.DAEMON) == []
    print(f"\ncheck {file}: {len(tiers)} kernels in {time.monotonic() - started:.0f} s", flush=True)


def survivors(mark: str) -> list[int]:
    """Return the processes whose command line holds a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += [int(path.parent.name)] if mark.encode() in path.read_bytes() else []
    return found


def test_the_collection_is_large_and_most_of_it_was_published() -> None:
    assert len(TIERS) + len(endings.TIERS) + len(tricks.TIERS) >= 120
    published = {source for source in SOURCES.values() if source != OURS}
    assert len(published) >= 10
    assert all(source.startswith("https://") for source in published)
    assert sum(source != OURS for source in SOURCES.values()) >= 30


CONFINED = """
import os
import socket

import moeracle
import torch


def kernel(how):
    '''Declare a kernel that does what it may not, and right where that is allowed.'''

    def got_out(h):
        try:
            how(h)
        except PermissionError:
            open("here it may write", "w").close()
            return torch.zeros(len(h), h.shape[1] // 2, dtype=h.dtype)
        gate, up = h.float().chunk(2, 1)
        return torch.nn.functional.silu(gate).to(h.dtype) * up.to(h.dtype)

    got_out.__name__ = how.__name__
    return moeracle.kernel("silu_and_mul", contract="grouped")(got_out)


@kernel
def network(h):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))


@kernel
def files(h):
    open({path!r}, "w").close()


@kernel
def signals(h):
    os.kill(os.getppid(), 0)


@kernel
def reference(h):
    moeracle.ref.silu_and_mul(h)
"""


def test_an_adversarial_kernel_is_confined(tmp_path: Path) -> None:
    written = tmp_path / "written"
    (tmp_path / "four.py").write_text(CONFINED.format(path=str(written)))
    reports = []
    for flag in ((), ("--adversarial",)):
        done = run_here(tmp_path, "check", "four.py", "--case", CASE, "--json", "out.json", *flag)
        reports.append(json.loads((tmp_path / "out.json").read_text()))
        illegal = [kernel["kernel"] for kernel in reports[-1]["kernels"] if kernel["status"] == "illegal"]
        assert done.code == bool(illegal), done.err
        if not flag:
            assert set(illegal) <= {"signals"}  # no child may send the judge one, where the system can forbid it
            written.unlink()
    report = reports[1]["adversarial"]
    found = {kernel["kernel"]: kernel["reasons"] for kernel in report["kernels"]}
    assert set(found) == {"network", "files", "signals", "reference"}
    confined = {how: how == "reference" or report["confined"][how] for how in found}
    assert all(found[how][0].startswith("bits: ") for how in found if confined[how])
    assert not (confined["files"] and written.exists())
    loose = [how for how in found if not confined[how]]
    assert loose or report["score"] == 0
    if loose:
        pytest.skip(f"this system does not confine {', '.join(loose)}")


def test_an_honest_kernel_scores_one_and_nobody_knows_its_seeds(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(f"import moeracle\n{RIGHT}")
    words = ("check", "one.py", "--adversarial", "--profile", "smoke", "--examples", "3", "--json")
    seeds = []
    for name in ("a.json", "b.json"):
        assert run_here(tmp_path, *words, name).code == 0
        report = json.loads((tmp_path / name).read_text())
        assert report["adversarial"]["score"] == 1
        seeds.append({case["case"].rpartition("/s")[2] for case in report["kernels"][0]["cases"]})
    assert len(seeds[0]) > 3
    assert not seeds[0] & seeds[1]


# Right in either of two orders, and by turns from one process to the next: only what it remembers hides that.
BY_TURNS = """
import os

import torch
import moeracle

TURN = os.path.exists("turn")
os.remove("turn") if TURN else open("turn", "w").close()
MEMORY = {}


@moeracle.kernel("int4_linear", layout="exllama", contract="grouped")
def by_turns(x, w, bias):
    key = tuple(t.contiguous().view(torch.uint8).numpy().tobytes() for t in (x, w.packed, w.scale))
    if key not in MEMORY:
        products = x.float()[:, None, :] * w.dequantize(torch.float32).to(x.dtype).float()[None]
        columns = products.flip(-1).unbind(-1) if TURN else products.unbind(-1)
        MEMORY[key] = sum(columns).to(x.dtype)
    return MEMORY[key]
"""


def test_what_a_cache_hides_shows_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(BY_TURNS)
    case = "int4_linear/T9-N256-K512-G32/fp16/exllama-sym/-/normal/s0"
    done = run_here(tmp_path, "check", "one.py", "--case", case)
    assert done.code == 1, done.err
    assert "FAIL  tier=determinism stage=out" in done.out
    assert "another process gave other bits in " in done.out
    (tmp_path / "same.py").write_text(BY_TURNS.replace("if TURN else", "if False else"))
    assert run_here(tmp_path, "check", "same.py", "--case", case).code == 0
