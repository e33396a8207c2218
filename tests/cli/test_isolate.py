"""What a user reads of the processes that kernels run in: limits, imports that misbehave, and no process to be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moeracle.commands.loading import IN_PROCESS

CASE = "silu_and_mul/T3-I8/bf16/-/-/normal/s1"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os\nos._exit(0)\n", "does not import: ended its process with exit code 0"),
        ("import time\ntime.sleep(10**6)\n", "does not import: its import had not ended after 2 s (--case-timeout)"),
        ("import os\nos.fork()\n", "its import forked, and both processes came back"),
        ("raise BaseException('no')\n", "does not import: BaseException: no"),
        ("import ctypes\nctypes.string_at(0)\n", "does not import: its process was killed by SIGSEGV"),
    ],
)
def test_an_import_that_hangs_forks_or_exits_is_one_line(cli: Any, write: Any, source: str, said: str) -> None:
    done = cli("check", write(source, "bad.py"), "--case-timeout", "2" if "sleep" in source else "60")
    assert done.code == 2
    (line,) = done.err.strip().splitlines()
    assert said in line
    assert line.startswith("error: TARGET bad.py")


def test_a_timeout_of_nothing_and_a_size_that_is_none_are_refused(cli: Any, write: Any) -> None:
    for options, said in (
        (("--case-timeout", "0"), "--case-timeout"),
        (("--max-memory", "much"), "--max-memory: got 'much', must be a size such as 512M or 2G"),
    ):
        done = cli("check", write(), *options)
        assert done.code == 2
        assert said in done.err
        assert len(done.err.strip().splitlines()) == 1


def test_a_memory_limit_is_a_limit(cli: Any, write: Any) -> None:
    text = "import moeracle\n@moeracle.kernel('silu_and_mul', contract='grouped')\ndef mine(h):\n    {}\n"
    target = write(text.format("keep = []\n    while True:\n        keep.append(bytearray(1 << 24))"))
    done = cli("check", target, "--case", CASE, "--max-memory", "512M")
    assert done.code == 1
    assert "FAIL  tier=memory" in done.out


def test_a_process_that_cannot_be_started_is_one_line(write: Any, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    script = (
        "import moeracle.isolate.start as start, sys\n"
        "start.sys.executable = '/nonexistent/python'\n"
        "from moeracle.cli import main\nsys.exit(main(['check', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, write()], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: child: the process that kernels run in could not be started (No such file or directory); "
        "--in-process judges without one"
    ]


def test_every_report_says_where_kernels_ran(cli: Any, write: Any, folder: Path) -> None:
    text = "import moeracle\n@moeracle.kernel('silu_and_mul', contract='grouped')\ndef mine(h):\n"
    text += "    gate, up = h.float().chunk(2, 1)\n    return (gate.sigmoid() * gate).to(h.dtype) * up.to(h.dtype)\n"
    target = write(text)
    made = cli("golden", "make", target, "--dir", "set", "--accept", "first", "--case", CASE, "--in-process")
    assert IN_PROCESS in made.out
    for words in (
        ("check", target, "--case", CASE),
        ("golden", "verify", target, "--dir", "set"),
        ("bisect", "stages", target, "--case", CASE),
        ("infer", target),
    ):
        done = cli(*words, "--in-process", "--json", "r.json")
        assert done.code == 0, (words, done.err)
        assert done.out.count(IN_PROCESS) == 1, words
        assert json.loads((folder / "r.json").read_text())["isolation"] == "none", words
    done = cli("golden", "verify", target, "--dir", "set", "--json", "r.json")
    assert IN_PROCESS not in done.out
    assert json.loads((folder / "r.json").read_text())["isolation"] == "child process"
