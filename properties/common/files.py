"""Writing one file: whole or not at all, and never over what cannot be meant, such as the kernel that was judged."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def require_writable(path: Path | None) -> None:
    """Raise ValueError if a file could not be written there: asked before a long run, not after it."""
    if path is None:
        return
    if path.suffix == ".py":
        raise ValueError(f"{path}: cannot be written, ends in .py as kernels do; must be another file")
    stream = _is_stream(path)
    place = path if stream else path.parent
    if path.is_dir() or not (stream or place.is_dir()) or not os.access(place, os.W_OK):
        raise ValueError(f"{path}: cannot be written, must be a file in a folder that exists and can be written")
    if not stream:
        try:  # root may write anywhere, says access: also into /proc
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            raise ValueError(f"{path}: cannot be written: {error.strerror}, in its folder") from None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then move it to `path`: a reader sees the old file or the whole new one.

    A device or a pipe (/dev/stdout) is not replaced: what was written goes through it.

    Raises:
        ValueError: `path` cannot be written.
        OSError: the disk is full, say; names `path`, which is as it was.
    """
    require_writable(path)
    stream = _is_stream(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=None if stream else path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            if stream:
                path.write_bytes(temporary.read_bytes())
            else:
                mask = os.umask(0)
                os.umask(mask)
                temporary.chmod(0o666 & ~mask)  # mkstemp's 0600 would keep a CI's other users from reading the report
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _is_stream(path: Path) -> bool:
    """Say whether the path is there, but neither a file nor a folder."""
    return path.exists() and not path.is_file() and not path.is_dir()
