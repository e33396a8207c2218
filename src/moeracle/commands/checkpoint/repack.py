"""`moeracle checkpoint repack`: another format or layout, without losing a bit."""

from __future__ import annotations

from pathlib import Path

from moeracle.checkpoints.checkpoint import load_checkpoint
from moeracle.checkpoints.repack import check_target, repack

from ..console import Progress, say


def run_repack(path: Path, to: str, out: Path, zeros: str | None) -> int:
    """Write the folder and say what is in it; return 0.

    Raises:
        ValueError: a user's mistake, or bits that would be lost, in one line.
    """
    check_target(to)
    checkpoint = load_checkpoint(path, zeros=zeros)
    with Progress() as progress:
        progress.start("repack")
        done = repack(checkpoint, to, out, tick=progress)
    kept = f", {done.kept:,} tensors as they were" if done.kept else ""
    say(
        f"{out}: {done.weights:,} weights from {checkpoint.format} to {to}{kept}; {done.files} files, "
        f"{done.bytes:,} bytes"
    )
    say("read back and compared: every code, scale and zero point is equal")
    return 0
