"""Kernels of others: what they returned once is legal under their contract alone; absent ones are skipped."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from moeracle.clients import CLIENTS
from moeracle.clients.packages import absent, file_of, package_folder, triton_functions
from moeracle.properties.cases.case import Case
from moeracle.ref.contracts.contract import contract
from moeracle.ref.contracts.presets import JUDGED, KNOWN
from moeracle.tensors.judge import judge_problem
from moeracle.tensors.saved import load

ROOT = Path(__file__).resolve().parents[2]
RECORDED = sorted((ROOT / "fixtures/clients").glob("*.safetensors"))
# A contract that each recording breaks, by how the client rounds; routers round nothing that a contract names.
OTHERS = {
    "fused_moe_kernel_gptq_awq": "gptq_awq,weight=exact",
    "cpu_fused_moe": "vllm@0.33:cpu_fused_moe,weight=cast,store_rounding=rne,silu=rounded,stores=h+a+y+out",
    "fused_moe": "et_batched",
    "fused_moe_batched_gemm": "et_vecmat",
    "experts": "grouped",
    "awq_gemm": "grouped",
    "gptq_gemm": "wvsplitk,v1_zeros=plain",
    "marlin_gemm": "vllm@0.33:marlin,bias=sum",
    "moe_wna16_gemm": "gptq_awq",
}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_what_a_client_returned_is_legal_under_its_contract_alone(path: Path) -> None:
    problem, outputs, rules, name = load(path)
    verdict = judge_problem(problem, outputs, rules, name=name)
    assert verdict.ok, verdict.text()
    if name in CLIENTS:
        assert rules.name == CLIENTS[name].contract
        assert problem.case.op == CLIENTS[name].op
    kind = name.rpartition(".")[2]
    if kind == "router":  # nothing to round: an expert that is taken for its neighbour
        outputs["ids"] = outputs["ids"] ^ 1
        assert judge_problem(problem, outputs, rules, explain=False).status == "illegal"
        return
    other = judge_problem(problem, outputs, contract(OTHERS[kind]), explain=False)
    assert other.status == "illegal"


def test_every_client_that_a_cpu_runs_is_recorded() -> None:
    recorded = {path.name.rpartition(".")[0].rpartition(".")[0] for path in RECORDED}
    assert recorded >= {
        "vllm.fused_moe_kernel_gptq_awq", "vllm.cpu_fused_moe", "sglang.fused_moe_kernel_gptq_awq",
        "executorch.fused_moe", "executorch.fused_moe_batched_gemm",
    }  # fmt: skip
    assert sum(name.endswith(".experts") for name in recorded) == 5
    assert sum(name.endswith(".router") for name in recorded) == 5


@pytest.mark.parametrize("name", ["vllm", "sglang", "executorch", "transformers", "aiter"])
def test_a_client_that_is_absent_is_skipped_with_the_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"MOERACLE_{name.upper()}", "/nowhere")
    monkeypatch.setitem(sys.modules, name, None)
    from moeracle.target.load import load_target

    kernels = load_target(f"moeracle.clients.{name}").kernels
    import_module(f"moeracle.clients.{name}")
    case = Case.parse("padded_gemm/T5-E4-k2-N48-K64-G32-B16/bf16/nibble_pairs-sym/zipf1/normal/s1")
    layer = Case.parse("moe_w4a16/T5-E4-k2-H64-I32-G32/bf16/nibble_pairs-sym/zipf1/normal/s3")
    reasons = [k.why_not(c) for k in kernels for c in (case, layer) if k.op == c.op]
    assert reasons
    assert all(f"{name} is not installed" in str(reason) for reason in reasons)


def test_every_case_that_compiled_ops_are_judged_on_is_one_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU no case is skipped; here only the GPU and the libraries are missing."""
    from moeracle.clients import measure, vllm, vllm_gemms
    from moeracle.target.load import load_target

    found = [k for name in ("vllm", "vllm_gemms") for k in load_target(f"moeracle.clients.{name}").kernels]
    assert {k.name for k in load_target("moeracle.clients.vllm_gemms").kernels} <= set(measure.ASKED)
    takes = {"vllm.awq_gemm": vllm_gemms.awq_supports, "vllm.gptq_gemm": vllm_gemms.gptq_supports,
             "vllm.marlin_gemm": vllm_gemms.linear_supports, "vllm.marlin_gemm.awq": vllm_gemms.linear_supports,
             "vllm.moe_wna16_gemm": vllm_gemms.wna16_supports, "vllm.fused_marlin_moe": vllm_gemms.layer_supports,
             "vllm.moe_wna16_marlin_gemm": vllm_gemms.routed_supports}  # fmt: skip
    for name, (_, texts, others) in measure.ASKED.items():
        kernel = next(k for k in found if k.name == name)
        assert len(texts) > 0
        for text in texts:
            case = Case.parse(text)
            kernel.contract_for(case)
            assert name not in takes or takes[name](case) is True, text
        for other in others:
            contract(other)
    monkeypatch.setattr(vllm, "ON_GPU", False)
    assert measure.moe_sums()[0]["status"] == "skipped"
    assert measure.guarded("a case", lambda: 1 / 0)["status"] == "raised"  # type: ignore[arg-type,return-value]


