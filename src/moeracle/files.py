"""Files: written whole or not at all, and read within bounds and by a schema, whoever wrote them.

Everyone may use this module: it needs nothing but the standard library, and pydantic only where a file is read by a
schema.
"""

from __future__ import annotations

import base64
import errno
import lzma
import os
import re
import select
import shutil
import signal
import stat
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

try:
    import fcntl
except ImportError:  # pragma: no cover  (not on Windows: what a killed writer left stays there)
    fcntl = None  # type: ignore[assignment]

Schema = TypeVar("Schema")
STRICT: Any = {"strict": True, "extra": "forbid", "allow_inf_nan": False}  # a schema's __pydantic_config__
OPEN: Any = {**STRICT, "extra": "ignore"}  # of one that names only the fields that are used
MOST_BYTES = 64 << 20  # of one file that is read
MOST_VALUES = 600_000  # of a JSON file: about 500 MB in what a report makes of it
MOST_UNPACKED = 64 << 20  # bytes of what was packed
MOST_DICTIONARY = 128 << 20  # bytes that unpacking may take besides
MOST_ERRORS = 1000  # of a schema: beyond, a list of them would take more memory than the file
PATIENCE = 60.0  # seconds that a pipe's reader may take for its next bytes
READER_COMES = 10.0  # seconds that it may take to open the pipe


class FirstError:
    """Marks a schema's list: its first wrong item ends the reading, since a list of all errors can be vast."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {**handler(source), "fail_fast": True}


FIRST_ERROR = FirstError()


def require_writable(path: Path | None) -> None:
    """Raise ValueError if a file could not be written there: asked before a long run, not after it.

    What a killed run left of an earlier try is removed.
    """
    if path is None:
        return
    if path.suffix == ".py":
        raise ValueError(f"{path}: cannot be written, ends in .py as kernels do; must be another file")
    place = Path(os.path.realpath(path))
    if place.is_symlink():
        raise ValueError(f"{path}: cannot be written, is a symbolic link that leads back to itself; must be a file")
    stream = _is_stream(path)
    there = place if stream else place.parent
    if place.is_dir() or not (stream or there.is_dir()) or not os.access(there, os.W_OK):
        raise ValueError(f"{path}: cannot be written, must be a file in a folder that exists and can be written")
    if not stream:
        try:  # root may write anywhere, says access: also into /proc
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise ValueError(f"{path}: cannot be written: {error.strerror}, in its folder") from None
        _remove_abandoned(place)


def write_atomically(path: Path, content: bytes | str) -> Path:
    """Write a file so that a reader, in any process, sees the old one or the whole new one, whenever this is killed.

    A device or a pipe (/dev/stdout) is not replaced: the content goes through it; a symbolic link is followed.

    Args:
        path: of the file.
        content: all of it; text becomes UTF-8, and what no UTF-8 can say an escape.
    Returns:
        `path`.
    Raises:
        ValueError: `path` cannot be written.
        OSError: the disk is full, say; names `path`, which is as it was.
    """
    require_writable(path)
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    try:
        if _is_stream(path):
            _write_through(path, data)
        else:
            _replace(Path(os.path.realpath(path)), data)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    return path


def _is_stream(path: Path) -> bool:
    """Say whether a path is a device or a pipe, or, as /dev/stdout, a name of whatever file is behind it."""
    if os.path.abspath(path).startswith(("/dev/", "/proc/")):
        return path.exists()
    return path.exists() and not path.is_file() and not path.is_dir()


def _write_through(path: Path, data: bytes) -> None:
    handle = _opened(path)
    try:
        while data:
            if not select.select([], [handle], [], PATIENCE)[1]:
                raise OSError(errno.ETIMEDOUT, "whoever reads this pipe has stopped")
            with suppress(BlockingIOError):
                data = data[os.write(handle, data[: 1 << 16]) :]
    finally:
        os.close(handle)


def _opened(path: Path) -> int:
    """Open a device or a pipe for writing; a pipe that nobody reads is waited for, but not for ever."""
    until = time.monotonic() + READER_COMES
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > until:
                raise OSError(errno.ENXIO, "nobody reads this pipe") from None
        time.sleep(0.05)


def _replace(path: Path, data: bytes) -> None:
    handle, name = _temporary(path)
    with open(handle, "wb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(handle)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)  # mkstemp's 0600 would keep a CI's other users from reading the report
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


def _temporary(path: Path) -> tuple[int, str]:
    """Make a file beside another, locked for as long as this process lives: that says that it is not abandoned."""
    while True:
        handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent)
        lock(handle)
        if os.path.exists(name):
            return handle, name
        os.close(handle)  # another writer took it for abandoned before it was locked


def _prefix(path: Path) -> str:
    return f".{path.name[:100]}."  # a name may be 255 bytes long


def _remove_abandoned(path: Path) -> None:
    remove_abandoned_files(path.parent, _prefix(path))


def remove_abandoned_files(folder: Path, prefix: str = ".") -> None:
    """Remove the temporary files in a folder of writers that were killed: those that nobody holds a lock on.

    Args:
        folder: where they are.
        prefix: with which their names begin.
    """
    ours = re.compile(re.escape(prefix) + (r".+\." if prefix == "." else "") + r"[a-z0-9_]{8}\.tmp")
    for entry in os.scandir(folder):
        if ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            with suppress(OSError), open(entry.path, "rb") as file:
                if lock(file.fileno(), wait=False):
                    os.unlink(entry.path)


def lock(handle: int, *, wait: bool = True) -> bool:
    """Lock an open file or folder until it is closed or this process ends, however it ends.

    Args:
        handle: its file descriptor.
        wait: for another process that holds it.
    Returns:
        Whether it is locked now; False also where the file system has no locks.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes that lock the same file or folder waiting, where its file system can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        lock(handle)
        yield
    finally:
        os.close(handle)


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """Make a folder for what a block needs, and remove it afterwards, with those that killed processes left.

    Args:
        prefix: of its name, in the system's temporary folder; a process that is started with the folder's path in its
            environment is ended with the block, or where the folder is found abandoned.
    """
    remove_abandoned(Path(tempfile.gettempdir()).glob(f"{prefix}*"))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        handle = os.open(folder, os.O_RDONLY)
        lock(handle)
        if folder.exists():
            break
        os.close(handle)  # another process took it for abandoned before it was locked
    try:
        yield folder
    finally:
        _end_orphans(folder)  # a child in a session of its own may outlive the one that was waited for
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def remove_abandoned(folders: Iterable[Path]) -> list[Path]:
    """Remove the folders of `scratch` whose process has ended, and end what it had started; return their paths."""
    removed = []
    for folder in folders:
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            handle = os.open(folder, os.O_RDONLY)
            try:
                if lock(handle, wait=False):
                    _end_orphans(folder)
                    shutil.rmtree(folder, ignore_errors=True)
                    removed.append(folder)
            finally:
                os.close(handle)
    return removed


