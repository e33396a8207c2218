"""Files that others wrote, changed at random: whatever stands in them, reading ends well or in one clear line.

`make fuzz` reads 100,000 of them, a run of the tests a tenth (docs/robustness.md).
"""

from __future__ import annotations

import os
import random
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch

from moeracle.kernels import tuned
from moeracle.properties.cases.case import Case
from moeracle.properties.golden.catalogue import items
from moeracle.properties.golden.regen import plan_derived
from moeracle.properties.golden.store import GoldenSet
from moeracle.properties.recordings.recordings import HEADER, Entry, Recording
from support.fuzz import ODD, Kind, change_json, kinds, parses
from support.runs import a_run, config_json, git_json, stages

INPUTS = int(os.environ.get("MOERACLE_FUZZ", "10000"))
SEED = int(os.environ.get("MOERACLE_FUZZ_SEED", "0"))
WANTED = ("silu_and_mul/T4-I32/bf16/-/-/normal/s0", "topk_softmax/T7-E16-k4/bf16/-/-/ties/s3", "int4_linear.ties")


def recording() -> Recording:
    """One case and one launch of instructions, small."""
    case = "int4_linear/T2-N8-K64-G32/bf16/exllama-sym/-/normal/s1"
    entries = (
        Entry("one", "case", "k", "fma", "bf16", case, "grouped", {"tile": [1]}),
        Entry("mma", "dots", "k", "mma.m16n8k16.sm90"),
    )
    g = torch.Generator().manual_seed(1)
    parts = {name: torch.randn(1, n, 16, generator=g).bfloat16() for name, n in (("a", 4), ("w", 8))}
    tensors = {"one": {"out": torch.zeros(2, 8).bfloat16()}, "mma": {**parts, "out": torch.zeros(1, 4, 8)}}
    assert Case.parse(case)
    return Recording(dict.fromkeys(HEADER, "x"), entries, tensors)


@pytest.fixture
def every(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Kind]:
    monkeypatch.setattr(tuned, "FOLDER", tmp_path / "files")
    few = [item for item in items() if (item.literal or item.case) in WANTED]
    assert len(few) == len(WANTED)
    golden = plan_derived(GoldenSet(), "for a test", "0", catalogue=few).golden
    runs = [a_run(), stages(), git_json(), config_json()]
    return kinds(tmp_path, golden, recording(), runs)


def complaint(kind: Kind, data: bytes, slow: bool) -> str:
    """Return what is wrong with how an input was answered, or ""."""
    try:
        kind.read(data, slow)
    except ValueError as error:
        lines = str(error).splitlines()
        return "" if len(lines) == 1 else f"{len(lines)} lines: {lines[:3]}"
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:100]} at {Path(frame.filename).name}:{frame.lineno}"
    return ""


def test_what_is_right_is_read(every: dict[str, Kind]) -> None:
    for name, kind in every.items():
        for seed in kind.seeds:
            kind.read(seed, True)  # of a kind that refuses everything, nothing would be learned
        assert kind.seeds, name


def test_no_file_ends_in_a_traceback(every: dict[str, Kind]) -> None:
    rng, started = random.Random(SEED), time.monotonic()
    wrong: dict[str, str] = {}
    read, parsed = Counter[str](), 0
    for i in range(INPUTS):
        name = list(every)[i % len(every)]
        kind = every[name]
        data = kind.change(rng.choice(kind.seeds), rng)
        said = complaint(kind, data, i // len(every) % kind.slow == 0)
        read[name] += 1
        parsed += kind.change is not change_json or parses(data)
        if said and len(wrong) < 20:
            wrong.setdefault(f"{name}: {said}", data[:300].decode(errors="backslashreplace"))
    print(f"\n{sum(read.values()):,} inputs, {parsed:,} of them well-formed, {len(wrong)} complaints, "
          f"{time.monotonic() - started:.0f} s: {dict(read)}")  # fmt: skip
    print("\n".join(wrong))
    assert wrong == {}
    assert len(read) == len(every)
    assert parsed > INPUTS / 2


def test_a_reader_that_fails_is_seen() -> None:
    def read(data: bytes, slow: bool) -> None:
        raise KeyError(data)

    def two_lines(data: bytes, slow: bool) -> None:
        raise ValueError("one\ntwo")

    assert complaint(Kind([b"1"], change_json, read), b"1", False).startswith("KeyError")
    assert complaint(Kind([b"1"], change_json, two_lines), b"1", False).startswith("2 lines")
    assert any(value == "\x1b[31m" for value in ODD)