WHEEL = {  # of vLLM 0.33's CUDA wheel
    "_C_stable_libtorch.abi3.so": "e634b80e72078e964f8bd2ac541d66f2a900920773cf993544609612190bd9a9",
    "_moe_C_stable_libtorch.abi3.so": "99682a5814b3081de7e4e95cc2c1cf1ba8f6139514ac4c5563dbad16c229a4c0",
}


def test_no_presets_evidence_is_older_than_the_kernel_that_it_names() -> None:
    """A preset's version is among those its evidence names, and what was judged on a GPU is that release's library."""
    folder = ROOT / "fixtures/hardware/h200/clients"
    records = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert records
    assert all(one["libraries"] == WHEEL for one in records.values())
    proven = {text.partition(",")[0] for one in records.values() for text in one["contracts"]}
    versioned = 0
    for name, known in KNOWN.items():
        release = re.fullmatch(r"\w+@(\d+\.\d+):\w+", name)
        if release is None:
            continue
        versioned += 1
        said = re.findall(r"\b(\d+\.\d+)'s", known.evidence)
        assert max(tuple(map(int, v.split("."))) for v in said) >= tuple(map(int, release[1].split("."))), name
        if known.evidence.startswith(JUDGED):
            assert name in proven or ("moe_sum" in known.evidence and "vllm.moe_sum" in records), name
    assert versioned >= 8
    for name, client in CLIENTS.items():
        if "@" in client.contract and name != "vllm.cpu_fused_moe":  # whose 0.33 was judged, and 0.32 is recorded
            named, read = (re.findall(r"\b\d+\.\d+", text)[0] for text in (client.contract, client.source))
            assert float(read) >= float(named), name


def test_functions_are_read_out_of_a_file_whose_imports_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm").mkdir()
    text = "import nowhere\n\n\n@staticmethod\ndef first():\n    return 1\n\n\ndef second():\n    return first() + 1\n"
    (tmp_path / "vllm" / "fused.py").write_text(text)
    monkeypatch.setenv("MOERACLE_VLLM", str(tmp_path))
    path = file_of("vllm", "fused.py")
    assert path == tmp_path / "vllm" / "fused.py"
    pytest.importorskip("triton")
    assert triton_functions(path, ("first", "second")).second() == 2
    with pytest.raises(ValueError, match="has no function third"):
        triton_functions(path, ("third",))
    assert absent("vllm", "other.py") == "vllm has no other.py"
    assert package_folder("no_such_package") is None


def test_what_compiled_ops_were_judged_to_be() -> None:
    """The record of one H200: legal with narrow legal sets, and which contract refuses the same outputs."""
    folder = ROOT / "fixtures/hardware/h200/clients"
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert set(found) >= {"vllm.awq_gemm", "vllm.gptq_gemm", "vllm.marlin_gemm", "vllm.moe_wna16_gemm", "vllm.moe_sum"}
    for name, one in found.items():
        assert one["gpu"].startswith("NVIDIA H200"), name
        assert one["median_width_ulp"] < 2, name
        legal = [case for case in one["cases"] if case["status"] == "legal"]
        assert legal, name
        assert all(stage["illegal"] == 0 for case in legal for stage in case["stages"])
        assert [case["case"] for case in one["cases"] if case["status"] != "legal"] == [], name
    runs = "vllm@0.33:awq_gemm,parts=8/up32/dtype"
    assert {case["under"][runs]["status"] for case in found["vllm.awq_gemm"]["cases"]} == {"legal", "illegal"}
    of_bias = {c["under"]["vllm@0.33:marlin,bias=stored"]["status"] for c in found["vllm.marlin_gemm"]["cases"]}
    assert of_bias == {"legal", "illegal"}
    of_v1 = [c["under"]["vllm@0.33:gptq_gemm,v1_zeros=modulo"]["status"] for c in found["vllm.gptq_gemm"]["cases"]]
    assert of_v1 == ["illegal"] * 5 + ["legal"] * 10  # v1, then v2 and symmetric
    inferred = {path.stem: json.loads(path.read_text())["kernels"][0] for path in folder.glob("inferred/*.json")}
    assert set(inferred) >= {"vllm.awq_gemm", "vllm.gptq_gemm", "vllm.marlin_gemm", "vllm.moe_wna16_marlin_gemm"}
    of_w8 = {case["under"]["vllm@0.33:marlin"]["status"] for case in found["vllm.marlin_gemm.w8"]["cases"]}
    assert of_w8 == {"legal", "illegal"}  # with several groups, with one
    for name, one in inferred.items():
        assert one["explained"], name
        preset = CLIENTS[name].contract.partition(",")[0]
        # A GEMM without a bias, or a layer, does not show what sets the newer preset apart.
        assert one["nearest"] in (preset, preset.rpartition(":")[2]), name
        assert contract(one["contract"]).accumulator != "dtype", name
