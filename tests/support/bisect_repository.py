"""A made repository: forty commits of one kernel, some of which do not build, one that is flaky, one that is wrong."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

CASE = "moe_w4a16/T4-E3-k2-H64-I64-G32/bf16/exllama-sym/uniform/normal/s3"
COMMITS = 40
WRONG = 23  # from this commit on, the kernel takes each scale from the next group
UNBUILDABLE = (9, 10, 21, 30, 31)
FLAKY = 20

KERNEL = '''"""Version {number}."""
import itertools
import torch
import moeracle
import constants

_calls = itertools.count()


def _weights(w, e, dtype):
    matrix = w.expert(e)
    scale = matrix.scale.float()
    {line}
    codes = matrix.codes().float() - 8
    return (codes * scale.repeat_interleave(matrix.G, 1)).to(dtype).float()


@moeracle.kernel("moe_w4a16", layout="exllama", contract="grouped")
def moe(x, w13, w2, topk_weights, topk_ids):
    T, k = topk_ids.shape
    out = torch.zeros(T, w2.N)
    for t in range(T):
        for j in range(k):
            e = int(topk_ids[t, j])
            if e < 0:
                continue
            h = (x[t].float() @ _weights(w13, e, x.dtype).T).to(x.dtype)
            gate, up = h.float().chunk(2)
            a = (torch.nn.functional.silu(gate).to(x.dtype).float() * up).to(x.dtype)
            y = (a.float() @ _weights(w2, e, x.dtype).T).to(x.dtype)
            out[t] += y.float() * topk_weights[t, j]
    return {{"out": (out * constants.ONE{flaky}).to(x.dtype)}}
'''


def git(folder: Path, *words: str) -> str:
    """Run git in the made repository, with no configuration but ours."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    env |= {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in
            (("NAME", "A. Engineer"), ("EMAIL", "a@example.com"), ("DATE", "2026-01-02T03:04:05Z"))}  # fmt: skip
    done = subprocess.run(["git", *words], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def source(number: int, wrong: int = WRONG, flaky: int = FLAKY) -> str:
    """Return the kernel's text at a commit."""
    line = "scale = scale.roll(-1, 1)" if number >= wrong else f"scale = scale * 1  # {number}"
    # A child calls it once on other values first, then twice for each judgement.
    sometimes = " * (1 + (next(_calls) + 1) // 2 % 2)" if number == flaky else ""
    return KERNEL.format(number=number, line=line, flaky=sometimes)


def make_repository(folder: Path, wrong: int = WRONG, flaky: int = FLAKY) -> list[str]:
    """Make the repository; return its commits' ids, commit 1 first.

    The build, `sh build.sh`, writes constants.py, which the kernel imports; in some commits it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "kernels").mkdir()
    ids = []
    for number in range(1, COMMITS + 1):
        (folder / "kernels" / "moe.py").write_text(source(number, wrong, flaky))
        fails = "echo 'moe.hip:12: error: no such builtin' >&2; exit 1" if number in UNBUILDABLE else "true"
        (folder / "build.sh").write_text(f"{fails}\necho 'ONE = 1.0' > kernels/constants.py\n")
        (folder / "NOTES").write_text(f"{number}\n")
        git(folder, "add", "--all")
        what = "take the scales in one load" if number == wrong else f"change {number}"
        git(folder, "commit", "--quiet", "--message", what)
        ids.append(git(folder, "rev-parse", "HEAD"))
    return ids
