"""The command `moeracle` of scripts that a test runs, executed in the test's process: torch is imported once."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from moeracle.cli import main

# Tells the test which words it was called with and where, waits for the answer, and is what `moeracle` would have been.
COMMAND = """#!/usr/bin/env bash
asked={folder}/$$
printf '%s\\0' "$PWD" "$@" > "$asked.words"
mkfifo "$asked.code"
echo $$ > {folder}/asked
read -r code < "$asked.code"
cat "$asked.out"
cat "$asked.err" >&2
exit "$code"
"""


def run_served(
    words: Sequence[str], folder: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> subprocess.CompletedProcess[str]:
    """Run a command whose `moeracle` is this process.

    Args:
        words: of the command.
        folder: where to run it.
        environment: its variables; PATH gets one place in front.
        capsys: pytest's, which catches what each `moeracle` prints.
    """
    served = folder / ".served"
    served.mkdir(exist_ok=True)
    command = served / "moeracle"
    command.write_text(COMMAND.format(folder=shlex.quote(str(served))))
    command.chmod(0o755)
    asked = served / "asked"
    if not asked.exists():
        os.mkfifo(asked)
    environment = {**environment, "PATH": f"{served}{os.pathsep}{environment['PATH']}"}
    log = served / "log"
    here = os.open(asked, os.O_RDWR)  # also for writing: or each writer's end would be the end
    with log.open("w") as out, os.fdopen(here, "rb", buffering=0) as pipe:
        process = subprocess.Popen(["sh", "-c", f"{shlex.join(words)}; code=$?; echo end > {asked}; exit $code"],
                                   cwd=folder, env=environment, stdout=out, stderr=out)  # fmt: skip
        while (line := _line(pipe)) != "end":
            _answer(served / line, capsys)
        code = process.wait()
    return subprocess.CompletedProcess(list(words), code, log.read_text(), "")


def _line(pipe: object) -> str:
    text = b""
    while not text.endswith(b"\n"):
        text += pipe.read(1)  # type: ignore[attr-defined]
    return text.decode().strip()


def _answer(asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where, *words = asked.with_suffix(".words").read_text().split("\0")[:-1]
    before = os.getcwd()
    os.chdir(where)
    capsys.readouterr()
    try:
        code = main(words)
    finally:
        os.chdir(before)
    out, err = capsys.readouterr()
    asked.with_suffix(".out").write_text(out)
    asked.with_suffix(".err").write_text(err)
    asked.with_suffix(".code").write_text(f"{code}\n")
