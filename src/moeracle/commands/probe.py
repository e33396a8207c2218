"""`moeracle infer --probe-hardware` and `--probe-file`: one dot instruction's answers, written down and read out."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from moeracle.exit_codes import ILLEGAL
from moeracle.properties.infer import probe_file
from moeracle.properties.infer.dot_probes import questions
from moeracle.properties.infer.probe_file import answers_of
from moeracle.properties.recordings.vectors import VectorSet, write_vectors
from moeracle.properties.report.report import require_writable, write_json
from moeracle.target.declaration import check_device, require_device

from .console import say

GPU_K = 16
Instruction = tuple[str, int, str, Callable[..., Any]]  # name, K, dtype, ask


def run_probe(
    target: str | None, device: str | None, file: Path | None, json: Path | None, vectors: Path | None
) -> int:
    """Probe this machine's dot instruction, or read a file that was made elsewhere; print and write what it says.

    Args:
        vectors: a folder for questions and answers in the format of `moeracle models`, or None.
    Raises:
        ValueError: a TARGET was given too, the device is not there, or the file is not one of ours.
    """
    if target is not None:
        raise ValueError(f"TARGET: got {target!r}, must be left out with --probe-hardware and --probe-file")
    require_writable(json)
    found = probe_file.content(*_probe(device)) if file is None else probe_file.read_probe(file)
    known = [probe_file.read_out(section) for section in found["sections"]]
    _print(found["machine"], known, file)
    if json is not None:
        write_json(json, {**found, "read": known})
        if file is None:
            say(f"\nwritten to {json}; send it: moeracle docs infer says where")
    elif file is None:
        say("\nnothing was written; --json F makes the file to send")
    if vectors is not None:
        write_vectors(vectors, vectors_of(found), {"kind": str(found["kind"])})
    return 0 if all(entry["models"] for entry in known) else ILLEGAL


def _probe(device: str | None) -> tuple[dict[str, str], list[dict[str, Any]]]:
    device = check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    require_device(device, "--device")
    machine = _machine(device)
    sections = [probe_file.ask_all(name, K, dtype, ask) for name, K, dtype, ask in _instructions(device, machine)]
    return machine, sections


def vectors_of(found: dict[str, Any]) -> list[VectorSet]:
    """Return each section of a probe file as one set: its questions in order, and the answers.

    Raises:
        ValueError: in one line: a section that is damaged, or answers other questions.
    """
    sets = []
    device = f"{found['machine'].get('gpu', '')} ({found['machine'].get('architecture', '')})"
    for section in found["sections"]:
        answers = answers_of(section)
        asked = questions(section["dtype"], section["K"])
        a, w, acc = (torch.cat([asked[group][i] for group in answers]) for i in range(3))
        name = f"{section['instruction']} {section['dtype']}".replace(" ", "_")
        d = torch.cat([answers[group] for group in answers])
        sets.append(VectorSet(name, section["dtype"], "fp32", a, w, acc, d, device, section["instruction"]))
    return sets


def _instructions(device: str, machine: dict[str, str]) -> Iterator[Instruction]:
    if device == "cpu":
        for dtype in probe_file.DTYPES:
            yield f"torch fp32, one after another ({dtype})", GPU_K, dtype, probe_file.sequential
        return
    if importlib.util.find_spec("triton") is None:
        raise ValueError("--probe-hardware: needs triton on a GPU, which is not installed; --device cpu does not")
    kernels = importlib.import_module("moeracle.kernels.triton.dot_probe")

    def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *operands: function(*(x.to(device) for x in operands)).cpu()

    for dtype in probe_file.DTYPES:
        yield f"tl.dot 16x16x{GPU_K} {dtype}", GPU_K, dtype, on_gpu(kernels.dot)
    if machine["architecture"].startswith(("gfx11", "gfx12")):
        for dtype, name in (("bf16", "v_dot2_f32_bf16"), ("fp16", "v_dot2_f32_f16")):
            yield name, 2, dtype, on_gpu(kernels.dot2)


def _machine(device: str) -> dict[str, str]:
    gpu = architecture = driver = ""
    if device != "cpu":
        gpu = torch.cuda.get_device_name(device)
        architecture = str(importlib.import_module("moeracle.kernels.triton.dot_probe").architecture())
        driver = torch.version.hip or _driver()
    triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else ""
    return {"gpu": gpu or "cpu", "architecture": architecture or platform.machine(), "driver": str(driver),
            "torch": torch.__version__, "triton": triton, "system": platform.system()}  # fmt: skip


def _driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.strip().partition("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return ""


def _print(machine: dict[str, str], known: list[dict[str, Any]], file: Path | None) -> None:
    say(f"{machine.get('gpu', '?')} ({machine.get('architecture', '?')})" + (f", read from {file}" if file else ""))
    for entry in known:
        say(f"\n[{entry['instruction']}]  {entry['K']} products, {entry['dtype']}")
        for name, value in entry["facts"].items():
            say(f"  {name.replace('_', ' '):<24} {value}")
        if entry["models"]:
            say(f"  predicted bit for bit by: {', '.join(entry['models'])}")
        else:
            best = "; ".join(f"{c['model']} {c['share']:.2%}" for c in entry["closest"])
            say(f"  no model predicts every bit; closest: {best}")
