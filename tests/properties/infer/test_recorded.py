"""Inference again from what kernels answered on an H200, without a GPU; and recordings that are not right."""

import base64
import dataclasses
import json
import lzma
from pathlib import Path

import pytest

from moeracle.kernels.registry import REGISTRY
from moeracle.properties.cases.record import record_of
from moeracle.properties.infer import infer, infer_recorded
from moeracle.properties.simulate import simulated_kernel

FOLDER = Path(__file__).parents[3] / "fixtures" / "hardware" / "h200" / "infer"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
HOPPER, PERMUTED = "wgmma.k16.sm90", "wgmma.k16.sm90/t32/bits1.4.8.16.2"
DECODE = "fma/t256/tree32-sequential.8-pairwise/combine=sequential/bits64.128.1.2.4.8.32.16"
ROWS = "fma/t512/tree32-sequential.16-pairwise/bits128.256.1.2.4.16.8.64.32/held1"
# What kernels are, read off their outputs alone: GEMM1 (or the only one), and GEMM2 where it is another.
SCHEDULES = {
    "grouped_gemm-dtypebf16-k2048": HOPPER,
    "grouped_gemm-dtypebf16-k512-rows16": HOPPER,
    "grouped_gemm-dtypefp16-k512": HOPPER,
    "grouped_gemm-dtypebf16-k512-rows16-zerordna": HOPPER,
    "grouped_gemm-dtypebf16-k512-rows16-zerounpacked": PERMUTED,
    "grouped_gemm-dtypefp16-k512-rows16-zerounpacked": PERMUTED,
    "grouped_gemm-dtypebf16-k512-rows256-zerounpacked": HOPPER,
    "grouped_gemm.hopper-dtypebf16-k512-rows16": HOPPER,
    "padded_gemm-dtypebf16-k512": HOPPER,
    "padded_gemm.hopper-dtypebf16-k512-rows256": HOPPER,
    "padded_gemm.hopper_split-dtypebf16-k512-rows16": f"{HOPPER}/s4/join=pairwise",
    "int4_linear.dot-dtypebf16-k512": HOPPER,
    "int4_linear.dot-dtypebf16-k512-rows16-zerounpacked": PERMUTED,
    "int4_linear.rows-dtypebf16-k512": ROWS,
}


def of(name):
    return FOLDER / f"{name}.json"


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_of_every_recorded_kernel_is_found_again(name):
    found = infer_recorded(of(name))
    rules, header = found.contract, json.loads(of(name).read_text())
    assert not found.why_not
    assert rules.deterministic
    assert rules.store_rounding == "rne"
    if name in SCHEDULES:
        assert str(rules.schedule) == SCHEDULES[name]
    # What the kernel declares predicts every bit, of each sum for which it declares an order.
    assert all(row[2] == "predicts every bit" for row in found.declared), found.declared
    if found.op in ("silu_and_mul", "moe_unpermute", "tiny_dot"):
        return
    assert rules.weight == ("post" if found.op == "int8_lm_head" else "cast")
    assert found.here, "no schedule predicts the bits at the sizes that were probed"
    if found.second is not None:
        assert found.second.here
        assert (rules.silu, rules.gate, rules.router_weight, rules.topk_sum) == (
            "rounded",
            "fused",
            "unpermute",
            "fp32",
        )
        assert rules.stores == ("h", "a", "y", "out")
    assert header["site"] == found.site


def test_every_recording_says_where_it_is_from():
    for path in FOLDER.glob("*.json"):
        header = json.loads(path.read_text())
        assert header["format"] == 1
        assert header["capability"] == "9.0"
        assert "H200" in header["gpu"]
        assert all(header[name] for name in ("driver", "torch", "triton", "command", "site", "op", "kernel"))


@pytest.mark.parametrize("name", sorted({entry.name for entry in REGISTRY if record_of(entry.op).inferred}))
def test_every_kernel_here_with_anything_to_infer_has_been_asked(name):
    recorded = any(path.startswith(f"{name}-") for path in NAMES)
    assert recorded, f"record it on a GPU: tests/on_hardware/infer.py {name}"


