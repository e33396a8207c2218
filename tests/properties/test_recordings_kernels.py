"""The other kernels as an NVIDIA H200 ran them: compiler-made orders, int8, layers, every tile of the tuned table.

Remade on such a machine only (docs/bit-models.md); tests/properties/test_recordings_h200.py replays the portable GEMMs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from moeracle.kernels import tuned
from moeracle.kernels.hopper.tiles.layers import OP, from_fields, to_fields
from moeracle.properties.cases.case import Case
from moeracle.properties.judge import judge
from moeracle.properties.recordings.recordings import MANIFEST, read_recording
from moeracle.properties.recordings.replay import replay
from moeracle.ref.bitmodels.tensor_core import HOPPER, INSTRUCTIONS, Instruction

RECORDINGS = Path(__file__).resolve().parents[2] / "fixtures" / "hardware" / "h200" / "recordings"
LEAST = {  # what must be there
    "kernels": {
        "int4_linear", "int4_linear.hopper", "int4_linear.rows", "int8_lm_head", "int8_lm_head.hopper",
        "int8_lm_head.rows", "moe_sum", "moe_unpermute", "moe_w4a16.decode", "moe_w4a16.fused", "moe_w4a16.grouped",
        "moe_w4a16.padded", "shared_expert", "shared_expert.hopper", "tiny_dot",
    },
    "hopper": {
        "grouped_gemm.hopper", "hopper_few", "hopper_gemm", "hopper_layer", "moe_w4a16.hopper", "padded_gemm.hopper",
        "padded_gemm.hopper_split",
    },
}  # fmt: skip
MANIFESTS = {folder: json.loads((RECORDINGS / folder / MANIFEST).read_text()) for folder in LEAST}
KERNELS = {f: sorted({entry["kernel"] for entry in found["entries"]}) for f, found in MANIFESTS.items()}
EACH = [(folder, kernel) for folder, kernels in KERNELS.items() for kernel in kernels]
ON_A_MATRIX_UNIT = ("int4_linear", "int8_lm_head", "moe_w4a16.fused", "shared_expert", "hopper_few", "hopper_gemm")
WRONG = {
    "24 bits": replace(HOPPER, bits=24),
    "normalized exponents": replace(HOPPER, exponents="product"),
    "8 products": replace(HOPPER, products=8),
    "nearest store": replace(HOPPER, store="rne"),
}
# An order that is another one: (kernel, what a schedule's text must hold, by what that is replaced).
OTHERS = [
    ("int4_linear.rows", "-sequential", "-pairwise"),
    ("int4_linear.rows", "-halves", "-pairwise"),
    ("int4_linear.rows", "bits128.256.1.2.4.8.16.32.64/", ""),
    ("int4_linear.rows", "held1", "combine=sequential"),
    ("tiny_dot", "-halves", "-sequential"),
    ("tiny_dot", "held1", "combine=pairwise"),
    ("int8_lm_head.rows", "held16/scalelast", "combine=sequential/scalelast"),
    ("int8_lm_head.rows", "/fused", ""),
    ("int8_lm_head.rows", "/biasfused", ""),
    ("int8_lm_head.rows", ".4-halves", ".4-sequential"),
    ("int8_lm_head", "t16/p4/", "t16/"),
    ("int8_lm_head", "p8/bits1.2.16.4.8/", ""),
    ("int8_lm_head", "bits1.2.16.32.4.8/", ""),
    ("int8_lm_head", "/d4", ""),
    ("int8_lm_head", "d8/join=halves", "d8/join=pairwise"),
    ("int8_lm_head", "t128/fused", "t64/fused"),
    ("int8_lm_head", "scalelast/biasfused", "scalelast"),
    ("int4_linear", "bits1.4.8.16.2", "bits1.2.4.8.16"),
    ("moe_unpermute", "sum_schedule=fma", "sum_schedule=mul_add"),
    ("moe_unpermute", "sum_schedule=fma", "sum_schedule=fma/reversed"),
    ("moe_sum", "sum_schedule=fma", "sum_schedule=fma/pairwise"),
    ("moe_sum", "sum_schedule=fma", "sum_schedule=mul_add"),
    ("moe_w4a16.decode", "gemm2_schedule=", "gemm2_schedule=wgmma.k16.sm90,gate_schedule="),
    ("shared_expert", "gemm2_schedule=fma/t512/tree32-sequential", "gemm2_schedule=fma/t512/tree32-halves"),
    ("hopper_few", "/s4/join=pairwise", ""),
    ("hopper_few", "/s4/join=pairwise", "/s4"),
    ("hopper_few", "/s2/join=pairwise", ""),
    ("hopper_few", "wgmma.k16.sm90", "wgmma.k16.sm90/t32/bits1.4.8.16.2"),
    ("hopper_gemm", "wgmma.k16.sm90", "wgmma.k16.sm90/t32/bits1.4.8.16.2"),
    ("hopper_layer", "/s2/join=pairwise,sum", ",sum"),
    ("int8_lm_head.hopper", "bits1.2.8.16.4/", ""),
    ("int8_lm_head.hopper", "t64/bits1.2.16.32.4.8/fused", "t32/bits1.2.8.16.4/fused"),
    ("int4_linear.hopper", "/s8/join=pairwise", "/s8"),
    ("shared_expert", "gate_schedule=fma/t1024/tree8-sequential", "gate_schedule=fma/t1024/tree8-pairwise"),
    ("shared_expert.hopper", "gate_schedule=fma/t1024/tree8-sequential", "gate_schedule=fma/t1024/tree8-pairwise"),
]  # fmt: skip


@cache
def recording(folder):
    torch.set_num_threads(1)
    return read_recording(RECORDINGS / folder)


def entries(kernel, store=""):
    folder = next(folder for folder, kernels in KERNELS.items() if kernel in kernels)
    return [e for e in recording(folder).entries if e.kernel == kernel and store in ("", e.store)]


def tensors(entry):
    folder = next(folder for folder, kernels in KERNELS.items() if entry.kernel in kernels)
    return recording(folder).tensors[entry.name]


@pytest.mark.parametrize("folder", KERNELS)
def test_what_was_recorded(folder):
    found = recording(folder)
    cases = [Case.parse(entry.case) for entry in found.entries]
    assert LEAST[folder] <= set(KERNELS[folder])
    assert {case.dtype for case in cases} == {"bf16", "fp16"}
    assert {case.data for case in cases} >= {"normal", "outliers", "subnormal", "cancelling", "wide"}
    assert {case.zero for case in cases} >= {"sym", "rdna", "unpacked"}
    assert max(dict(case.dims).get("K", 0) for case in cases) >= 8192
    assert found.header["capability"] == "9.0"
    assert all(entry.facts["instructions"] for entry in found.entries)


@pytest.mark.parametrize(("folder", "kernel"), EACH)
def test_every_bit_is_predicted(folder, kernel):
    seen = [replay(entry, tensors(entry)) for entry in entries(kernel)]
    assert seen
    assert [f"{s.entry.name}: {s.equal} of {s.total}, {s.first}" for s in seen if not s.ok] == []
    total, wide = (sum(getattr(s, field) for s in seen) for field in ("total", "open"))
    assert wide < total / 10  # what silu and sigmoids leave open; of all else there is one legal value
    assert wide == 0 or kernel.startswith(("shared_expert", "moe_w4a16", "hopper_layer"))


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("kernel", ON_A_MATRIX_UNIT)
def test_wrong_models_are_seen(kernel, name, monkeypatch):
    telling = [e for e in entries(kernel) if "wgmma" in e.schedule and ("cancelling" in e.case or "wide" in e.case)]
    assert telling
    monkeypatch.setitem(INSTRUCTIONS, "wgmma.k16.sm90", Instruction(WRONG[name], 16))
    for entry in sorted(telling, key=lambda e: ("fp32", "fp16", "bf16").index(e.store)):
        if not replay(entry, tensors(entry)).ok:
            return
    pytest.fail(f"{name} predicts all of {len(telling)} recordings")


@pytest.mark.parametrize(("kernel", "old", "new"), OTHERS)
def test_other_orders_are_seen(kernel, old, new):
    K = lambda entry: -dict(Case.parse(entry.case).dims).get("K", 0)  # of one tile nothing is seen
    telling = sorted((e for e in entries(kernel) if old in e.schedule), key=K)[:24]
    assert telling, "nothing of that order was recorded"
    for entry in telling:
        if not replay(entry, tensors(entry), entry.schedule.replace(old, new)).ok:
            return
    pytest.fail(f"{new!r} predicts all of {[entry.name for entry in telling]}")


@pytest.mark.parametrize(
    ("kernel", "stage"),
    [
        ("int4_linear", "out"), ("int8_lm_head", "out"), ("tiny_dot", "out"), ("moe_unpermute", "out"),
        ("moe_w4a16.decode", "h"), ("moe_w4a16.grouped", "y"), ("moe_w4a16.fused", "y"), ("hopper_layer", "y"),
        ("hopper_layer", "out"), ("hopper_few", "out"), ("hopper_gemm", "out"),
    ],
)  # fmt: skip
def test_the_judge_demands_the_recorded_bits(kernel, stage):
    entry = next(e for e in entries(kernel) if e.store != "fp32" and ("normal" in e.case or "wide" in e.case))
    problem, out = Case.parse(entry.case).build(), {k: t.clone() for k, t in tensors(entry).items()}
    output = out if len(out) > 1 else out["out"]
    legal = judge(problem, output, entry.rules())
    assert legal.ok, legal.text()
    at = next(s for s in legal.stages if s.stage == stage)
    assert at.exact == at.judged > 0
    row, column = (int(i) for i in (out[stage] != 0).nonzero()[-1])
    out[stage].view(torch.int16)[row, column] ^= 1
    illegal = judge(problem, output, entry.rules(), explain=False)
    assert (illegal.status, illegal.stage) == ("illegal", stage)
    assert {s.stage: s.illegal for s in illegal.stages}[stage] == 1


def test_every_tile_of_the_tuned_table_is_recorded():
    rows = [row for key, rows in tuned.load("nvidia-h200").items() if key[0] == OP for row in rows]
    layers = [to_fields(from_fields(row["tile"])) for row in rows]
    kept = [entry.facts["tile"] for entry in recording("hopper").entries if "tile" in entry.facts]
    # each by itself, which is what GEMM2 of a layer is, too; and as GEMM1, with silu·mul behind it
    found = {named(fields) for fields in kept if "gemm1" not in fields}
    found |= {f"gemm1 {named(fields['gemm1'])}" for fields in kept if "gemm1" in fields}
    wanted = {named(tile) for fields in layers for tile in fields.values()}
    wanted |= {f"gemm1 {named(fields['gemm1'])}" for fields in layers}
    assert len(wanted) > 10
    assert len(found) > 10
    missing = sorted(wanted - found)
    if missing:
        pytest.skip(f"{len(missing)} of {len(wanted)} tiles of the tuned table have no recording: {missing}")


def named(fields):
    """A tile's numbers, without options that are off."""
    return " ".join(f"{name}={value}" for name, value in fields.items() if value)


def test_recorded_tiles_keep_the_schedules_that_they_declare():
    seen = [entry for entry in recording("hopper").entries if "tile" in entry.facts]
    assert len(seen) > 100
    for entry in seen:
        fields, rules = entry.facts["tile"], entry.rules()
        layer = from_fields(fields if "gemm1" in fields else {"gemm1": fields, "gemm2": fields})
        assert str(rules.schedule) == layer.gemm1.schedule(), entry.name
        assert str(rules.of_gemm2.schedule) == layer.gemm2.schedule(), entry.name
        assert any("wgmma.mma_async" in line for line in entry.facts["instructions"])
