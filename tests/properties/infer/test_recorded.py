"""Inference again from what kernels answered on an H200, without a GPU; and recordings that are not right."""

import dataclasses
import json
from pathlib import Path

import pytest

from moeracle.properties.infer import infer, infer_recorded
from moeracle.properties.simulate import simulated_kernel

FOLDER = Path(__file__).parents[3] / "fixtures" / "h200" / "infer"
HOPPER, PERMUTED = "wgmma.k16.sm90", "wgmma.k16.sm90/t32/bits1.4.8.16.2"
DECODE = "fma/t256/tree32-sequential.8-pairwise/combine=sequential/bits64.128.1.2.4.8.32.16"
# What the kernels of kernels/schedules.py are, read off their outputs alone.
SCHEDULES = {
    "grouped_gemm-dtypebf16-k2048": HOPPER,
    "grouped_gemm-dtypebf16-k512-rows16": HOPPER,
    "grouped_gemm-dtypefp16-k512": HOPPER,
    "grouped_gemm-dtypebf16-k512-rows16-zerordna": HOPPER,
    "grouped_gemm-dtypebf16-k512-rows16-zerounpacked": PERMUTED,
    "grouped_gemm-dtypefp16-k512-rows16-zerounpacked": PERMUTED,
    "grouped_gemm-dtypebf16-k512-rows256-zerounpacked": HOPPER,
    "padded_gemm-dtypebf16-k512": HOPPER,
    "int4_linear.dot-dtypebf16-k512": HOPPER,
    "int4_linear.dot-dtypebf16-k512-rows16-zerounpacked": PERMUTED,
    "moe_w4a16.grouped-dtypebf16-k256": HOPPER,
    "moe_w4a16.grouped-dtypebf16-k256-rows16-zerounpacked": PERMUTED,
    "moe_w4a16.padded-dtypefp16-k256": HOPPER,
    "moe_w4a16.decode-dtypebf16-k512": DECODE,
    "int8_lm_head.rows-dtypebf16-k512": None,
}


def of(name):
    return FOLDER / f"{name}.json"


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_contract_of_an_in_tree_kernel_is_found_again(name):
    found = infer_recorded(of(name))
    rules = found.contract
    assert not found.why_not
    assert (str(rules.schedule) if rules.schedule else None) == SCHEDULES[name]
    int8 = found.op == "int8_lm_head"
    assert (rules.weight, rules.store_rounding, rules.deterministic) == ("post" if int8 else "cast", "rne", True)
    assert rules.accumulator == ("hopper" if rules.schedule and rules.schedule.how.core else "fp32")
    if found.op == "moe_w4a16":
        layer = (rules.stores, rules.silu, rules.router_weight, rules.topk_sum)
        assert layer == (("h", "a", "y", "out"), "rounded", "unpermute", "fp32")
    if SCHEDULES[name] in (HOPPER, PERMUTED):
        assert (found.facts["step_bits"], found.facts["exponents"]) == (25, "operands")


def test_every_recording_says_where_it_is_from():
    files = sorted(FOLDER.glob("*.json"))
    assert len(files) >= 25
    for path in files:
        header = json.loads(path.read_text())
        assert header["format"] == 1
        assert header["capability"] == "9.0"
        assert "H200" in header["gpu"]
        assert all(header[name] for name in ("driver", "torch", "triton", "command", "site", "op", "kernel"))


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
    assert list(again.findings) == found.findings
    assert not list(tmp_path.glob(".*"))


def test_another_answer_is_another_contract(tmp_path):
    """The recording is not a formality: other bits, and what was found is not found."""
    kernel = simulated_kernel("grouped_gemm", "grouped,accumulator=fp32", "pairwise")
    right = kernel.fn
    rounded = dataclasses.replace(kernel, fn=lambda *args: (right(*args).float() * 1.01).bfloat16())
    assert infer(rounded, k=64).text != infer(kernel, k=64).text
