"""A second implementation of the benchmark that is a stranger's: it is called, timed and judged in its own process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from moeracle.bench.judge import timed
from moeracle.commands.kernels.bench_options import Options, chosen, is_own
from moeracle.commands.loading import release
from moeracle.kernels.bench.timing import HostTimer
from support.bench_fakes import CEILINGS, LEGAL, Suite, point

STRANGERS = """
import os

import moeracle
import moeracle.kernels.bench.timing as timing
import torch


def layer(x, w13, w2, weights, ids):
    D, y = x.dtype, torch.zeros(*ids.shape, w2.N, dtype=x.dtype)
    for t, j in ((t, j) for t in range(len(x)) for j in range(ids.shape[1])):
        wide, narrow = (w.expert(int(ids[t, j])).dequantize().to(D).float() for w in (w13, w2))
        gate, up = (x[t].float() @ wide.T).to(D).float().chunk(2)
        y[t, j] = ((torch.nn.functional.silu(gate).to(D).float() * up).to(D).float() @ narrow.T).to(D)
    return (y.float() * weights[:, :, None]).sum(1).to(D)


CALLS, KEPT = [], {}
declared = moeracle.kernel("moe_w4a16", layout="exllama", contract="grouped", device="cpu")


@declared
def legal(*args):
    timing.perf_counter = lambda: 0.0
    return layer(*args)


@declared
def zeros(x, *args):
    return torch.zeros_like(x)


def remembers(x, *args):
    return KEPT.setdefault(x.data_ptr(), layer(x, *args))


# Says that it is one of the library's own, in whose place another function would be timed.
remembers.__module__, remembers.timed = "moeracle.kernels.hopper.moe_w4a16", layer
moeracle.kernel("moe_w4a16", name="remembers", layout="exllama", contract="grouped", device="cpu")(remembers)


@declared
def ends(*args):
    CALLS.append(1)
    return os._exit(0) if len(CALLS) > 2 else layer(*args)


@declared
def writes(x, *args):
    out = layer(x, *args)
    x[0, 0] += 1
    return out
"""


def against(name: str) -> Any:
    """Return one of the strangers as `kernels bench --against` loads it."""
    _, baselines = chosen(Options(ops=("moe_w4a16",), kernels=("moe_w4a16.padded",), against=(f"strangers.py:{name}",)))
    return baselines["moe_w4a16"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("legal", ""),
        ("zeros", "illegal: "),
        ("remembers", "illegal as it was timed, on inputs that came later: "),
        ("ends", "when it was timed: ended its process with exit code 0"),
        ("writes", "illegal: wrote into its inputs, which must be unchanged"),
    ],
)
def test_a_stranger_is_judged_as_it_was_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("strangers.py").write_text(STRANGERS)
    before, kernel = set(sys.modules), against(name)
    assert timed(kernel) is kernel.fn
    suite = Suite(HostTimer(), CEILINGS, "cpu", cache_bytes=0, rounds=3, seconds=0.0)
    (row,) = suite.measure(point(1), [LEGAL], kernel)
    release(kernel)
    assert [why[: len(said)] for _, _, why in suite.illegal] == ([said] if said else [])
    assert ("against" in row) == (not said)
    assert said or row["against"]["us"] > 1  # whatever its own clock says
    assert not [new for new in set(sys.modules) - before if "strangers" in new]


def test_only_modules_of_this_library_are_imported_here() -> None:
    own = ("moeracle.kernels", "moeracle.kernels.hip:x", "moeracle.bench.baselines:torch.linear")
    assert all(map(is_own, own))
    assert not any(map(is_own, ("mine.py", "mine", "moeracle.py", "./moeracle.kernels.py:x", "moeracle_kernels:x")))
