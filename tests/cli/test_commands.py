"""The commands besides check: case, routing, kernels, and what --help says."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

import moeracle
from moeracle.commands.case import digest, tensors

CASE = "moe_w4a16/T33-E8-k2-H64-I96-G32/bf16/gptq-v2/ignored/normal/s7"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "Usage: moeracle"),
        (("--help",), "Exit code 0"),
        (("check", "--help"), "moeracle check my_kernels.py"),
        (("case", "--help"), "compare the digests"),
        (("routing", "--help"), "--block-m"),
        (("kernels", "--help"), "bench"),
    ],
)
def test_help(cli: Any, argv: tuple[str, ...], said: str) -> None:
    done = cli(*argv)
    assert said in " ".join(done.out.split())
    assert done.err == ""


def test_version(cli: Any) -> None:
    assert cli("--version") == (0, f"moeracle {moeracle.__version__}\n", "")


def test_python_dash_m(folder: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moeracle", "routing", "--experts", "0"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Invalid value for '--experts'")


def test_case_shows_every_tensor_and_who_is_routed_where(cli: Any) -> None:
    done = cli("case", CASE)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == CASE
    problem = moeracle.Case.parse(CASE).build()
    named = dict(tensors(problem.args))
    assert {"x", "w13.packed", "w13.scale", "w13.zero", "topk_ids"} <= set(named)
    for name, tensor in named.items():
        (line,) = (x for x in lines if x.startswith(f"{name} "))
        assert str(list(tensor.shape)) in line
        assert line.endswith(digest(tensor))
    counts = torch.bincount(
        problem.args["topk_ids"].flatten()[problem.args["topk_ids"].flatten() >= 0].long(), minlength=8
    )
    ignored = int((problem.args["topk_ids"] < 0).sum())
    assert f"routing: 66 rows, {ignored} ignored" in done.out
    assert [int(x.split()[2]) for x in lines if x.startswith("  expert ")] == counts.tolist()


def test_a_digest_is_of_the_elements_not_of_the_strides() -> None:
    whole = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    assert digest(whole) == digest(whole.t().contiguous().t())
    assert digest(whole) != digest(whole.t())
    assert digest(whole) != digest(whole + 1)
    assert len({digest(torch.zeros(n, dtype=torch.int32)) for n in (0, 1, 2)}) == 3
    assert digest(torch.tensor([1.0]))[:8] == hashlib.sha256(bytes.fromhex("0000803f")).hexdigest()[:8]


@pytest.mark.parametrize("T", [0, 33])
def test_case_save(cli: Any, folder: Any, T: int) -> None:
    from safetensors import safe_open

    text = CASE.replace("T33", f"T{T}")
    assert cli("case", text, "--save", "case.safetensors").code == 0
    assert [p.name for p in folder.iterdir()] == ["case.safetensors"]
    named = dict(tensors(moeracle.Case.parse(text).build().args))
    with safe_open("case.safetensors", "pt") as saved:
        assert saved.metadata()["case"] == text
        assert json.loads(saved.metadata()["strides"])["x"] == list(named["x"].stride())
        assert set(saved.keys()) == set(named)
        assert all(torch.equal(saved.get_tensor(name), tensor) for name, tensor in named.items())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("case", "moe_w4a16/T3"), "case: got 2 fields in 'moe_w4a16/T3', must be 7"),
        (("case", CASE.replace("bf16", "bf61")), "case dtype of moe_w4a16: got 'bf61'"),
        (("case", CASE.replace("normal", "nromal")), "case data of moe_w4a16: got 'nromal'"),
        (("case", CASE.replace("G32", "G48")), "case dimensions: got G = 48 for w13, must divide its K = 64"),
        (("case", CASE, "--save", "nowhere/x.safetensors"), "nowhere/x.safetensors: cannot be written"),
        (("routing", "--archetype", "zipf3"), "archetype: got 'zipf3', must be one of "),
        (("routing", "--experts", "4", "--top-k", "5"), "k: got 5, must be 1..E = 4"),
        (("routing", "--seed", "-1"), "Invalid value for '--seed'"),
        (("kernels", "bench", "--op", "refrence"), "op: got 'refrence', must be one of reference, "),
        (("chek",), "No such command 'chek'"),
    ],
)
def test_a_mistake_is_one_line(cli: Any, argv: tuple[str, ...], said: str) -> None:
    done = cli(*argv)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {said}")
    assert done.err.count("\n") == 1


def test_routing_shows_padding(cli: Any) -> None:
    done = cli(
        "routing", "--archetype", "balanced", "--tokens", "16", "--experts", "8", "--top-k", "2", "--block-m", "16"
    )
    # 32 rows on 8 experts: 4 each, 8 blocks of 16, a quarter useful, every block skinny.
    assert done.out.splitlines()[-1].split() == ["balanced", "16", "32", "0", "4.0", "4", "4", "8", "25.0%", "100.0%"]


def test_routing_writes_what_it_prints(cli: Any, folder: Any) -> None:
    said = ("--archetype", "balanced", "--tokens", "16", "--experts", "8", "--top-k", "2", "--block-m", "16")
    assert cli("routing", *said, "--json", "r.json").code == 0
    found = json.loads((folder / "r.json").read_text())
    assert (found["E"], found["k"], found["seed"]) == (8, 2, 0)
    assert found["rows"] == [
        {
            "archetype": "balanced",
            "T": 16,
            "rows": 32,
            **{"dead": 0, "mean": 4.0, "median": 4.0, "max": 4},
            "block_m": {"16": {"blocks": 8, "useful": 25.0, "skinny": 100.0}},
        }
    ]
    assert cli("routing", "--json", "nowhere/r.json").code == 2


def test_the_map_of_routing_is_drawn(cli: Any, folder: Any) -> None:
    pytest.importorskip("matplotlib")
    said = ("--archetype", "balanced", "--archetype", "hot16", "--tokens", "16", "--experts", "8", "--top-k", "2")
    assert cli("routing", *said, "--plot", "map.png", "--html", "map.html").code == 0
    assert (folder / "map.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "map.html").read_text()
    assert '<th scope="row">balanced</th><td class="n">25.0 %' in page
    assert page.count("<h2>Blocks of") == 2
    assert not re.search(r"https?://|src=", page)
    for options in (("--plot", "map.jpg"), ("--plot", "a", "--html", "a")):
        assert cli("routing", *said, *options).code == 2


def test_bench_prints_and_writes(cli: Any, folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from moeracle.properties.trial import bench_reference

    monkeypatch.setattr(
        bench_reference, "bench_reference", lambda progress: (progress("measuring"), {"rows": [1.5]})[1]
    )
    monkeypatch.setattr(bench_reference, "format_bench", lambda result: f"table of {result['rows']}")
    assert cli("kernels", "bench", "--op", "reference", "--json", "b.json") == (0, "table of [1.5]\n", "measuring\n")
    assert json.loads((folder / "b.json").read_text()) == {"rows": [1.5]}
