"""`moeracle checkpoint quantize-head`: the int8 lm_head's error statistics."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path

from moeracle.checkpoints.checkpoint import load_checkpoint
from moeracle.checkpoints.head import GROUPS, HeadError, activations_of, group_size_of, head_errors, head_of, save_head
from moeracle.properties.report import report

from ..console import print_table, say

FORMAT_VERSION = 1
COLUMNS = (
    "as", "quantizer", "weight rms", "max", "logit rms", "max", "top-1 changed", "at risk", "KL", "bytes",
)  # fmt: skip


def run_head(
    path: Path, option: str, activations: Path | None, tokens: int, seed: int, json: Path | None, plot: Path | None,
    save: Path | None,
) -> int:  # fmt: skip
    """Print the errors of every group size, the one asked for first; return 0."""
    for target in (json, plot, save):
        report.require_writable(target)
    checkpoint = load_checkpoint(path)
    module, weight = head_of(checkpoint)
    group = group_size_of(option, weight.shape[1])
    x = activations_of(activations, weight.shape[1], tokens, seed)
    errors = list(head_errors(weight, x, (group, *(g for g in GROUPS if g != group))))
    source = f"{activations}" if activations else f"normal, seed {seed}"
    dtype = str(weight.dtype).removeprefix("torch.")
    say(f"{path}: {module} [{weight.shape[0]:,}, {weight.shape[1]:,}] {dtype}; {len(x):,} tokens, {source}")
    say(f"median margin of the best logit: {errors[0].margin:.3g} standard deviations of the logits")
    say()
    print_table(COLUMNS, [_row(error) for error in errors], text_columns=2)
    say(
        "errors of weights in their rms, of logits in their standard deviation; at risk: margin below twice the "
        "largest error"
    )
    if json is not None:
        report.write_json(json, {
            "format_version": FORMAT_VERSION, "kind": "moeracle checkpoint quantize-head", "path": str(path),
            "module": module, "shape": list(weight.shape), "as": option, "activations": source,
            "errors": [asdict(error) for error in errors],
        })  # fmt: skip
    if plot is not None:
        _plot(plot, errors)
    if save is not None:
        save_head(save, module, weight, group)
        say(f"wrote {save}")
    return 0


def name_of(group_size: int) -> str:
    """Return the option that means a group size."""
    return "int8" if group_size == -1 else f"int8:g{group_size}"


def _row(error: HeadError) -> list[str]:
    numbers = [f"{v:.2%}" for v in (error.weight_rms, error.weight_max, error.logit_rms, error.logit_max)]
    tokens = [f"{error.changed:,} of {error.tokens:,}", f"{error.at_risk:,}"]
    return [
        name_of(error.group_size),
        error.quantizer,
        *numbers,
        *tokens,
        f"{error.divergence:.2g}",
        f"{error.bytes:.1%}",
    ]


def _plot(path: Path, errors: list[HeadError]) -> None:
    """Draw logit errors and changed arg-maxes by group size."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("--plot: needs matplotlib (pip install 'moeracle[plot]')") from None
    from moeracle.files import write_atomically

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    order = sorted({e.group_size for e in errors}, key=lambda g: float("inf") if g == -1 else g)
    for quantizer in dict.fromkeys(e.quantizer for e in errors):
        of = {e.group_size: e for e in errors if e.quantizer == quantizer}
        left.plot(range(len(order)), [of[g].logit_rms for g in order], marker="o", label=f"{quantizer} quantizer")
        right.plot(range(len(order)), [of[g].changed / of[g].tokens for g in order], marker="o")
    for axis, title in ((left, "logit error, rms in standard deviations"), (right, "tokens whose arg-max changes")):
        axis.set_xticks(range(len(order)), [name_of(g) for g in order])
        axis.set_ylim(bottom=0)
        axis.set_title(title, fontsize=10)
    left.legend(frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    write_atomically(path, drawn.getvalue())
