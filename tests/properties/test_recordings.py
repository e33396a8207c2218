"""Recordings: what is written is read again, damage and other versions are named, and replay sees every wrong model."""

import json
import os
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from moeracle.properties.cases.case import Case, Problem
from moeracle.properties.recordings.recordings import HEADER, MANIFEST, Entry, read_recording, write_recording
from moeracle.properties.recordings.replay import predict, replay
from moeracle.ref.bitmodels.tensor_core import HOPPER, INSTRUCTIONS, Instruction, fused_dot
from moeracle.ref.contracts.contract import contract

HERE = dict.fromkeys(HEADER, "simulated")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TILE = {"tile": [64, 64, 64]}
GROUPED = "grouped_gemm/T8-E2-k2-N16-K256-G32/{}/exllama-sym/uniform/outliers/s3"
WRONG = {
    "24 bits": Instruction(replace(HOPPER, bits=24), 16),
    "26 bits": Instruction(replace(HOPPER, bits=26), 16),
    "normalized exponents": Instruction(replace(HOPPER, exponents="product"), 16),
    "8 products": Instruction(replace(HOPPER, products=8), 16),
    "32 products": Instruction(replace(HOPPER, products=32), 32),
    "nearest store": Instruction(replace(HOPPER, store="rne"), 16),
    "fp32": INSTRUCTIONS["mul_add"],
}


def simulated(case, store):
    """What a tensor-core kernel would store, expert by expert, without replay's own code."""
    problem = case.build()
    x, w, offsets = (problem.args[name] for name in ("x", "w", "expert_offsets"))
    dense = w.dequantize(torch.float32).to(x.dtype)
    rows = [fused_dot(x[s:t], dense[e], HOPPER) for e, (s, t) in enumerate(pairwise(offsets.tolist()))]
    out = torch.cat(rows)
    return out if store == "fp32" else out.to(DTYPES[store])


def entry_of(dtype, store):
    case = GROUPED.format(dtype)
    return Entry(
        f"{dtype}.{store}", "case", "gemm", "wgmma.k16.sm90/t64", store, case, "grouped", {"tile": [64, 64, 64]}
    )


@pytest.fixture
def recorded(tmp_path):
    """A recording of a simulated kernel and of raw instructions, in a folder."""
    entries, tensors = [], {}
    for dtype in DTYPES:
        for store in ("fp32", dtype):
            entry = entry_of(dtype, store)
            entries.append(entry)
            tensors[entry.name] = {"out": simulated(Case.parse(entry.case), store)}
    g = torch.Generator().manual_seed(1)
    a, w = (torch.randn(3, n, 16, generator=g).to(torch.bfloat16) for n in (16, 8))
    c = torch.randn(3, 16, 8, generator=g)
    entries.append(Entry("mma", "dots", "mma", "mma.m16n8k16.sm90"))
    out = torch.stack([fused_dot(*t, HOPPER, s) for *t, s in zip(a, w, c, strict=True)])
    tensors["mma"] = {"a": a, "w": w, "acc": c, "out": out}
    write_recording(tmp_path, HERE, entries, tensors)
    return tmp_path


def test_what_is_written_is_read_and_replayed(recorded):
    found = read_recording(recorded)
    assert found.header == HERE
    assert [e.name for e in found.entries] == ["bf16.fp32", "bf16.bf16", "fp16.fp32", "fp16.fp16", "mma"]
    assert found.entries[0].facts == TILE
    for entry in found.entries:
        seen = replay(entry, found.tensors[entry.name])
        assert seen.ok, seen
        assert seen.total == (384 if entry.name == "mma" else 256)
    assert sorted(p.name for p in recorded.iterdir()) == ["gemm.safetensors.xz", "manifest.json", "mma.safetensors.xz"]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_model_fails(recorded, name, monkeypatch):
    monkeypatch.setitem(INSTRUCTIONS, "wrong", WRONG[name])
    found = read_recording(recorded)
    for entry in found.entries[:1] + found.entries[2:3]:
        seen = replay(entry, found.tensors[entry.name], "wrong")
        assert not seen.ok
        assert "recorded " in seen.first


def test_one_changed_bit_is_seen_and_placed(recorded):
    found = read_recording(recorded)
    for entry in found.entries:
        parts = found.tensors[entry.name]
        parts["out"].view(torch.int16 if parts["out"].element_size() == 2 else torch.int32).flatten()[37] ^= 1
        seen = replay(entry, parts)
        assert (seen.equal, seen.ok) == (seen.total - 1, False)
        assert seen.first.startswith("[0, 4, 5]" if entry.kind == "dots" else "[2, 5]"), seen.first


