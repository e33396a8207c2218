"""Vectors: written and read; what does not fit is one line; a changed bit is seen; what hardware gave is predicted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moeracle.properties.recordings.vectors import (
    MANIFEST,
    VectorSet,
    model_of_set,
    read_vectors,
    replay_vectors,
    write_vectors,
)
from moeracle.ref.bitmodels.models import MODELS, predict

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "hardware_vectors"
RECORDED = ROOT / "fixtures" / "hardware" / "h200" / "vectors"
needs_shared = pytest.mark.skipif(not (SHARED / MANIFEST).is_file(), reason="no ../shared/hardware_vectors here")
needs_recorded = pytest.mark.skipif(not (RECORDED / MANIFEST).is_file(), reason="no vectors of an H200 recorded yet")


def made(name="H100.fp16.fp16", by="mma.m16n8k16.f16.sm90", dtype=torch.float16, K=16, **fields):
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(20, K, generator=g).to(dtype) for _ in "ab")
    out = "fp16" if MODELS[by].core.form == "fp16" else "fp32"
    c = torch.randn(20, generator=g).to(torch.float16 if out == "fp16" else torch.float32)
    words = {"device": "NVIDIA H100 (sm_90)", "instruction": "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"}
    operands = MODELS[by].takes[0]
    return VectorSet(name, operands, out, a, b, c, predict(by, a, b, c), **{**words, **fields})


def test_a_folder_is_read_as_it_was_written(tmp_path):
    fp8 = made("e4m3", "wgmma.k32.fp8.sm90", torch.float8_e4m3fn, 32, instruction="wgmma", model="wgmma.k32.fp8.sm90")
    sets = [made(), fp8, replace(fp8, name="zero", c=None)]
    write_vectors(tmp_path, sets, {"gpu": "none"})
    found = read_vectors(tmp_path)
    assert [repr(s) for s in found] == [repr(s) for s in sets]
    for one, other in zip(found, sets, strict=True):
        for part in ("a", "b", "c", "d"):
            x, y = getattr(one, part), getattr(other, part)
            assert (x is None) == (y is None)
            assert x is None or torch.equal(x.double(), y.double())
    assert [replay_vectors(s).ok for s in found[:2]] == [True, True]
    assert not replay_vectors(found[2]).ok
    assert model_of_set(found[0]) == "mma.m16n8k16.f16.sm90"
    with pytest.raises(ValueError, match="got set e4m3 twice"):
        write_vectors(tmp_path, [fp8, fp8], {})


def test_one_changed_bit_is_seen_and_named():
    one = made()
    d = one.d.clone()
    d.view(torch.int16)[7] ^= 1
    seen = replay_vectors(replace(one, d=d))
    assert (seen.equal, seen.total, seen.ok) == (19, 20, False)
    recorded, predicted = (f"{x.view(torch.int16)[7].item() & 0xFFFF:04x}" for x in (d, one.d))
    assert seen.first.startswith(f"row 7: recorded {recorded}, predicted {predicted}, of ")
    assert seen.first.endswith(" + 12 more")
    with pytest.raises(
        ValueError, match=r"model: got mma.m16n8k16.sm90 for set .*, must be one whose results are fp16"
    ):
        replay_vectors(one, "mma.m16n8k16.sm90")


def test_an_fp32_accumulator_is_rounded_where_the_instruction_takes_fp16(tmp_path):
    write_vectors(tmp_path, [made()], {})
    tensors = {}
    for file in tmp_path.glob("*.xz"):
        import lzma

        from safetensors.torch import load

        tensors |= load(lzma.decompress(file.read_bytes()))
        file.unlink()
    tensors["H100.fp16.fp16.c"] = tensors["H100.fp16.fp16.c"].float() * (1 + 2.0**-13)
    save_file(tensors, tmp_path / "plain.safetensors")
    (one,) = read_vectors(tmp_path)
    assert replay_vectors(one).ok


def broken(**fields):
    def edit(manifest):
        manifest["sets"]["H100.fp16.fp16"].update(fields)

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda m: m.update(format=2), r"got format 2 in .*, must be 1"),
        (lambda m: m.pop("sets"), r"manifest.json has no sets, must have some"),
        (lambda m: m["sets"].update({"H100.fp16.fp16": 3}), r"set H100.fp16.fp16 is 3, must be fields by name"),
        (broken(n="20"), r"has n='20', must be a number"),
        (broken(n=21), r"takes rows 0 to 21 of 20, must lie within them"),
        (broken(first=-1), r"has first=-1, n=20, must be 0 or more"),
        (broken(k=8), r"inputs.H100.fp16.fp16.a is torch.float16 \[20, 16\], must be torch.float16 \['rows', 8\]"),
        (broken(**{"in": "fp17"}), r"in of set H100.fp16.fp16: got 'fp17', .* did you mean 'fp16'"),
        (broken(**{"in": "bf16"}), r"a is torch.float16 \[20, 16\], must be torch.bfloat16"),
        (broken(out="fp32"), r"H100.fp16.fp16.d is torch.float16 \[20\], must be torch.float32 \[20\]"),
        (broken(c="nothing"), r"has no tensor nothing"),
        (broken(model="mma.m16n8k16.sm91"), r"model of set H100.fp16.fp16: got 'mma.m16n8k16.sm91'"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(tmp_path, edit, said):
    write_vectors(tmp_path, [made()], {})
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    edit(manifest)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=said) as caught:
        read_vectors(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"found no manifest.json in .*, must be a folder of vectors"):
        read_vectors(tmp_path)
    write_vectors(tmp_path, [made()], {})
    whole = next(tmp_path.glob("*.xz"))
    whole.write_bytes(whole.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"vectors.safetensors.xz cannot be read"):
        read_vectors(tmp_path)
    whole.unlink()
    (tmp_path / "x.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match=r"x.safetensors cannot be read"):
        read_vectors(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match=r"is not JSON"):
        read_vectors(tmp_path)


# What hardware gave.


@needs_shared
def test_other_laboratories_results_are_predicted_and_the_table_says_which():
    replayed = set()
    for one in read_vectors(SHARED):
        seen = replay_vectors(one)
        assert seen.ok, f"{one.name}: {seen.equal} of {seen.total} by {seen.model}; {seen.first}"
        replayed.add(seen.model)
    assert replayed == {name for name, how in MODELS.items() if "replayed" in how.evidence}


@needs_shared
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("A100.fp16.fp32", {"bits": 25}), ("A100.tf32.fp32", {"products": 2}), ("H100.tf32.fp32", {"bits": 24}),
        ("B200.fp16.fp16", {"store": "rtz"}), ("Ada.e5m2.fp32", {"products": 32}), ("Ada.e4m3.fp16", {"bits": 14}),
        ("H100.e4m3.fp32", {"form": "fp32"}), ("V100.fp16.fp32", {"exponents": "product"}),
        ("H100.e5m2.fp16", {"form": "fp32"}), ("B200.e4m3.fp32", {"late": False}),
    ],
)  # fmt: skip
def test_wrong_models_do_not_predict_them(name, changes):
    one = next(s for s in read_vectors(SHARED) if s.name == name)
    how = MODELS[model_of_set(one)]
    late = changes.get("late", how.late)
    core = replace(how.core, **{k: v for k, v in changes.items() if k != "late"})
    got = predict(replace(how, core=core, late=late), one.a, one.b, one.c)
    assert (got.double() == one.d.double()).double().mean() < 0.99


@needs_recorded
def test_what_an_h200_gave_is_predicted_and_the_table_says_which():
    recorded = set()
    for one in read_vectors(RECORDED):
        seen = replay_vectors(one)
        assert seen.ok, f"{one.name}: {seen.equal} of {seen.total} by {seen.model}; {seen.first}"
        recorded.add(seen.model)
    others = {"mma.m16n8k16.sm90", "mma.m16n8k8.sm90"}  # in h200/recordings
    assert recorded | others == {name for name, how in MODELS.items() if "measured" in how.evidence}


@needs_shared
def test_the_files_are_the_ones_that_came(tmp_path):
    """A copy with one result changed is not predicted: nothing is read from elsewhere."""
    tensors = load_file(SHARED / "nvidia.safetensors")
    tensors["A100.bf16.fp32.d"].view(torch.int32)[3999] += 1
    save_file(tensors, tmp_path / "nvidia.safetensors")
    (tmp_path / MANIFEST).write_text((SHARED / MANIFEST).read_text())
    one = read_vectors(tmp_path)[0]
    assert replay_vectors(one).equal == 3999