def changed(tmp_path, edit):
    content = json.loads(of("grouped_gemm-dtypebf16-k512-rows16").read_text())
    edit(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c.update(format=2), r"got format 2 in .*, must be 1"),
        (lambda c: c.pop("calls"), "has no calls"),
        (lambda c: c.update(outputs="AAAA"), "outputs are damaged"),
        (lambda c: c["calls"].pop(), "must|holds|record it again"),
        (lambda c: c["calls"][0].__setitem__(0, "0" * 16), "call 0 has another digest"),
        (lambda c: c.update(site="grouped_gemm/nonsense"), "case"),
    ],
)
def test_a_recording_that_does_not_fit_is_one_line(tmp_path, edit, said):
    with pytest.raises(ValueError, match=said) as error:
        infer_recorded(changed(tmp_path, edit))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("at", [-1, -4])
def test_one_bit_that_another_order_left_is_seen(tmp_path, at):
    """The recording is not a formality: one bit of one answer flips, and the schedule is not found, or not asked on."""
    content = json.loads(of("grouped_gemm-dtypebf16-k512").read_text())
    raw = bytearray(lzma.decompress(base64.b64decode(content["outputs"])))
    _, _, start = content["calls"][at][1]["out"]
    raw[start] ^= 1
    content["outputs"] = base64.b64encode(lzma.compress(bytes(raw))).decode()
    path = tmp_path / "flipped.json"
    path.write_text(json.dumps(content))
    if at == -1:  # the last question: at another G
        found = infer_recorded(path)
        assert found.contract.schedule is None
        assert any("none does at G = 64" in note for note in found.notes)
    else:  # at these sizes: then no other ones would have been asked about
        found = infer_recorded(path)
        assert (found.contract.schedule, found.here) == (None, [])


def test_a_declaration_that_is_not_so_is_seen(tmp_path):
    content = json.loads(of("moe_w4a16.fused-dtypebf16-k256").read_text())
    content["declared"] = {
        site: text.replace("wgmma.k16.sm90", "mma.m16n8k8.sm90").replace("sum_schedule=fma", "sum_schedule=mul_add")
        for site, text in content["declared"].items()
    }
    path = tmp_path / "declared.json"
    path.write_text(json.dumps(content))
    assert [row[2] for row in infer_recorded(path).declared] == ["does not predict the bits"] * 3


def test_no_file_and_no_json_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="found no file"):
        infer_recorded(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        infer_recorded(tmp_path / "bad.json")


@pytest.mark.parametrize("op", ["grouped_gemm", "moe_w4a16"])
def test_what_is_recorded_is_what_is_replayed(tmp_path, op):
    kernel = simulated_kernel(op, "gptq_awq,accumulator=fp32", "pairwise")
    path = tmp_path / "one.json"

    def keep(calls, found):
        calls.save(path, {"site": found_site, "gpu": "none", "capability": ""})

    from moeracle.properties.infer.drive import find_site

    found_site = str(find_site(kernel, k=64).case)
    found = infer(kernel, k=64, record=keep)
    again = infer_recorded(path)
    assert (again.text, again.order, again.picture) == (found.text, found.order, found.picture)
    # A promise is measured on cases, and a recording holds probes.
    assert list(again.findings) == [finding for finding in found.findings if finding.field != "batch_invariant"]
    assert not list(tmp_path.glob(".*"))


def test_another_answer_is_another_contract(tmp_path):
    """The recording is not a formality: other bits, and what was found is not found."""
    kernel = simulated_kernel("grouped_gemm", "grouped,accumulator=fp32", "pairwise")
    right = kernel.fn
    rounded = dataclasses.replace(kernel, fn=lambda *args: (right(*args).float() * 1.01).bfloat16())
    assert infer(rounded, k=64).text != infer(kernel, k=64).text