def _end_orphans(folder: Path) -> None:
    """Kill the processes that have a folder's path in their environment, where /proc can tell."""
    mark = os.fsencode(folder) + os.sep.encode()
    for _ in range(100):
        found = [pid for pid in _processes() if pid != os.getpid() and mark in _environment(pid)]
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.05)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # another user's, or it has ended
        return b""


def read_bytes(path: Path, what: str, most: int = MOST_BYTES) -> bytes:
    """Read a file whose size is known to be bounded before any of it is read.

    Args:
        path: of a regular file, or of a symbolic link to one.
        what: what it is called in messages.
        most: bytes.
    Raises:
        ValueError: in one line: there is no such file, it cannot be read, or it is too large.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{what}: {path} is no file")
            if status.st_size > most:
                raise ValueError(f"{what}: {path} has {status.st_size:,} bytes, must have at most {most:,}")
            data = file.read(most + 1)
    except OSError as error:
        said = "found no file" if isinstance(error, FileNotFoundError) else f"{error.strerror}:"
        raise ValueError(f"{what}: {said} {path}") from None
    if len(data) > most:
        raise ValueError(f"{what}: {path} grew beyond {most:,} bytes while it was read")
    return data


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for its writer


def parse_json(data: bytes, schema: type[Schema], where: str) -> Schema:
    """Read JSON by a schema.

    Args:
        data: the text in UTF-8.
        schema: a type whose fields say what may stand there, such as a dataclass; `__pydantic_config__` = STRICT makes
            every other field an error.
        where: the file's name, which begins every message.
    Returns:
        An instance of `schema`.
    Raises:
        ValueError: in one line that names the field.
    """
    from pydantic import ValidationError

    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > MOST_VALUES:
        raise ValueError(f"{where} has {values:,} values, must have at most {MOST_VALUES:,}")
    try:
        found: Schema = _adapter(schema).validate_json(data)  # type: ignore[arg-type]
        return found
    except ValidationError as error:
        if error.error_count() > MOST_ERRORS:
            raise ValueError(f"{where} has wrong fields ({error.error_count():,} of them)") from None
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place, said = ".".join(map(str, first["loc"])), " ".join(first["msg"].split())[:200]
    if first["type"] == "json_invalid":
        raise ValueError(f"{where} is not JSON ({said.removeprefix('Invalid JSON: ')})")
    if first["type"] == "value_error":
        raise ValueError(said.removeprefix("Value error, "))
    if first["type"] == "missing":
        raise ValueError(f"{where} has no {place}")
    raise ValueError(f"{where} has wrong fields ({f'{place}: ' if place else ''}{said})")


@cache
def _adapter(schema: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def read_json(path: Path, schema: type[Schema], what: str) -> Schema:
    """Read a JSON file by a schema; the arguments and errors are those of `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, what), schema, f"{what}: {path}")


def within(folder: Path, name: str, what: str) -> Path:
    """Return the path of a file that a manifest in a folder names.

    Raises:
        ValueError: in one line: the name, or a symbolic link, leads out of the folder.
    """
    top = os.path.realpath(folder)
    path = top if "\0" in name else os.path.realpath(folder / name)
    if os.path.commonpath((path, top)) != top or path == top:
        raise ValueError(f"{what}: {folder} names {name!r}, must be a file in that folder")
    return Path(path)


def from_base64(text: str, where: str) -> bytes:
    """Return the bytes of a base64 text, or raise ValueError in one line."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"{where} are damaged ({error})") from None


def unpack(data: bytes, how: str, most: int, where: str) -> bytes:
    """Unpack what xz or zlib packed, and never more than is known to be legal.

    Args:
        data: one stream.
        how: "xz" or "zlib".
        most: bytes that it may unpack to.
        where: what it is called in messages.
    Raises:
        ValueError: in one line: it is damaged, cut short, or larger.
    """
    reader: Any = zlib.decompressobj() if how == "zlib" else lzma.LZMADecompressor(lzma.FORMAT_XZ, MOST_DICTIONARY)
    try:
        content: bytes = reader.decompress(data, most + 1)
    except (zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{where} are damaged ({error})") from None
    if len(content) > most:
        raise ValueError(f"{where} unpack to more than {most:,} bytes")
    if not reader.eof or reader.unused_data:
        raise ValueError(f"{where} are damaged (the stream {'goes on' if reader.eof else 'is cut short'})")
    return content
