"""What a command writes: whole or not at all, through devices, never over a kernel; a full disk is one line."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from moeracle.cli import main
from moeracle.files import require_writable, write_atomically

KERNEL = """
import moeracle

@moeracle.kernel("silu_and_mul", contract="grouped")
def mine(h):
    gate, up = h.float().chunk(2, 1)
    return (gate.sigmoid() * gate).to(h.dtype) * up.to(h.dtype)
"""
CASE = "silu_and_mul/T1-I8/bf16/-/-/integers/s0"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(KERNEL)
    return path


@pytest.mark.parametrize("option", ["--json", "--junit", "--html"])
def test_a_report_never_replaces_a_kernel(target: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(target), "--case", CASE, option, str(target)]) == 2
    assert "ends in .py as kernels do" in capsys.readouterr().err
    assert target.read_text() == KERNEL


def test_what_is_no_file_is_written_through_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_atomically(pipe, "all of it")
    reader.join(600)
    assert got == [b"all of it"]
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_one_line_that_names_the_file_after_the_result(
    target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(target), "--case", CASE, "--json", "/dev/full"]) == 2
    said = capsys.readouterr()
    assert "error: /dev/full: No space left on device" in said.err
    assert "mine" in said.out
    assert "legal" in said.out
    assert main(["case", CASE, "--save", "/dev/full"]) == 2
    assert "error: /dev/full: No space left on device" in capsys.readouterr().err
    assert Path("/dev/full").is_char_device()


@pytest.mark.skipif(
    subprocess.run(["sh", "-c", "unshare -Urm true"], capture_output=True).returncode != 0,
    reason="needs user namespaces (unshare -Urm), to mount a disk of its own",
)
def test_on_a_disk_that_is_really_full_the_verdict_stands(target: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    script = """
        mount -t tmpfs -o size=64k none disk && echo old > disk/r.json
        head -c 1000000 /dev/zero > disk/filled 2>/dev/null
        "$@" check mine.py --case $CASE --json disk/r.json; echo "exit $?"
        "$@" golden make mine.py --case $CASE --dir disk/set --accept first; echo "exit $?"
        cat disk/r.json; find disk -type f | sort
    """
    command = ["unshare", "-Urm", "sh", "-c", script, "sh", sys.executable, "-m", "moeracle"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "CASE": CASE}, capture_output=True, text=True)
    assert "legal" in done.stdout
    assert done.stdout.count("exit 2") == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 2, done.stderr
    assert all("No space left on device" in line for line in said)
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-3:] == ["old", "disk/filled", "disk/r.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_fails_leaves_the_old_file_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "report.json"
    path.write_text("old")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match=r"No space left on device: '.*report\.json'"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text("old")
    with path.open() as reader:
        assert write_atomically(path, b"new") == path
        assert reader.read() == "old"  # who was reading it goes on reading the old file
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["gpu.json"]


def test_what_cannot_be_written_is_refused_before_a_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "x.json", tmp_path / "x.py"):
        with pytest.raises(ValueError, match="cannot be written"):
            require_writable(path)
    require_writable(None)
    require_writable(tmp_path / "x.json")
