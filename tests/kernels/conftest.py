"""Weights packed by hand and their exact values, for tests that trust neither the kernels nor the reference."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from moeracle.files import locked
from moeracle.kernels.compile.dry_run import ENVIRONMENT
from moeracle.kernels.triton.interpreter import enable as interpreter
from support.fork_server import forking

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["triton/*", "tools/test_comp*.py"]


@pytest.fixture(scope="session")
def of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder of this session, one for all its processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def compile_process(of_this_session: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Scripts in which triton compiles, whatever it does in this process.

    Its cache is empty when the session begins: what two scripts launch alike is compiled once.
    """
    pytest.importorskip("triton")
    env = os.environ | ENVIRONMENT | {"TRITON_CACHE_DIR": str(of_this_session / "triton-cache")}
    with forking(tmp_path_factory, env, "triton_ready") as run:
        yield run


@pytest.fixture(scope="session")
def compiling(compile_process: Callable[..., Any], of_this_session: Path) -> Callable[..., list[Any]]:
    """(script, *arguments) -> the JSON lines that it printed in a process in which triton compiles.

    A script runs once a session, whichever process of it asks first: the others wait and read what it printed.
    """

    def run(script: str, *arguments: Any) -> list[Any]:
        words = [script, *map(json.dumps, arguments)]
        kept = of_this_session / f"compiled-{hashlib.sha256(repr(words).encode()).hexdigest()[:20]}"
        kept.touch()
        with locked(kept):
            if not kept.stat().st_size:
                done = compile_process(*words)
                assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
                kept.write_text(done.stdout)
            return [json.loads(line) for line in kept.read_text().splitlines() if line.startswith(("[", "{"))]

    return run


@pytest.fixture(scope="session")
def beside_torch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Scripts in processes that have imported torch, but neither triton nor moeracle, and see no GPU."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""}
    with forking(tmp_path_factory, env, "torch") as run:
        yield run


@pytest.fixture(scope="session")
def device() -> str:
    """Where tensors lie: the interpreter copies those of a GPU, and addresses that a test watches would be others."""
    return "cuda" if torch.cuda.is_available() and not interpreter.wanted() else "cpu"


@dataclass
class Weight:
    """What kernels read of an Int4Weight, without the reference's class."""

    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    group_size: int
    zero_layout: str = "unpacked"
    layout: str = "exllama"


def pack_words(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [..., K] → int32 [..., K/8], code 8j+r at bit 0, 16, 4, 20, 8, 24, 12, 28."""
    c = codes.long().unflatten(-1, (-1, 8))
    word = sum(c[..., r] << shift for r, shift in enumerate((0, 16, 4, 20, 8, 24, 12, 28)))
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)


def pack_rdna(zero: torch.Tensor) -> torch.Tensor:
    """uint8 [..., N, g] → int32 [..., N/8, g], row n at bits 4*(n%8)."""
    z = zero.long().unflatten(-2, (-1, 8))
    word = sum(z[..., r, :] << (4 * r) for r in range(8))
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)


MakeWeight = Callable[..., tuple[Weight, torch.Tensor]]


@pytest.fixture(scope="session")
def make_weight(device: str) -> MakeWeight:
    """Return f(*lead, N, K, G=, dtype=, zero=, pad=, seed=) → (Weight, its exact values rounded to D, as fp64)."""

    def make(*shape, G=32, dtype=torch.bfloat16, zero="sym", pad=0, seed=0, integers=False):
        g = torch.Generator().manual_seed(seed)
        *lead, N, K = shape
        group = K if G == -1 else G
        codes = torch.randint(0, 16, shape, generator=g, dtype=torch.uint8)
        scale = (torch.rand(*lead, N, K // group, generator=g) * 0.02 + 0.01).to(dtype)
        if integers:
            scale = torch.ones_like(scale)
        zeros = torch.randint(0, 16, scale.shape, generator=g, dtype=torch.uint8)
        wide = lambda t: t.double().repeat_interleave(group, -1)
        exact = (codes.double() - (8.0 if zero == "sym" else wide(zeros))) * wide(scale)
        packed = pack_words(codes)
        if pad:  # rows of a wider buffer whose padding would be noticed
            buffer = torch.full((*lead, N, K // 8 + pad), 0x5A5A5A5A, dtype=torch.int32)
            buffer[..., : K // 8] = packed
            packed = buffer.to(device)[..., : K // 8]
        stored = {"sym": None, "unpacked": zeros, "rdna": pack_rdna(zeros) if N % 8 == 0 else None}[zero]
        layout = "unpacked" if zero == "sym" else zero
        w = Weight(packed.to(device), scale.to(device), None if stored is None else stored.to(device), G, layout)
        return w, exact.to(torch.float32).to(dtype).double()  # (u-z)*s is exact in fp32, so this rounds once

    return make


@pytest.fixture(scope="session")
def assert_close():
    """Return f(got, y, t): every |got - y| within one rounding to D plus 1e-6 of t = |x||W|."""

    def check(got: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> None:
        got = got.cpu()
        assert got.shape == y.shape
        unit = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[got.dtype]
        allowed = unit * y.abs() * 1.01 + 1e-6 * t + 1e-30
        wrong = ~((got.double() - y).abs() <= allowed)
        where = wrong.nonzero()
        assert not wrong.any(), (
            f"{len(where)} wrong, first at {where[0].tolist()}: {got[tuple(where[0])]} for {y[tuple(where[0])]}"
        )

    return check
