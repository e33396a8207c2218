"""`moeracle parity`: what two kernels share, where they part, and what no contract explains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.commands import Done

Cli = Callable[..., Done]
GATES = """
import torch
import moeracle

def gated(h, rounded):
    gate, up = h.float().chunk(2, 1)
    s = torch.nn.functional.silu(gate)
    return ((s.to(h.dtype).float() if rounded else s) * up).to(h.dtype)

@moeracle.kernel("silu_and_mul", contract="grouped,silu=rounded", device="cpu")
def rounds(h):
    return gated(h, True)

@moeracle.kernel("silu_and_mul", contract="grouped,silu=rounded", device="cpu")
def rounds_too(h):
    return gated(h, True)

@moeracle.kernel("silu_and_mul", contract="grouped,silu=fp32", device="cpu")
def keeps(h):
    return gated(h, False)

@moeracle.kernel("silu_and_mul", contract="grouped,silu=fp32", device="cpu")
def wrong(h):
    out = gated(h, False)
    out[3:4] = 0
    return out
"""
SUMS = """
import torch
import moeracle

def summed(x, w, bias, reverse):
    y = x.float()
    weight = w.dequantize(torch.float32).to(x.dtype).float()
    if reverse:
        y, weight = y.flip(1), weight.flip(1)
    out = torch.zeros(len(y), len(weight))
    for k in range(y.shape[1]):
        out = (out + y[:, k : k + 1] * weight[:, k]).to(x.dtype).float()
    return (out if bias is None else out + bias.float()).to(x.dtype)

@moeracle.kernel("int4_linear", layout="exllama", contract="grouped,accumulator=dtype", device="cpu")
def forward(x, w, bias):
    return summed(x, w, bias, False)

@moeracle.kernel("int4_linear", layout="exllama", contract="grouped,accumulator=dtype", device="cpu")
def backward(x, w, bias):
    return summed(x, w, bias, True)
"""


@pytest.fixture
def compare(folder: Path, cli: Cli) -> Callable[..., tuple[Done, dict[str, object]]]:
    """Compare two kernels of a file; return what was printed, and the JSON."""
    (folder / "gates.py").write_text(GATES)
    (folder / "sums.py").write_text(SUMS)

    def run(file: str, a: str, b: str, *words: str) -> tuple[Done, dict[str, object]]:
        done = cli("parity", f"{file}:{a}", f"{file}:{b}", "--in-process", "--json", "out.json", *words)
        return done, json.loads((folder / "out.json").read_text())

    return run


def test_the_same_bits_are_said(compare: Callable[..., tuple[Done, dict[str, object]]]) -> None:
    done, said = compare("gates.py", "rounds", "rounds_too", "--examples", "6")
    assert done.code == 0
    assert "contracts: no difference" in done.out
    assert "the same bits in all of 6 cases" in done.out
    assert (said["fields"], said["bugs"]) == ([], [])


def test_a_rounding_explains_where_bits_part(compare: Callable[..., tuple[Done, dict[str, object]]]) -> None:
    done, said = compare("gates.py", "keeps", "rounds", "--examples", "6")
    assert done.code == 0, done.out
    assert said["explaining"] == ["silu"]
    assert ["silu", "fp32", "rounded"] in said["fields"]  # type: ignore[operator]
    assert "explained by silu" in done.out
    assert "(inferred)" in done.out
    assert "first stage that differs: out" in done.out


def test_another_order_of_sums_is_explained_without_a_field(
    compare: Callable[..., tuple[Done, dict[str, object]]],
) -> None:
    done, said = compare("sums.py", "forward", "backward", "--declared", "--examples", "6")
    assert done.code == 0, done.out
    assert said["explaining"] == []
    assert "A's contract leaves both bits open" in done.out


def test_a_bug_is_left_over(compare: Callable[..., tuple[Done, dict[str, object]]]) -> None:
    done, said = compare("gates.py", "keeps", "wrong", "--declared", "--examples", "6")
    assert done.code == 1
    assert said["bugs"]
    assert "not explained: wrong on silu_and_mul/" in done.out
    assert "nothing else differs" not in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gates.py", "gates.py"), "has 4 kernels"),
        (("gates.py:keeps", "sums.py:forward"), "no kernel for op silu_and_mul; it has int4_linear"),
        (("gates.py:keeps", "gates.py:wrong", "--case", "silu_and_mul/T3-I8/fp8/-/-/normal/s1"), "dtype"),
        (("gates.py:keeps", "gates.py:wrong", "--case", "tiny_dot/T3-K8/bf16/-/-/normal/s1"), "no kernel for op tiny"),
    ],
)
def test_bad_input_is_one_line(compare: object, cli: Cli, words: tuple[str, ...], said: str) -> None:
    done = cli("parity", *words, "--in-process")
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
