"""What an H200 stored with the nvcc build, the CPU emulation stores too: every bit, full-size layers among them.

Recorded on one NVIDIA H200: h200/hip.json by `PYTHONPATH=src python3 hip.py --gpu-only`,
hip_check.json by `moeracle check moeracle.kernels.hip --device cuda --json hip_check.json`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from moeracle.kernels.hip.registry import REGISTRY
from moeracle.properties.cases.case import Case
from on_hardware import hip

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "fixtures" / "hardware" / "h200"
RUNS = ("hip.json", "hip_check.json")
LARGEST = 100_000  # rows of a weight here: the whole lm_head of 248320 takes 16 s and a gigabyte, and was compared once


RECORDED = {name: json.loads((FOLDER / name).read_text()) for name in RUNS}


def cases_of(name: str) -> dict[str, list[tuple[str, str]]]:
    """Return {op: [(kernel, case), …]} of a run, without what is too large here."""
    found = defaultdict(list)
    for kernel, case in dict.fromkeys(key[:2] for key in hip.recorded(RECORDED[name])):
        if getattr(Case.parse(case), "V", 0) < LARGEST:
            found[Case.parse(case).op].append((kernel, case))
    return found


@pytest.mark.parametrize("name", RUNS)
def test_everything_was_legal_on_the_gpu(name):
    run = RECORDED[name]
    assert run["environment"]["gpus"] == ["NVIDIA H200"]
    assert run["exit_code"] == 0
    assert {kernel["kernel"] for kernel in run["kernels"]} == {entry.name for entry in REGISTRY}
    for kernel in run["kernels"]:
        assert (kernel["device"], kernel["status"], kernel["illegal"]) == ("cuda", "legal", 0), kernel["kernel"]
        assert kernel["judged"] > 0


def test_the_layers_were_full_size():
    layers = [Case.parse(case) for case in hip.MOE]
    assert {(c.H, c.I, c.E, c.k) for c in layers} == {(2048, 512, 256, 8), (2048, 768, 128, 8)}
    judged = {c["case"] for kernel in RECORDED["hip.json"]["kernels"] for c in kernel["cases"] if c.get("bits")}
    assert judged >= {*hip.MOE, *hip.PADDED, *hip.LINEAR, *hip.LM_HEAD}


@pytest.mark.parametrize("op", cases_of("hip.json"))
def test_full_size_layers_have_the_bits_of_the_gpu(op):
    cases = cases_of("hip.json")[op]
    if op == "moe_w4a16":  # the first and the last, one of each model and dtype: each takes seconds
        kept = hip.MOE[::6]
        cases = [key for key in cases if key[1] in kept]
    expected = {key: bits for key, bits in hip.recorded(RECORDED["hip.json"]).items() if key[:2] in cases}
    equal, differ = hip.compare(expected, hip.emulated(cases))
    assert differ == []
    assert equal == len(expected) > 0


@pytest.mark.parametrize("op", cases_of("hip_check.json"))
def test_small_cases_have_the_bits_of_the_gpu(op):
    cases = cases_of("hip_check.json")[op][::8]
    expected = {key: bits for key, bits in hip.recorded(RECORDED["hip_check.json"]).items() if key[:2] in cases}
    nan = {key for key in expected if "/subnormal/" in key[1]}  # may hold NaN, whose payload is each machine's own
    assert hip.compare({k: v for k, v in expected.items() if k not in nan}, hip.emulated(cases))[1] == []


def test_another_order_of_threads_has_the_same_bits():
    rows = lambda key: Case.parse(key[1]).sizes.get("T", 0)
    some = [min(cases, key=rows) for cases in cases_of("hip_check.json").values()]
    expected = hip.recorded(RECORDED["hip_check.json"])
    found = hip.emulated(some, backward=True)
    assert hip.compare({key: expected[key] for key in found}, found)[1] == []


def test_other_bits_would_be_seen():
    key = ("k", "c", "out")
    assert hip.compare({key: "a"}, {key: "b"}) == (0, ["k c out"])
    assert hip.compare({key: "a", ("k", "d", "out"): "x"}, {key: "a"}) == (1, [])


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), ("{", "cannot be read"), ("{}", "is not what")]
)
def test_a_file_to_compare_with_that_is_none_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    path = tmp_path / "hip.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr("sys.argv", ["hip.py", "--against", str(path)])
    with pytest.raises(SystemExit, match="2"):
        hip.main()
    assert f"error: --against: {path}: {said}" in capsys.readouterr().err
