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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from moeracle.files import STRICT, locked, parse_json, read_bytes, within
from moeracle.ref.errors import require

STAGED, DECIDED, JOURNAL = ".golden.new", ".golden.commit", "journal.json"
FORMAT_VERSION: Literal[1] = 1
_NAME = re.compile(r"(?:[a-z0-9_]+/)?[^/\\.][^/\\]*")


@dataclass(frozen=True)
class Journal:
    """What a swap does.

    Args:
        format_version: of the journal.
        put: path to (sha256 of what it replaces, or None where nothing was; sha256 of what comes), in order.
        drop: path to the sha256 of what goes.
    """

    format_version: Literal[1]
    put: dict[str, tuple[str | None, str]]
    drop: dict[str, str]

    __pydantic_config__: ClassVar[Any] = STRICT


def sha256_of(path: Path) -> str | None:
    """Return a file's SHA-256, or None if there is none."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


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
            journal = Journal(FORMAT_VERSION, put, gone)
            _write(staged / JOURNAL, json.dumps(asdict(journal), indent=1).encode())
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
    with settled(folder):
        return True


@contextmanager
def settled(folder: Path) -> Iterator[None]:
    """Keep writers of a folder waiting; what a crashed one left is finished or thrown away first, as by `recover`."""
    if not folder.is_dir():
        yield
        return
    with locked(folder):
        try:
            _finish(folder)
        except OSError as error:
            at = f"{folder}: an interrupted write must be finished first"
            raise ValueError(f"golden: {at}, but {error.filename or 'the folder'}: {error.strerror}") from None
        yield


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
        journal = parse_json(read_bytes(path, "golden"), Journal, "journal")
        strange = [name for name in (*journal.put, *journal.drop) if not _NAME.fullmatch(name)]
        require(not strange, f"got path {(strange or [''])[0]!r}")
        for name in (*journal.put, *journal.drop):
            within(path.parents[1], name, "journal")
    except ValueError as error:
        raise ValueError(f"golden: {path} is damaged ({error}); delete {path.parent} to do without its files") from None
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
