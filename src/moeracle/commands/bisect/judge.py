"""The judgement of one case that `bisect git` and `config` start in a process of its own, and what stages shares."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from moeracle.properties.cases.case import Case
from moeracle.properties.common.verdict import Verdict
from moeracle.properties.report import report
from moeracle.properties.trial.trial import run_trial
from moeracle.ref.errors import unknown
from moeracle.target.declaration import Kernel, require_device
from moeracle.target.load import Target, TargetError

from ..loading import check_asked, kernels_of, load
from ..process import prepare_to_judge


def one_kernel(target: Target, case: Case) -> Kernel:
    """Return the kernel of a TARGET that a case is for.

    Raises:
        TargetError: there is none, or more than one.
    """
    kernels = kernels_of(target, {case.op})
    if len(kernels) == 1:
        return kernels[0]
    names = list(dict.fromkeys(kernel.name for kernel in kernels))
    if len(names) == 1:
        hint = f"all named {names[0]}; must have names of their own: @moeracle.kernel(…, name=…)"
    else:
        hint = f"name one: {target.name}:NAME of {', '.join(names)}"
    raise TargetError(f"TARGET {target.name}: {len(kernels)} kernels for op {case.op}; {hint}")


def prepared(target: str, case_text: str, device: str | None, in_process: bool = False) -> tuple[Target, Case]:
    """Load a TARGET and read a case, everything that can be refused first."""
    check_asked(None, device)
    case = Case.parse(case_text)
    prepare_to_judge()
    return load(target, device, in_process), case


def run_judge(
    target: str, case_text: str, json: Path, repeat: int, device: str | None, tile: list[str], instructions: bool
) -> int:
    """Judge one case `repeat` times and write the verdicts; return 0 however they are."""
    loaded, case = prepared(target, case_text, device, in_process=bool(tile) or instructions)  # objects of ours
    kernel = one_kernel(loaded, case)
    require_device(kernel.device, f"kernel {kernel.name}")
    if tile:
        kernel = replace(kernel, fn=_tiled(kernel, tile))
    verdicts = [run_trial(kernel, case, device=device, explain=False) for _ in range(repeat)]
    report.write_json(
        json,
        {
            "kernel": kernel.name, "contract": kernel.contract.name, "verdicts": list(map(_short, verdicts)),
            **({"instructions": _executed()} if instructions else {}),
        },
    )  # fmt: skip
    return 0


def _short(verdict: Verdict) -> dict[str, Any]:
    unbounded = verdict.status == "illegal" and not any(stage.judged for stage in verdict.stages)
    ratio = float("inf") if unbounded else max((stage.max_ratio for stage in verdict.stages), default=None)
    return {
        "status": verdict.status,
        "reason": verdict.reason,
        "stage": verdict.stage,
        "tier": verdict.tier,
        "max_ratio": ratio,
        "bits": verdict.bits,
    }


def _executed() -> dict[str, int]:
    """Return how often each gfx11 instruction ran in this process; none where the kernel is no machine code."""
    machine = sys.modules.get("moeracle.kernels.gfx11.machine")
    return {} if machine is None else {name.lower(): count for name, count in machine.EXECUTED.most_common()}


def _tiled(kernel: Kernel, settings: list[str]) -> Any:
    """Return a kernel's function with one tile for its launches: FIELD=VALUE, whole numbers, over the device's default.

    Raises:
        ValueError: the kernel takes no tile, or the setting is no field of one.
    """
    if "config" not in inspect.signature(kernel.fn).parameters:
        raise ValueError(f"tile: kernel {kernel.name} takes no config=Tile(...), so no tile can be chosen for it")
    Tile = importlib.import_module("moeracle.kernels.triton.tiles").Tile
    fields: dict[str, int] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in Tile.__dataclass_fields__:
            raise unknown("tile", name, Tile.__dataclass_fields__)
        if not value.isdigit():
            raise ValueError(f"tile.{name}: got {value!r}, must be a whole number")
        fields[name] = int(value)
    return functools.partial(kernel.fn, config=Tile(**fields))
