"""The pictures of the concepts page, drawn from what the library computes, as SVG that suits light and dark pages."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyBboxPatch, Rectangle

from moeracle import Case, judge_tensors
from moeracle import contract as contract_of
from moeracle.ref.bitmodels.tensor_core import HOPPER

GREY, GREEN, RED, BLUE, AMBER = "#808080", "#2e9e5b", "#d9483b", "#3b7dd8", "#d99a1e"
CASE = "int4_linear/T4-N64-K1024-G32/bf16/exllama-sym/-/normal/s3"


def drawn() -> Iterator[tuple[str, str]]:
    """Yield each picture's name and its SVG."""
    pictures: dict[str, Callable[[], Any]] = {
        "legal-set": _legal_set,
        "tiers": _tiers,
        "contract": _contract,
        "tensor-core": _tensor_core,
    }
    for name, draw in pictures.items():
        with plt.rc_context({"svg.hashsalt": name, "text.color": GREY, "svg.fonttype": "none", "font.size": 10}):
            figure = draw()
            file = io.StringIO()
            figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
        yield name, file.getvalue()


def _axes(width: float, height: float, x: tuple[float, float], y: tuple[float, float]) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set(xlim=x, ylim=y)
    axes.axis("off")
    return figure, axes


def _box(axes: Any, x: float, y: float, text: str, width: float, colour: str = GREY, height: float = 0.8) -> None:
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, ec=colour, fc=colour + "22", lw=1.4))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GREY, "lw": 1.2})


def _legal_set() -> Any:
    """Draw the legal set of one output of a real case on the number line of bf16."""
    problem = Case.parse(CASE).build()
    x, w, bias = problem.args["x"], problem.args["w"], problem.args["bias"]
    out = torch.zeros(x.shape[0], w.N, dtype=x.dtype)
    verdict = judge_tensors("int4_linear", out, x, w, bias, contract="grouped", explain=False)
    lows, highs = verdict.lo.to(x.dtype).flatten(), verdict.hi.to(x.dtype).flatten()
    count = highs.view(torch.int16).int().sub(lows.view(torch.int16).int()).abs() + 1  # of bf16 values of one sign
    at = int((count - 4).abs().masked_fill(lows.sign() != highs.sign(), 1 << 20).argmin())
    lo, hi = lows[at], highs[at]
    up, down = (torch.tensor(sign * torch.inf, dtype=x.dtype) for sign in (1, -1))
    values = [lo]
    for _ in range(4):
        values.insert(0, torch.nextafter(values[0], down))
    while len(values) < 12:
        values.append(torch.nextafter(values[-1], up))
    exact = float((x.double() @ w.dequantize(torch.float32).to(x.dtype).double().T).flatten()[at])
    figure, axes = _axes(8, 1.9, (-0.7, 11.7), (-1.3, 1.5))
    places = {float(value): i for i, value in enumerate(values)}
    first, last = places[float(lo)], places[float(hi)]
    axes.add_patch(Rectangle((first - 0.3, -0.25), last - first + 0.6, 0.5, color=GREEN, alpha=0.18, lw=0))
    axes.plot([-0.6, 11.6], [0, 0], color=GREY, lw=1)
    for value, i in places.items():
        legal = first <= i <= last
        axes.plot([i], [0], "o", color=GREEN if legal else RED, ms=7 if legal else 5, mfc=GREEN if legal else "none")
        axes.text(i, -0.75, f"{value:.6g}", ha="center", fontsize=7, rotation=30)
    step = float(values[5]) - float(values[4])
    place = first + (exact - float(lo)) / step
    axes.plot([place, place], [-0.35, 0.45], color=BLUE, lw=1.6)
    axes.text(place, 0.55, "exact sum", ha="center", color=BLUE, fontsize=9)
    axes.text((first + last) / 2, 1.1, "what a legal kernel may store", ha="center", color=GREEN, fontsize=9)
    return figure


