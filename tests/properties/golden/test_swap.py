"""A set is written as one: a process that is killed at any of its steps leaves the old set or the new one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moeracle.properties.golden import swap as swap_module
from moeracle.properties.golden.store import GoldenSet, manifest_digest, read_set, write_set
from moeracle.properties.golden.swap import DECIDED, STAGED, recover, swap

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
OLD = {"manifest.json": b"old", "a/1": b"one", "a/2": b"two", "b/3": b"three"}
NEW = {"manifest.json": b"new", "a/1": b"uno", "a/2": b"two", "c/4": b"quattro"}
DROP = ["b/3"]


def files(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder; an empty folder left behind counts as one."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return found | {f"{p.relative_to(folder)}/": b"" for p in folder.rglob("*") if p.is_dir() and not any(p.iterdir())}


def put(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do some work in a process that is killed with SIGKILL before its nth change to the disk; return whether it was.

    Opening a file to write, fsync, rename, remove, mkdir and rmdir are changes; the interpreter itself reports them.
    """
    child = os.fork()
    if child == 0:
        done = [0]

        def count(event: str, arguments: tuple[object, ...]) -> None:
            writes = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
            if event in CHANGES or writes:
                done[0] += 1
                if done[0] == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        right = os.fsync

        def fsync(handle: int) -> None:
            count("os.mkdir", ())
            right(handle)

        try:
            os.fsync = fsync  # type: ignore[assignment]
            sys.addaudithook(count)
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def do_swap(folder: Path) -> None:
    swap(folder, NEW, "manifest.json", DROP)


def test_killed_at_each_step_it_is_the_old_set_or_the_new(tmp_path: Path) -> None:
    outcomes = []
    for step in range(1, 200):
        folder = tmp_path / str(step)
        put(folder, OLD)
        if not killed_at(step, lambda folder=folder: do_swap(folder)):
            break
        recover(folder)
        found = files(folder)
        assert found in (OLD, NEW), (step, found)
        outcomes.append(found == NEW)
    assert files(folder) == NEW  # the one that nobody killed
    assert outcomes == sorted(outcomes)  # one moment decides
    assert outcomes.count(False) >= 8
    assert outcomes.count(True) >= 8


def test_recovery_may_be_killed_too(tmp_path: Path) -> None:
    first = next(step for step in range(1, 99) if _decided(tmp_path / f"find{step}", step))
    for step in range(1, 99):
        folder = tmp_path / str(step)
        assert _decided(folder, first)
        again = killed_at(step, lambda folder=folder: recover(folder))
        recover(folder)
        assert files(folder) == NEW, step
        if not again:
            break
    assert step > 8


def _decided(folder: Path, step: int) -> bool:
    put(folder, OLD)
    killed_at(step, lambda: do_swap(folder))
    return (folder / DECIDED).is_dir()


def test_moving_files_one_by_one_does_not_pass(tmp_path: Path) -> None:
    """The checks above can fail: without a journal there is a step after which neither set is there."""

    def naive(folder: Path) -> None:
        for name, data in NEW.items():
            put(folder, {name + ".tmp": data})
            os.replace(folder / (name + ".tmp"), folder / name)
        (folder / DROP[0]).unlink()

    seen = []
    for step in range(1, 30):
        folder = tmp_path / str(step)
        put(folder, OLD)
        if not killed_at(step, lambda folder=folder: naive(folder)):
            break
        recover(folder)
        seen.append(files(folder) in (OLD, NEW))
    assert False in seen


def test_a_set_killed_while_it_is_written_reads_as_the_old_or_the_new(tmp_path: Path, small: GoldenSet) -> None:
    fewer = GoldenSet([e for e in small.entries if e.op != "silu_and_mul"], small.inputs, small.results)
    reads = set()
    for step in range(1, 60, 3):
        folder = tmp_path / str(step)
        write_set(folder, small)
        if not killed_at(step, lambda folder=folder: write_set(folder, fewer)):
            break
        reads.add(len(read_set(folder).entries))
        write_set(folder, fewer)
        assert len(read_set(folder).entries) == len(fewer.entries)
    assert reads == {len(small.entries), len(fewer.entries)}


def test_the_first_write_of_a_set_too(tmp_path: Path) -> None:
    for step in range(1, 200, 2):
        folder = tmp_path / str(step)
        folder.mkdir()
        if not killed_at(step, lambda folder=folder: swap(folder, NEW, "manifest.json", [])):
            break
        recover(folder)
        assert files(folder) in ({}, NEW)


def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, OLD)

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(swap_module, "_write", full)
    with pytest.raises(OSError, match="No space"):
        do_swap(tmp_path)
    assert files(tmp_path) == OLD


def interrupted(folder: Path) -> Path:
    """A swap that was decided and not begun."""
    put(folder, OLD)
    decided = folder / DECIDED
    put(decided, {name: NEW[name] for name in ("manifest.json", "a/1", "c/4")})
    sha = lambda data: hashlib.sha256(data).hexdigest()
    journal = {name: [sha(OLD[name]) if name in OLD else None, sha(NEW[name])] for name in ("a/1", "c/4")}
    journal["manifest.json"] = [sha(b"old"), sha(b"new")]
    plain = {"format_version": 1, "put": journal, "drop": {"b/3": sha(b"three")}}
    (decided / "journal.json").write_text(json.dumps(plain))
    return decided


def test_recovering_needs_nothing_but_what_is_on_the_disk(tmp_path: Path) -> None:
    interrupted(tmp_path)
    assert recover(tmp_path)
    assert files(tmp_path) == NEW
    assert not recover(tmp_path)


@pytest.mark.parametrize("name", ["a/1", "b/3", "c/4", "manifest.json"])
def test_what_was_changed_since_is_not_overwritten(tmp_path: Path, name: str) -> None:
    interrupted(tmp_path)
    put(tmp_path, {name: b"mine"})
    before = files(tmp_path)
    with pytest.raises(ValueError, match=rf"{name}.* was changed since; put it back, or delete") as caught:
        recover(tmp_path)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format_version": 2, "put": {}, "drop": {}}', '{"format_version": 1, "put": 3, "drop": {}}',
     '{"format_version": 1, "put": {"../x": [null, "0"]}, "drop": {}}',
     '{"format_version": 1, "put": {}, "drop": {"/etc/passwd": "0"}}'],
)  # fmt: skip
def test_a_damaged_journal_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    decided = interrupted(tmp_path)
    (decided / "journal.json").write_text(text)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"journal.json is damaged \(.*\); delete .* to do without") as caught:
        recover(tmp_path)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


def test_half_written_files_of_a_crash_are_thrown_away(folder: Path) -> None:
    put(folder / STAGED, {"manifest.json": b"half"})
    before = len(files(folder))
    read_set(folder)
    assert not (folder / STAGED).exists()
    assert len(files(folder)) == before - 1


def test_two_writers_do_not_lose_each_others_entries(folder: Path, small: GoldenSet) -> None:
    base = manifest_digest(folder)
    fewer = GoldenSet(small.entries[1:], small.inputs, small.results)
    write_set(folder, fewer, base)
    before = files(folder)
    with pytest.raises(ValueError, match="was changed while this ran; nothing was written"):
        write_set(folder, small, base)
    assert files(folder) == before


def test_a_file_that_the_set_never_held_is_not_overwritten(tmp_path: Path, small: GoldenSet) -> None:
    mine = small.entries[0].file
    put(tmp_path, {mine: b"mine"})
    with pytest.raises(ValueError, match="is there but not in a manifest; nothing was written"):
        write_set(tmp_path, small)
    assert files(tmp_path) == {mine: b"mine"}
