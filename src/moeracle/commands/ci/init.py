"""`moeracle ci init`: a workflow, its script and a file of known failures, written into a repository."""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from moeracle.files import write_atomically
from moeracle.ref.errors import require, unknown

from ..console import say

# Where a job runs, and on which device kernels are judged: "" takes what each kernel declares.
RUNNERS = {
    "rocm": ("[self-hosted, rocm]", ""),
    "cuda": ("[self-hosted, cuda]", ""),
    "cpu": ("ubuntu-latest", "--device cpu "),
}
FILES = {
    "moeracle.yml": ".github/workflows/moeracle.yml",
    "moeracle.sh": "ci/moeracle.sh",
    "known_failures.toml": "known_failures.toml",
}


def run_init(target: str, runner: str, folder: Path) -> int:
    """Write the files.

    Args:
        target: the TARGET's text.
        runner: one of RUNNERS.
        folder: the repository's top folder.
    Raises:
        ValueError: an unknown runner, no such folder, or a file that is there with other content; then none is written.
    """
    if runner not in RUNNERS:
        raise unknown("--runner", runner, RUNNERS)
    require(folder.is_dir(), f"--dir: got {folder}, must be a folder")
    machine, device = RUNNERS[runner]
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    templates = files("moeracle.commands.ci") / "templates"
    texts = {
        folder / path: environment.from_string((templates / name).read_text(encoding="utf-8")).render(
            target=shlex.quote(target), runner=machine, device=device, hosted=runner == "cpu"
        )
        for name, path in FILES.items()
    }
    for path, text in texts.items():
        other = path.exists() and path.read_text(encoding="utf-8", errors="replace") != text
        require(not other, f"--dir: {path} is there already, with other content; move it away first")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
        say(f"wrote {path}")
    say(f"try it: bash {folder / FILES['moeracle.sh']}")
    return 0