@pytest.mark.parametrize(
    ("case", "store"),
    [
        ("int4_linear/T5-N16-K256-G32/bf16/exllama-rdna/-/normal+bias/s1", "fp32"),
        ("padded_gemm/T5-E3-k2-N16-K256-G32-B16/fp16/exllama-sym/ignored+weight/normal/s1", "fp16"),
    ],
)
def test_other_ops_are_predicted_as_their_kernels_compute(case, store):
    problem = Case.parse(case).build()
    a = problem.args
    x, w = a["x"], a["w"]
    dense = w.dequantize(torch.float32).to(x.dtype)
    if "bias" in a:
        out = fused_dot(x, dense, HOPPER) + a["bias"].float()
    else:
        ids, out = problem.truth["topk_ids"].flatten().tolist(), torch.zeros(x.shape[0] * 2, w.N)
        for r, e in enumerate(ids):
            if e >= 0:
                out[r] = fused_dot(x[r // 2 : r // 2 + 1], dense[e], HOPPER)[0] * a["topk_weights"].flatten()[r]
    entry = Entry("one", "case", "gemm", "wgmma.k16.sm90", store, case, "grouped")
    seen = replay(entry, {"out": out.to(torch.float32 if store == "fp32" else torch.float16)})
    assert seen.ok, seen


def test_a_router_weight_in_the_activation_dtype_is_predicted_as_it_is_judged():
    problem = Case.parse("padded_gemm/T5-E3-k2-N16-K64-G32-B16/fp16/exllama-sym/ignored+weight/normal/s1").build()
    out = torch.zeros(10, 16, dtype=torch.float16)
    of = {at: predict(problem, contract(f"grouped,schedule=fma,router_weight={at}"), {"out": out})["out"].lo
          for at in ("unpermute", "gemm2_dtype")}  # fmt: skip
    plain = Problem(problem.case, {**problem.args, "topk_weights": None}, problem.truth)
    sums = predict(plain, contract("grouped,schedule=fma"), {"out": out})["out"].lo
    weights = problem.args["topk_weights"].reshape(-1, 1)
    assert torch.equal(of["unpermute"], (sums.float() * weights).double())
    assert torch.equal(of["gemm2_dtype"], (sums.half().float() * weights.half().float()).double())
    assert not torch.equal(of["unpermute"], of["gemm2_dtype"])


# Mistakes.


def edit(folder, change):
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=1), r"recording: got format 1 in .*, must be 2; record it again"),
        (lambda m: m.pop("format"), r"recording: got format None in .*, must be 2"),
        (lambda m: m.pop("driver"), r"recording: .* has no driver"),
        (
            lambda m: m["entries"][0].update(schedule="wgma.k16.sm90"),
            "entry bf16.fp32: instruction: got 'wgma",
        ),
        (lambda m: m["entries"][0].update(schedule="fma/x9"), "recording entry bf16.fp32: schedule part: got 'x9'"),
        (lambda m: m["entries"][0].update(contract="groupd"), "recording entry bf16.fp32: contract: got 'groupd'"),
        (
            lambda m: m["entries"][0].update(kind="cases"),
            "entry bf16.fp32: kind: got 'cases', .* mean 'case'",
        ),
        (lambda m: m["entries"][0].update(case="x/y"), "recording entry bf16.fp32: case: got 2 fields"),
        (lambda m: m["entries"][0].update(store="bf16"), r"entry bf16.fp32: out is torch.float32, must be bf16"),
        (lambda m: m["entries"][0].update(name="other"), r"recording entry other: got tensors \[\], must be out"),
        (lambda m: m["entries"][0].update(colour="red"), r"recording: .* has wrong fields \(entries.0.colour"),
    ],
)
def test_a_manifest_that_is_wrong_is_one_clear_line(recorded, change, message):
    edit(recorded, change)
    with pytest.raises(ValueError, match=message) as caught:
        read_recording(recorded)
    assert "\n" not in str(caught.value)


def test_damage_is_one_clear_line(recorded, tmp_path):
    with pytest.raises(ValueError, match=r"recording: found no manifest.json in .*nowhere"):
        read_recording(tmp_path / "nowhere")
    data = (recorded / "gemm.safetensors.xz").read_bytes()
    (recorded / "gemm.safetensors.xz").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"gemm.safetensors.xz is missing or damaged"):
        read_recording(recorded)
    (recorded / "gemm.safetensors.xz").unlink()
    with pytest.raises(ValueError, match=r"gemm.safetensors.xz is missing or damaged"):
        read_recording(recorded)
    (recorded / MANIFEST).write_text('{"format": 2')
    with pytest.raises(ValueError, match=r"manifest.json is not JSON"):
        read_recording(recorded)


def test_writing_checks_and_leaves_no_half(recorded, monkeypatch):
    found = read_recording(recorded)
    entries, tensors = list(found.entries), found.tensors
    with pytest.raises(ValueError, match="recording header: got no gpu, must have all of"):
        write_recording(recorded, {**HERE, "gpu": ""}, entries, tensors)
    with pytest.raises(ValueError, match="got a name twice"):
        write_recording(recorded, HERE, [entries[0], entries[0]], tensors)
    with pytest.raises(ValueError, match=r"got tensors \['a'\], must be out"):
        write_recording(recorded, HERE, entries[:1], {entries[0].name: {"a": torch.ones(1)}})
    before = {p.name: p.read_bytes() for p in recorded.iterdir()}

    def broken(handle):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_recording(recorded, HERE, entries, tensors)
    assert {p.name: p.read_bytes() for p in recorded.iterdir()} == before


def test_a_schedule_that_does_not_fit_an_entry():
    found = entry_of("bf16", "fp32")
    out = {"out": torch.zeros(16, 16)}
    with pytest.raises(ValueError, match=r"schedule: covers 128 inputs .*, must cover K=256"):
        replay(found, out, "wgmma.k16.sm90/t64/n2")
    with pytest.raises(ValueError, match=r"recording entry bf16.fp32: out has shape \(2, 2\), must be \(16, 16\)"):
        replay(found, {"out": torch.zeros(2, 2)})
    dots = Entry("d", "dots", "mma", "wgmma.k16.sm90/s2")
    parts = {name: torch.zeros(1, 2, 2) for name in ("acc", "out")}
    with pytest.raises(ValueError, match=r"start: got one with schedule wgmma.k16.sm90/s2, must be None unless tiles"):
        replay(dots, {**parts, "a": torch.zeros(1, 2, 64).bfloat16(), "w": torch.zeros(1, 2, 64).bfloat16()})
    silu = replace(dots, kind="case", case="silu_and_mul/T2-I4/bf16/-/-/normal/s1", contract="grouped")
    with pytest.raises(ValueError, match=r"replay: got a case of silu_and_mul, must be moe_unpermute, int4_linear"):
        replay(silu, parts)
