"""What a user reads of the processes that kernels run in: limits, imports that misbehave, and no process to be had."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moeracle.commands.loading import IN_PROCESS
from moeracle.isolate import client, confine, remote, start, wire
from support.schemas import fits

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


def fails(monkeypatch: pytest.MonkeyPatch, what: str, folder: Path) -> None:
    """Let a process for kernels fail to start in one of the ways in which it can."""
    if what in ("no Python", "no memory to start"):
        starved = folder / "starved"
        starved.write_text(f'#!/bin/sh\nulimit -v 300000\nexec {sys.executable} "$@"\n')
        starved.chmod(0o755)
        monkeypatch.setattr(start, "_ONE", [])
        monkeypatch.setattr(start.sys, "executable", "/nonexistent" if what == "no Python" else str(starved))
    elif what == "no temporary file":
        monkeypatch.setattr(start, "_ONE", [])
        monkeypatch.setattr(start.tempfile, "TemporaryFile", (folder / "no" / "where").open)
    elif what == "no shared memory":
        monkeypatch.delattr(client.os, "memfd_create", raising=False)
        monkeypatch.setattr(client.tempfile, "TemporaryFile", (folder / "no" / "where").open)
    elif what == "no memory to map":
        monkeypatch.setattr(client, "ROOMY", (1 << 63) - 4096)
    else:
        asked = start.Nursery.ask
        refused = {"refused": "Resource temporarily unavailable"}
        answer = lambda self, message, fds=(): refused if message["do"] == "fork" else asked(self, message, fds)
        monkeypatch.setattr(start.Nursery, "ask", answer)


STARTED = "the process that kernels run in could not be started"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no Python", f"{STARTED} (No such file or directory)"),
        ("no memory to start", f"{STARTED} (ImportError: libtorch"),
        ("no temporary file", f"{STARTED} (No such file or directory)"),
        ("no shared memory", "no memory to share with the process that kernels run in ("),
        ("no memory to map", "no memory that it shares with the judge can be mapped"),
        ("no process", "no process can be forked for a kernel (Resource temporarily unavailable)"),
    ],
)
def test_a_process_that_cannot_be_started_is_one_line(
    cli: Any, write: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, what: str, said: str
) -> None:
    fails(monkeypatch, what, folder)
    done = cli("check", write())
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: child: {said}")
    assert line.endswith("; --in-process judges without one")


def test_where_no_more_processes_start_what_was_judged_is_reported(
    cli: Any, write: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import moeracle\n@moeracle.kernel('silu_and_mul', contract='grouped')\ndef {}(h):\n    raise ValueError\n"
    forks, ask = [], start.Nursery.ask

    def few(self: Any, message: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
        forks.append(message["do"] == "fork")
        return {"refused": "no more"} if message["do"] == "fork" and sum(forks) > 2 else ask(self, message, fds)

    monkeypatch.setattr(start.Nursery, "ask", few)
    done = cli("check", write(text.format("a") + text.format("b")), "--case", CASE, "--json", "r.json")
    assert done.code == 1
    assert "Traceback" not in done.err
    first, second = json.loads((folder / "r.json").read_text())["kernels"]
    assert first["failures"][0]["tier"] == "call"
    assert "no process can be forked" in second["error"]


def test_a_kernel_that_takes_the_place_of_a_report_keeps_its_verdict(cli: Any, write: Any, folder: Path) -> None:
    text = "import os\nimport moeracle\n@moeracle.kernel('silu_and_mul', contract='grouped')\ndef mine(h):\n"
    target = write(text + "    os.makedirs('r.json', exist_ok=True)\n    return h[:, ::2]\n")
    done = cli("check", target, "--case", CASE, "--json", "r.json", "--junit", "r.xml")
    assert done.code == 1
    assert "FAIL  tier=" in done.out
    assert "r.json: cannot be written" in done.err
    assert "<failure" in (folder / "r.xml").read_text()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="has no /dev/pts")
def test_no_kernel_writes_on_the_terminal() -> None:
    changed = confine.all_but_the_systems()
    assert {"/dev/null", "/tmp"} <= set(changed)
    assert not [
        path for path in changed if path in ("/dev", "/proc", "/sys") or path.startswith(("/dev/pts", "/dev/tty"))
    ]


WHO = """
import os

import moeracle
import torch


def said(what):
    with open("said", "a") as file:
        file.write(f"{what} {os.getpid()}\\n")


said("import")
for name in ("a", "b", "c"):
    @moeracle.kernel("silu_and_mul", contract="grouped", name=name)
    def kernel(h, name=name):
        said(name)
        gate, up = h.float().chunk(2, 1)
        return (gate.sigmoid() * gate).to(h.dtype) * up.to(h.dtype)
