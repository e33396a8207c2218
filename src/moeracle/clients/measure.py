"""Judge vLLM's compiled ops on a GPU, each in a process of its own: python -m moeracle.clients.measure FOLDER

Writes FOLDER/KERNEL.json: under which contract each case was legal, how wide the legal sets were (median, in ulp; 0:
one legal value), how many elements, and what other contracts say. An op that fails does not stop the others.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from moeracle.files import write_atomically
from moeracle.properties.cases.case import Case
from moeracle.properties.judge import judge
from moeracle.properties.trial.trial import run_trial
from moeracle.ref.contracts.contract import contract, with_schedules
from moeracle.ref.weights.layouts import pack_codes
from moeracle.ref.weights.marlin import pack_marlin
from moeracle.target.load import load_target
from moeracle.tensors.judge import judge_tensors

from .packages import file_of, load_libraries
from .vllm import STABLE, STABLE_MOE

LIMIT = 100  # seconds an op
AT_ONCE = 3
LINEAR, PADDED, LAYER = "int4_linear/T{}-N{}-K{}-G{}", "padded_gemm/T{}-E8-k2-N{}-K{}-G{}-B{}", "moe_w4a16"
HALF = ("bf16", "fp16")
MARLIN_HERE = "vllm@0.33:marlin,accumulator=hopper"  # the same on a Hopper GPU, whose tensor cores are known better
MARLIN8_HERE = "vllm@0.33:marlin_w8,accumulator=hopper"
AWQ = ((1, 128, 256, 32, "normal"), (17, 64, 480, 32, "cancelling"), (5, 256, 1024, 64, "outliers"),
       (16, 128, 2048, 128, "normal"))  # fmt: skip
GPTQ = ((1, 64, 128, 32, "normal"), (9, 64, 256, 64, "normal"), (17, 128, 384, -1, "outliers"),
        (5, 64, 512, 128, "codes16"), (8, 64, 2048, 128, "normal"))  # fmt: skip
MARLIN = ((1, 128, 512, 32, "normal"), (33, 64, 1024, 128, "wide"), (16, 256, 2048, 64, "outliers"),
          (17, 128, 256, -1, "normal"), (5, 64, 2048, -1, "codes16"))  # fmt: skip
ROUTED = ((9, 64, 256, 32, 16, "normal"), (33, 128, 512, 128, 16, "outliers"), (7, 64, 128, 64, 16, "codes16"),
          (4, 64, 2048, 64, 16, "normal"))  # fmt: skip


def _linear(shapes: Any, dtypes: Any, form: str, flag: str = "") -> list[str]:
    return [
        f"{LINEAR.format(*shape[:4])}/{dtype}/{form}/-/{shape[4]}{flag}/s{i}"
        for dtype in dtypes
        for i, shape in enumerate(shapes)
    ]


def _routed(form: str, flag: str = "+weight") -> list[str]:
    return [
        f"{PADDED.format(*shape[:5])}/{dtype}/{form}/zipf1{flag}/{shape[5]}/s{i}"
        for dtype in HALF
        for i, shape in enumerate(ROUTED)
    ]


# Each kernel's cases, and contracts that are narrower, or another kernel's: what each says is written down, too.
ASKED: dict[str, tuple[str, list[str], tuple[str, ...]]] = {
    "vllm.awq_gemm": (
        "vllm_gemms", _linear(AWQ, ("fp16",), "awq-asym"),
        ("vllm@0.33:awq_gemm", "vllm@0.33:awq_gemm,parts=8/up32/dtype", "grouped"),
    ),
    "vllm.gptq_gemm": (
        "vllm_gemms",
        [text for form in ("gptq-v1", "gptq-v2", "gptq-sym") for text in _linear(GPTQ, ("fp16",), form)],
        ("vllm@0.33:gptq_gemm,v1_zeros=modulo", "wvsplitk,accumulator=fp32"),
    ),
    "vllm.marlin_gemm": (
        "vllm_gemms", [*_linear(MARLIN, HALF, "gptq-sym"), *_linear(MARLIN[2:], HALF, "gptq-sym", "+bias")],
        (MARLIN_HERE, "marlin", "vllm@0.33:marlin,bias=sum", "vllm@0.33:marlin,bias=stored",
         "vllm@0.33:marlin,weight=exact"),
    ),
    "vllm.marlin_gemm.awq": (
        "vllm_gemms", _linear(MARLIN, HALF, "awq-asym"), (MARLIN_HERE, "marlin", "vllm@0.33:marlin,weight=exact"),
    ),
    "vllm.moe_wna16_gemm": (
        "vllm_gemms",
        [*_routed("nibble_pairs-sym"), *_routed("nibble_pairs-asym", "")],
        ("moe_wna16", "vllm@0.33:moe_wna16", "gptq_awq"),
    ),
    "vllm.moe_wna16_marlin_gemm": ("vllm_gemms", _routed("gptq-sym"), (MARLIN_HERE, "vllm@0.33:gptq_awq")),
    "vllm.fused_marlin_moe": (
        "vllm_gemms",
        [f"{LAYER}/T{T}-E8-k{k}-H256-I{I}-G{G}/{dtype}/gptq-sym/zipf1/normal/s{k}"
         for dtype in HALF for T, k, I, G in ((33, 2, 128, 32), (5, 4, 64, 64), (17, 8, 128, -1))],
        (MARLIN_HERE, "vllm@0.33:gptq_awq"),
    ),
    "vllm.gptq_gemm.w8": (
        "vllm_gemms",
        [text for form in ("gptq-v1+w8", "gptq-v2+w8", "gptq-sym+w8") for text in _linear(GPTQ[:4], ("fp16",), form)],
        ("vllm@0.33:gptq_gemm", "grouped"),
    ),
    "vllm.marlin_gemm.w8": (
        "vllm_gemms", [*_linear(MARLIN, HALF, "gptq-sym+w8"), *_linear(MARLIN[2:], HALF, "gptq-sym+w8", "+bias")],
        (MARLIN8_HERE, "vllm@0.33:marlin", "vllm@0.33:marlin_w8,bias=sum"),
    ),
    "vllm.moe_wna16_gemm.w8": (
        "vllm_gemms", [*_routed("bytes-sym+w8"), *_routed("bytes-unpacked+w8", "")],
        ("vllm@0.33:moe_wna16", "gptq_awq"),
    ),
    "vllm.moe_wna16_marlin_gemm.w8": (
        "vllm_gemms",
        [*_routed("gptq-sym+w8"),
         *(f"{PADDED.format(9, 64, 256, -1, 16)}/{d}/gptq-sym+w8/zipf1+weight/normal/s4" for d in HALF)],
        (MARLIN8_HERE, "vllm@0.33:marlin", "vllm@0.33:gptq_awq"),
    ),
    "vllm.fused_marlin_moe.w8": (
        "vllm_gemms",
        [f"{LAYER}/T{T}-E8-k{k}-H256-I{I}-G{G}/{dtype}/gptq-sym+w8/zipf1/normal/s{k}"
         for dtype in HALF for T, k, I, G in ((33, 2, 128, 32), (17, 8, 128, -1))],
        (MARLIN8_HERE, "vllm@0.33:marlin", "vllm@0.33:gptq_awq"),
    ),
    "vllm.topk_softmax": (
        "vllm",
        [f"topk_softmax/T65-E{E}-k{k}/{dtype}/-/-{flag}/normal/s1"
         for dtype in (*HALF, "fp32") for E, k, flag in ((8, 2, ""), (128, 8, "+renorm"))],
        (),
    ),
    "vllm.silu_and_mul": ("vllm", [f"silu_and_mul/T65-I256/{d}/-/-/{data}/s1" for d in HALF for data in
                                   ("normal", "allgates")], ("grouped,silu=fp32",)),
    "vllm.awq_dequantize": ("vllm", ["dequantize_int4/N64-K128-G32/fp16/awq-asym/-/normal/s1"], ()),
}  # fmt: skip


def main(folder: str, name: str = "") -> int:
    """Judge every op in a process of its own, or one here; return 1 if any is not legal."""
    place = Path(folder)
    if name:
        write_atomically(place / f"{name}.json", json.dumps(judged(name), indent=1) + "\n")
        return 0
    names = [*ASKED, *APART]
    place.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        legal = list(pool.map(lambda one: _apart(place, one), names))
    return 0 if all(legal) else 1


def _apart(place: Path, name: str) -> bool:
    start, file = time.perf_counter(), place / f"{name}.json"
    command = [sys.executable, "-m", "moeracle.clients.measure", str(place), name]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        said = (run.stderr or run.stdout)[-2000:]
    except subprocess.TimeoutExpired:
        said = f"more than {LIMIT} seconds"
    if not file.is_file():
        write_atomically(file, json.dumps({"kernel": name, "verdict": "ended", "said": said}, indent=1) + "\n")
    found = json.loads(file.read_text(encoding="utf-8"))
    seconds = time.perf_counter() - start
    print(f"{name}: {found['verdict']}, {found.get('median_width_ulp')} ulp, {seconds:.0f} s", flush=True)
    return found["verdict"] == "legal"


def judged(name: str) -> dict[str, Any]:
    """Return what one kernel is, on all of its cases."""
    where = {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none", "torch": torch.__version__}
    libraries = {}
    for library in (STABLE, STABLE_MOE):
        path = file_of("vllm", library)
        if path is not None:
            libraries[library] = hashlib.sha256(path.read_bytes()).hexdigest()
    cases = APART[name]() if name in APART else of_kernel(name)
    statuses = {case["status"] for case in cases} - {"skipped"}
    widths = [stage["width_ulp"] for case in cases for stage in case["stages"]]
    return {
        "kernel": name, "verdict": statuses.pop() if len(statuses) == 1 else "mixed" if statuses else "skipped",
        **where, "libraries": libraries,
        "contracts": sorted({case["contract"] for case in cases}),
        "median_width_ulp": median(widths) if widths else None,
        "tolerance_zero": bool(widths) and max(widths) == 0,
        "elements": sum(stage["judged"] for case in cases for stage in case["stages"]),
        "cases": cases,
    }  # fmt: skip


def of_kernel(name: str) -> list[dict[str, Any]]:
    """Judge a kernel's cases, two runs each, and ask other contracts about a third run."""
    module, texts, others = ASKED[name]
    found = next(k for k in load_target(f"moeracle.clients.{module}").kernels if k.name == name)
    return [guarded(text, partial(_of_case, found, Case.parse(text), others)) for text in texts]