def _tiers() -> Any:
    """Draw the checks of one case in their order, and the verdict of each when it fails."""
    steps = [
        ("call", "returns;\nshape, dtype"),
        ("inputs", "unchanged,\nmargins too"),
        ("determinism", "two runs,\nsame bits"),
        ("nonfinite", "no NaN from\nfresh memory"),
        ("bits, interval", "each element in\nits legal set"),
        ("statistics", "no mean, no\nspread too many"),
        ("law", "permute, split,\nscale: same bits"),
    ]
    figure, axes = _axes(11, 1.9, (-0.1, 16.4), (-0.9, 1.7))
    for i, (name, what) in enumerate(steps):
        x = i * 2.35
        _box(axes, x, 0, what, 2.05, BLUE)
        axes.text(x + 1.02, 1.05, name, ha="center", fontsize=9, weight="bold")
        if i:
            _arrow(axes, (x - 0.28, 0.4), (x - 0.02, 0.4))
        _arrow(axes, (x + 1.02, -0.05), (x + 1.02, -0.45))
        axes.text(x + 1.02, -0.75, f"tier={name.split(',')[0]}", ha="center", fontsize=7.5, color=RED)
    return figure


def _contract() -> Any:
    """Draw where a layer under one contract rounds."""
    rules = contract_of("grouped")
    stages = ["x", "GEMM 1", "silu · up", "GEMM 2", "top-k sum"]
    stored = ["", "h", "a", "y", "out"]
    notes = [
        "D",
        f"weights: {rules.weight}\nsums: {rules.accumulator}",
        f"silu: {rules.silu}",
        f"weights: {rules.weight}\nsums: {rules.accumulator}",
        f"router weight: {rules.router_weight}\nsum: {rules.topk_sum}",
    ]
    figure, axes = _axes(9, 1.7, (-0.1, 12.6), (-1.2, 1.4))
    for i, (stage, name, note) in enumerate(zip(stages, stored, notes, strict=True)):
        _box(axes, i * 2.5, 0, stage, 1.7, BLUE if i else GREY)
        axes.text(i * 2.5 + 0.85, -0.65, note, ha="center", va="center", fontsize=8)
        if name in rules.stores:
            axes.text(i * 2.5 + 2.08, 0.75, f"D({name})", ha="center", fontsize=9, color=AMBER)
            axes.plot([i * 2.5 + 2.08], [0.4], "D", color=AMBER, ms=6)
        if i < len(stages) - 1:
            _arrow(axes, (i * 2.5 + 1.72, 0.4), (i * 2.5 + 2.48, 0.4))
    return figure


def _tensor_core() -> Any:
    """Draw how a Hopper tensor core adds: terms aligned to the largest exponent, low bits cut off."""
    accumulator, bits = -3, HOPPER.bits + 1
    figure, axes = _axes(8, 3, (-9.5, 38), (-1.4, 8.2))
    exponents = [accumulator, 0, -6, -11, -20]
    for row, e in enumerate(exponents):
        y, length = 7 - row * 1.3, 24 if not row else 16
        kept = max(0, min(length, bits + e))
        axes.add_patch(Rectangle((-e, y), kept, 0.8, fc=BLUE + "55" if row else AMBER + "55", ec=GREY, lw=0.8))
        if kept < length:
            axes.add_patch(Rectangle((-e + kept, y), length - kept, 0.8, fc="none", ec=RED, lw=0.8, ls=":"))
        axes.text(
            -0.8, y + 0.35, f"a[{row - 1}]·w[{row - 1}]" if row else "sum so far", ha="right", va="center", fontsize=8.5
        )
    axes.plot([bits, bits], [-0.3, 8], color=RED, lw=1.2)
    axes.text(bits + 0.3, -0.9, "cut off before the sum", color=RED, fontsize=8.5)
    axes.text(0, -0.9, "largest exponent of all", fontsize=8.5)
    return figure