"""


def test_the_process_that_is_asked_afresh_was_begun_ahead_and_served_nobody(
    cli: Any, write: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, take = [], remote.TargetLoader.take

    def taken(loader: Any) -> Any:
        begun.append(loader.spare is not None)
        return take(loader)

    monkeypatch.setattr(remote.TargetLoader, "take", taken)
    assert cli("check", write(WHO), "--case", CASE).code == 0
    said = [line.split() for line in (folder / "said").read_text().splitlines()]
    imported = [pid for what, pid in said if what == "import"]
    served = {name: list(dict.fromkeys(pid for what, pid in said if what == name)) for name in "abc"}
    assert [len(pids) for pids in served.values()] == [2, 2, 2]
    assert sorted(imported) == sorted(pid for pids in served.values() for pid in pids)
    assert begun == [False, *[True] * 6]
    assert not [pid for pid in imported if Path(f"/proc/{pid}").exists()]


WATCHED = """
import sys
import moeracle.cli
from moeracle.isolate import remote

before, take = [], remote.TargetLoader.take


def taken(loader):
    before.append(set(sys.modules))
    return take(loader)


remote.TargetLoader.take = taken
code = moeracle.cli.main(sys.argv[1:])
print(sorted(set(sys.modules) - before[0]))
sys.exit(code)
"""


def test_dev_shm_is_not_needed_and_nothing_is_imported_once_a_kernel_ran(write: Any, folder: Path) -> None:
    hunted = ("--examples", "2", "--profile", "smoke", "--html", "r.html", "--junit", "r.xml", "--json", "r.json")
    text = "import moeracle\n@moeracle.kernel('silu_and_mul', contract='grouped')\ndef mine(h):\n    return h[:, ::2]\n"
    command = [sys.executable, "-c", WATCHED, "check", write(text), *hunted]
    without = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro none /dev/shm && exec "$@"', "sh"]
    alone = shutil.which("unshare") and not subprocess.run([*without, "true"], capture_output=True).returncode
    done = subprocess.run(
        [*(without if alone else []), *command], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 1, done.stderr
    assert "FAIL  tier=" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    if not alone:
        pytest.skip("the rest holds; no namespace of one's own is allowed here, in which /dev/shm is missing")


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
    assert fits("golden", folder / "r.json")["isolation"] == "child process"


WINDOW = """
import os
import torch
import moeracle

def right(h):
    gate, up = h.float().chunk(2, 1)
    return (torch.nn.functional.silu(gate).to(h.dtype).float() * up).to(h.dtype)

on = moeracle.kernel("silu_and_mul", contract="grouped")

@on
def legal(h):
    return right(h)

@on
def writes(h):
    out = right(h)
    h[0, 0] = 3
    return out

@on
def past_its_end(h):
    h.as_strided((1,), (1,), h.storage_offset() + h.numel())[0] = 1
    return right(h)

@on
def cuts_the_memory(h):
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if "memfd" in os.readlink(f"/proc/self/fd/{fd}"):
                os.ftruncate(fd, 0)
        except OSError:
            pass
    return right(h)

@on
def makes_it_long(h):
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if "memfd" in os.readlink(f"/proc/self/fd/{fd}"):
                os.ftruncate(fd, 1 << 44)
        except OSError:
            pass
    return right(h)

@on
def elsewhere(h):
    return right(h).to("meta")
"""


@pytest.mark.parametrize("window", [False, True])
def test_what_crosses_by_a_window_is_judged_alike(
    cli: Any, write: Any, monkeypatch: pytest.MonkeyPatch, window: bool
) -> None:
    """As the large tensors of a GPU cross, here those of a CPU; the memory between the processes cannot be cut."""
    if window:
        monkeypatch.setattr(remote.Remote, "_window", lambda self, child: child.window)
        monkeypatch.setattr(wire, "_TOGETHER", 0)
    done = cli("check", write(WINDOW, "window.py"), "--case", CASE, "--json", "window.json")
    tiers = {
        k["kernel"]: [f["tier"] for f in k["failures"]] for k in json.loads(Path("window.json").read_text())["kernels"]
    }
    assert done.code == 1
    assert tiers == {
        "legal": [], "writes": ["inputs"], "past_its_end": ["inputs"], "cuts_the_memory": [],
        "makes_it_long": [], "elsewhere": ["shape"],
    }  # fmt: skip


def test_the_memory_between_two_processes_cannot_become_shorter() -> None:
    memory = client._shared_memory()
    try:
        assert client._sealed(memory)
        for shorter in (0, 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(memory, shorter)
        os.ftruncate(memory, 2 * client.ROOMY)
        window = wire.Window(memory)
        window.bytes_at(8192, 16).fill_(7)
        assert wire.read_at(memory, 8192, 16).tolist() == [7] * 16
        assert window.size < client.ROOMY  # what the judge needs, not what the other makes of it
        window.close()
    finally:
        os.close(memory)