def guarded(text: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a case gives, or its traceback."""
    try:
        return work()
    except Exception:  # one case's failure is a finding beside the others
        print(text, file=sys.stderr)
        return {"case": text, "status": "raised", "contract": "", "stages": [], "said": traceback.format_exc()[-1500:]}


def _of_case(found: Any, case: Case, others: tuple[str, ...]) -> dict[str, Any]:
    verdict = run_trial(found, case, explain=False)
    stages = [{"stage": s.stage, "judged": s.judged, "illegal": s.illegal, "width_ulp": s.width_ulp,
               "max_ratio": s.max_ratio} for s in verdict.stages]  # fmt: skip
    said = "" if verdict.ok else verdict.text()[:1500]
    known = {"case": str(case), "status": verdict.status, "contract": found.contract_for(case).name, "stages": stages}
    if said:
        known["said"] = said
    if verdict.status == "skipped":
        return known
    problem = case.build(found.device)
    output = found.fn(*problem.args.values())
    schedule = found.schedule(case) if found.schedule is not None else None
    for other in others:
        rules = contract(other)
        asked = judge(problem, output, rules, explain=False)
        known.setdefault("under", {})[other] = _short(asked)
        if schedule is not None and "parts" in other and "parts" not in schedule:
            scheduled = with_schedules(rules, schedule)
            known["under"][scheduled.name] = _short(judge(problem, output, scheduled, explain=False))
    return known


def _short(verdict: Any) -> dict[str, Any]:
    return {"status": verdict.status, "illegal": verdict.illegal, "width_ulp": max(
        (stage.width_ulp for stage in verdict.stages), default=None)}  # fmt: skip


def moe_sums() -> list[dict[str, Any]]:
    """Judge _moe_C.moe_sum for 2 to 8 slots as moe_unpermute with router weights of 1: one legal value an element."""
    why = load_libraries("vllm", (STABLE, STABLE_MOE))
    if why or not torch.cuda.is_available():
        return [{"case": "", "status": "skipped", "contract": "", "stages": [], "said": why or "needs a GPU"}]
    return [
        guarded(f"{dtype} k = {k}", partial(_moe_sum, k, dtype))
        for dtype in (torch.bfloat16, torch.float16)
        for k in range(2, 9)
    ]


def _moe_sum(k: int, dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(k)
    y = (torch.randn(65, k, 264, device="cuda") * 4 ** torch.randn(65, k, 1, device="cuda")).to(dtype)
    out = torch.empty(65, 264, dtype=dtype, device="cuda")
    torch.ops._moe_C.moe_sum(y, out, None, None)
    args = (y.view(-1, 264), torch.ones(65, k, device="cuda"), torch.arange(65 * k, device="cuda", dtype=torch.int32))
    known: dict[str, Any] = {"case": f"{dtype} k = {k}"}
    for rules in ("grouped,sum_schedule=fma", "grouped,topk_sum=dtype"):
        verdict = judge_tensors("moe_unpermute", out, *args, contract=rules, explain=False).verdict
        if "status" not in known:
            stages = [{"stage": s.stage, "judged": s.judged, "illegal": s.illegal, "width_ulp": s.width_ulp,
                       "max_ratio": s.max_ratio} for s in verdict.stages]  # fmt: skip
            known |= {"status": verdict.status, "contract": rules, "stages": stages}
        else:
            known["under"] = {rules: _short(verdict)}
    return known


def repacks() -> list[dict[str, Any]]:
    """Ask whether the repack ops make the words that `pack_marlin` makes."""
    why = load_libraries("vllm", (STABLE, STABLE_MOE))
    if why or not torch.cuda.is_available():
        return [{"case": "", "status": "skipped", "contract": "", "stages": [], "said": why or "needs a GPU"}]
    return [
        guarded(f"{layout} N{N}-K{K}, {bits} bits", partial(_repack, layout, N, K, bits))
        for layout, bits in (("gptq", 4), ("awq", 4), ("gptq", 8))
        for N, K in ((64, 128), (256, 64), (128, 1024))
    ]


def _repack(layout: str, N: int, K: int, bits: int) -> dict[str, Any]:
    codes = torch.randint(0, 1 << bits, (N, K), generator=torch.Generator().manual_seed(N), dtype=torch.uint8)
    op = torch.ops._C.gptq_marlin_repack if layout == "gptq" else torch.ops._C.awq_marlin_repack
    words = op(pack_codes(codes, layout, bits).cuda(), K, N, bits, False).cpu()
    wrong = int((words != pack_marlin(codes, bits)).sum())
    stage = {"stage": "words", "judged": words.numel(), "illegal": wrong, "width_ulp": 0.0, "max_ratio": 0.0}
    status = "illegal" if wrong else "legal"
    return {"case": f"{layout} N{N}-K{K}, {bits} bits", "status": status, "contract": "pack_marlin", "stages": [stage]}


APART = {"vllm.moe_sum": moe_sums, "vllm.marlin_repack": repacks}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
