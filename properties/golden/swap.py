"""Putting many files in the place of others as one: after a crash at any moment all are as before, or all are new.

    DIR/.golden.new/     the new files, and journal.json: what is replaced and dropped, with the old and the new sha256
    DIR/.golden.commit/  the same, renamed once it is complete: from then on the new files count

A crash before the rename leaves the old files as they were, and `.golden.new` is thrown away. A crash after it leaves
files that `recover` moves into place: the next command that reads the folder does so first. A file that somebody
changed in between is neither old nor new: it is not touched, and the user gets a message.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover  (not on Windows: two writers at once are not kept apart there)
    fcntl = None  # type: ignore[assignment]

from moeracle.ref.errors import require

STAGED, DECIDED, JOURNAL = ".golden.new", ".golden.commit", "journal.json"
FORMAT_VERSION = 1
_NAME = re.compile(r"(?:[a-z0-9_]+/)?[^/\\]+")


@dataclass(frozen=True)
class Journal:
    """What a swap does.

    Args:
        put: path to (sha256 of what it replaces, or None where nothing was; sha256 of what comes), in order.
        drop: path to the sha256 of what goes.
    """

    put: dict[str, tuple[str | None, str]]
    drop: dict[str, str]


def sha256_of(path: Path) -> str | None:
    """Return a file's SHA-256, or None if there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other writers of a folder waiting, where its file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            with suppress(OSError):  # some network file systems have no locks: one writer is as safe there
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def swap(
    folder: Path, new: dict[str, bytes], last: str, drop: list[str], check: Callable[[], None] | None = None
) -> None:
    """Put files in place, all or none of them.

    Args:
        folder: of the set; it is there.
        new: path in the folder to content; what is there already with these bytes is left alone.
        last: of `new`, the file that comes last.
        drop: paths that go.
        check: called with the folder locked, before anything is written; raises if the files are not as they were.
    Raises:
        OSError: before the swap was decided, nothing has changed; after it, `recover` finishes.
    """
    with locked(folder):
        _finish(folder)
        if check:
            check()
        order = [*(name for name in new if name != last), last]
        before = {name: sha256_of(folder / name) for name in order}
        after = {name: hashlib.sha256(new[name]).hexdigest() for name in order}
        put = {name: (before[name], after[name]) for name in order if before[name] != after[name]}
        gone = {name: sha for name in drop if (sha := sha256_of(folder / name)) is not None}
        staged = folder / STAGED
        staged.mkdir()
        try:
            for name in put:
                (staged / name).parent.mkdir(exist_ok=True)
                _write(staged / name, new[name])
            journal = {"format_version": FORMAT_VERSION, "put": put, "drop": gone}
            _write(staged / JOURNAL, json.dumps(journal, indent=1).encode())
        except OSError as error:  # a full disk, say; a crash leaves the folder, which the next command throws away
            shutil.rmtree(staged, ignore_errors=True)
            raise OSError(error.errno, error.strerror, str(folder)) from error
        for path in {staged, *((staged / name).parent for name in put)}:
            _sync(path)
        os.rename(staged, folder / DECIDED)
        _sync(folder)
        _finish(folder)


def recover(folder: Path) -> bool:
    """Finish, or throw away, what a crashed swap left in a folder; return whether there was anything.

    Raises:
        ValueError: in one line: a file was changed since, or the folder cannot be written.
    """
    if not ((folder / STAGED).is_dir() or (folder / DECIDED).is_dir()):
        return False
    try:
        with locked(folder):
            _finish(folder)
    except OSError as error:
        at = f"{folder}: an interrupted write must be finished first"
        raise ValueError(f"golden: {at}, but {error.filename or 'the folder'}: {error.strerror}") from None
    return True


def _finish(folder: Path) -> None:
    decided, staged = folder / DECIDED, folder / STAGED
    if staged.is_dir():
        shutil.rmtree(staged)
    if not decided.is_dir():
        return
    # The journal goes last of all: without it everything that it names is in place.
    if (decided / JOURNAL).is_file():
        journal = _read(decided / JOURNAL)
        _refuse_if_changed(folder, journal)
        for name, (_, sha) in journal.put.items():
            if sha256_of(folder / name) != sha:
                (folder / name).parent.mkdir(exist_ok=True)
                os.replace(decided / name, folder / name)
        for name in journal.drop:
            (folder / name).unlink(missing_ok=True)
        for parent in {(folder / name).parent for name in journal.drop}:
            if parent != folder and parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        for parent in {folder, *((folder / name).parent for name in journal.put)}:
            _sync(parent)
        for left in sorted(decided.iterdir()):
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name != JOURNAL:
                left.unlink()
        (decided / JOURNAL).unlink()
    shutil.rmtree(decided)


def _read(path: Path) -> Journal:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        require(plain["format_version"] == FORMAT_VERSION, f"got format_version {plain['format_version']!r}")
        put = {str(name): (old, str(new)) for name, (old, new) in plain["put"].items()}
        journal = Journal(put, {str(name): str(sha) for name, sha in plain["drop"].items()})
        strange = [name for name in (*journal.put, *journal.drop) if not _NAME.fullmatch(name) or name.startswith(".")]
        require(not strange, f"got path {(strange or [''])[0]!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:100]
        raise ValueError(f"golden: {path} is damaged ({said}); delete {path.parent} to do without its files") from None
    return journal


def _refuse_if_changed(folder: Path, journal: Journal) -> None:
    for name, (old, new) in journal.put.items():
        now = sha256_of(folder / name)
        staged = sha256_of(folder / DECIDED / name)
        theirs = now not in (old, new)
        require(
            not theirs and (now == new or staged == new),
            f"golden: {folder / DECIDED} holds a write that was interrupted, but {name} was changed since; "
            f"put it back, or delete {folder / DECIDED} to do without the new files",
        )
    for name, old in journal.drop.items():
        require(
            sha256_of(folder / name) in (old, None),
            f"golden: {folder / DECIDED} holds a write that was interrupted and drops {name}, which was changed since; "
            f"put it back, or delete {folder / DECIDED} to do without the new files",
        )


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Let what was renamed in a folder reach the disk, where its file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
