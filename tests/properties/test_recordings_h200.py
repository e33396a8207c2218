"""The portable GEMMs as an NVIDIA H200 ran them, replayed without a GPU: every bit is as the schedule predicts.

Remade on such a machine only (docs/bit-models.md); tests that need one which is not there skip and say so.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moeracle.kernels.triton import schedules
from moeracle.kernels.triton.tiles import Tile
from moeracle.properties.cases.case import Case
from moeracle.properties.judge import judge
from moeracle.properties.recordings.recordings import MANIFEST, read_recording
from moeracle.properties.recordings.replay import replay
from moeracle.ref.bitmodels.tensor_core import HOPPER, INSTRUCTIONS, Instruction

RECORDINGS = Path(__file__).resolve().parents[2] / "fixtures" / "hardware" / "h200" / "recordings"
FOLDER = RECORDINGS / "gemms"
ABSENT = not (FOLDER / MANIFEST).is_file()
needs_recording = pytest.mark.skipif(ABSENT, reason="no recording of an H200 in h200/recordings/gemms yet")
WRONG = {
    "24 bits": replace(HOPPER, bits=24),
    "26 bits": replace(HOPPER, bits=26),
    "normalized exponents": replace(HOPPER, exponents="product"),
    "8 products": replace(HOPPER, products=8),
    "nearest store": replace(HOPPER, store="rne"),
}
GEMMS = ("grouped_gemm", "padded_gemm", "int4_linear")


@pytest.fixture(scope="module")
def recording():
    torch.set_num_threads(1)
    return read_recording(FOLDER)


@needs_recording
@pytest.mark.parametrize("kernel", [*GEMMS, "decode_gemm", "dot", "mma"])
def test_every_bit_is_predicted(recording, kernel):
    entries = [entry for entry in recording.entries if entry.kernel == kernel]
    assert entries
    seen = [replay(entry, recording.tensors[entry.name]) for entry in entries]
    assert [f"{s.entry.name}: {s.equal} of {s.total}, {s.first}" for s in seen if not s.ok] == []


@needs_recording
@pytest.mark.parametrize("name", WRONG)
def test_wrong_models_are_seen_in_each_dtype_and_instruction(recording, name, monkeypatch):
    monkeypatch.setitem(INSTRUCTIONS, "wrong", Instruction(WRONG[name], 16))
    failed = defaultdict(set)
    for entry in recording.entries:
        case = Case.parse(entry.case) if entry.kernel == "grouped_gemm" and entry.store == "fp32" else None
        if case is None or case.K != 512 or case.data not in ("outliers", "wide", "cancelling"):
            continue
        key = case.dtype, entry.schedule.partition(".")[0]
        failed[key].add(replay(entry, recording.tensors[entry.name], "wrong").ok)
    assert set(failed) == {(d, i) for d in ("bf16", "fp16") for i in ("mma", "wgmma")}
    assert all(False in ok for ok in failed.values()), failed


@needs_recording
def test_another_k_order_is_seen(recording):
    for entry in recording.entries:
        if entry.kernel == "dot" and "bits" in entry.schedule and "K256.wide" in entry.name:
            assert not replay(entry, recording.tensors[entry.name], "mma.m16n8k16.sm90/t64").ok, entry.name
            break
    else:
        pytest.fail("no operand whose k are permuted in registers was recorded")
    decode = [e for e in recording.entries if e.kernel == "decode_gemm" and e.store == "fp32" and "normal" in e.case]
    assert {e.schedule for e in decode} == {schedules.DECODE_ONE_SCALE, schedules.DECODE_MANY_SCALES}
    for entry in decode[:2]:
        for other in (schedules.DECODE_ONE_SCALE, schedules.DECODE_MANY_SCALES, "fma", "wgmma.k16.sm90"):
            if other != entry.schedule:
                assert not replay(entry, recording.tensors[entry.name], other).ok, (entry.name, other)


@needs_recording
def test_recorded_instructions_are_the_declared_ones(recording):
    assert recording.entries
    for entry in recording.entries:
        found = " ".join(entry.facts["instructions"])
        path = entry.schedule.partition(".")[0]
        assert {"mma": "mma.sync", "wgmma": "wgmma.mma_async"}.get(path, "fma.rn") in found, entry.name
        if entry.kernel in GEMMS:
            assert entry.schedule == schedules.gemm_schedule(Tile(*entry.facts["tile"])), entry.name
        if entry.kernel == "decode_gemm":
            assert entry.schedule == schedules.decode_schedule(Case.parse(entry.case).G), entry.name


@needs_recording
def test_what_was_recorded(recording):
    cases = [(entry, Case.parse(entry.case)) for entry in recording.entries if entry.kind == "case"]
    assert {entry.kernel for entry, _ in cases} == {*GEMMS, "decode_gemm"}
    assert {case.dtype for _, case in cases} == {"bf16", "fp16"}
    assert {case.data for _, case in cases} >= {"normal", "outliers", "subnormal", "cancelling", "wide"}
    assert max(case.K for _, case in cases) == 8192
    tiles = {tuple(entry.facts["tile"]) for entry, _ in cases if entry.kernel == "grouped_gemm"}
    assert {t[0] for t in tiles} == {16, 64, 128}
    assert {t[2] for t in tiles} == {32, 64, 128}
    assert recording.header["capability"] == "9.0"
    assert sum(f.stat().st_size for f in RECORDINGS.rglob("*") if f.is_file()) < 20e6


@needs_recording
def test_the_judge_demands_the_recorded_bits(recording):
    entry = next(e for e in recording.entries if e.kernel == "grouped_gemm" and e.store == "bf16" and "K2048" in e.case)
    out = recording.tensors[entry.name]["out"].clone()
    problem, rules = Case.parse(entry.case).build(), f"grouped,schedule={entry.schedule}"
    legal = judge(problem, out, rules)
    assert legal.ok
    assert legal.stages[0].exact == legal.judged
    out.view(torch.int16)[5, 7] ^= 1
    illegal = judge(problem, out, rules, explain=False)
    assert illegal.status == "illegal"
    assert judge(problem, out, "grouped").ok  # one ulp lies within the interval of any order
