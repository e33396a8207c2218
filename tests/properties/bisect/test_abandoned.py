"""What a killed process left, a worktree, its folder and the processes in it, is removed by the next one."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from moeracle.files import require_writable, scratch, write_atomically
from moeracle.properties.bisect.history_git import Repository
from moeracle.properties.bisect.history_runner import environment_for
from support.bisect_repository import git

WRITES = """
import os, sys
from pathlib import Path
import moeracle.files
os.fsync = lambda handle: (print("ready", flush=True), sys.stdin.read())
moeracle.files.write_atomically(Path(sys.argv[1]), "new")
"""


@contextmanager
def process(script: str, path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    words = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        yield started, started.stdout.readline()
        started.kill()


def bisect(repository: Path, say: Connection) -> None:
    """Make a worktree with a process in it, say so, and wait."""
    with Repository(repository).worktree("HEAD") as tree:
        child = subprocess.Popen(["sleep", "600"], cwd=tree, env=environment_for(tree), start_new_session=True)
        say.send((str(tree), child.pid))
        say.recv()


@contextmanager
def bisecting(repository: Path) -> Iterator[tuple[BaseProcess, tuple[str, int]]]:
    """Let a fork of this process bisect: a fresh one would import torch first."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    forked = context.Process(target=bisect, args=(repository, theirs))
    forked.start()
    theirs.close()
    yield forked, ours.recv()
    forked.kill()
    forked.join()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "temporary").mkdir()
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "one")
    return folder


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc, to see which processes are left")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # what was forked calls nothing of torch
@pytest.mark.parametrize("elsewhere", [False, True], ids=["same TMPDIR", "other TMPDIR"])
def test_a_killed_bisection(repository: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool) -> None:
    with bisecting(repository) as (killed, (tree, pid)), bisecting(repository) as (_, (live_tree, live_pid)):
        assert tree != live_tree
        assert lives(pid)
        killed.kill()
        killed.join()
        if elsewhere:
            monkeypatch.setattr(tempfile, "tempdir", str(repository.parent))
        with Repository(repository).worktree("HEAD") as ours:
            listed = git(repository, "worktree", "list")
            assert str(ours) in listed
            assert live_tree in listed
            assert tree not in listed
        assert Path(live_tree).is_dir()
        assert lives(live_pid)
        assert not Path(tree).parent.exists()
        for _ in range(600):
            if not lives(pid):
                break
            time.sleep(0.1)
        assert not lives(pid)
    with Repository(repository).worktree("HEAD"):
        pass
    assert not Path(live_tree).parent.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert os.listdir(repository.parent / "temporary") == []


def test_a_folder_that_only_looks_like_one_is_left_alone(repository: Path) -> None:
    temporary = repository.parent / "temporary"
    (temporary / "moeracle-bisect-mine.txt").write_text("mine")
    os.symlink(repository, temporary / "moeracle-bisect-link")
    with scratch("moeracle-bisect-") as folder:
        assert folder.is_dir()
    assert (temporary / "moeracle-bisect-mine.txt").read_text() == "mine"
    assert (repository / ".git").is_dir()


def test_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with process(WRITES, path) as (killed, said):
        assert said == "ready\n"
        (left,) = tmp_path.glob(".*")
        require_writable(path)
        assert left.exists(), "its writer lives"
        killed.kill()
        killed.wait()
        assert path.read_text() == "old"
        (tmp_path / ".report.json.mine.tmp").write_text("no temporary file of ours")
        require_writable(path)
        assert not left.exists()
    write_atomically(path, "newer")
    assert sorted(os.listdir(tmp_path)) == [".report.json.mine.tmp", "report.json"]
