"""Starting the process that forks the children: early, while the judge itself is still importing torch."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from . import confine
from .frames import WireError, packed, unpacked

START_SECONDS = 300.0


class NoChildError(ValueError):
    """A process of their own cannot be started for kernels; one line."""


class Nursery:
    """The judge's end of the process that forks children; one for each process, made by `nursery()`."""

    def __init__(self) -> None:
        package = str(Path(__file__).resolve().parents[2])
        paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        try:
            self.said = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
            self.control, theirs = socket.socketpair()
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "moeracle.isolate.nursery", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said,
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"},
                )  # fmt: skip
        except OSError as error:
            raise NoChildError(f"{_NO_CHILD} ({error.strerror}); {WITHOUT}") from None
        self.owner, self.buffer, self.ready = os.getpid(), b"", False
        self.lock = threading.Lock()
        confine.hide_memory()

    def ask(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
        """Return its answer to one message.

        Args:
            message: with "do": fork, status or end.
            fds: descriptors that go with it.
        Raises:
            NoChildError: it is gone, or has not started.
        """
        with self.lock:
            if not self.ready:
                self.ready = bool(self._answer(START_SECONDS))
            try:
                socket.send_fds(self.control, [packed(message)], fds)
            except OSError:
                raise NoChildError(self._why()) from None
            return self._answer(START_SECONDS)

    def _answer(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while True:
            ready, _, _ = select.select([self.control], [], [], max(0.0, end - time.monotonic()))
            content = self.control.recv(1 << 16) if ready else b""
            if not content:
                raise NoChildError(self._why())
            try:
                message, self.buffer = unpacked(self.buffer + content)
            except WireError as error:
                raise NoChildError(f"{_NO_CHILD} ({error}); {WITHOUT}") from None
            if message is not None:
                return message

    def _why(self) -> str:
        self.said.seek(0)
        lines = self.said.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
        status = self.process.poll()
        why = lines[-1][:200] if lines else "it ended" if status is None else f"it ended with {status}"
        return f"{_NO_CHILD} ({why}); {WITHOUT}"

    @property
    def usable(self) -> bool:
        """Whether it runs, and is this process's own: not its parent's, from before a fork."""
        return self.owner == os.getpid() and self.process.poll() is None


_NO_CHILD = "child: the process that kernels run in could not be started"
WITHOUT = "--in-process judges without one"
_ONE: list[Nursery] = []


def nursery() -> Nursery:
    """Return this process's nursery, started if there is none.

    Raises:
        NoChildError: it cannot be started.
    """
    if not _ONE or not _ONE[0].usable:
        _ONE[:] = [Nursery()]
    return _ONE[0]


def start_early(wanted: bool) -> None:
    """Start the nursery before torch is imported here; a failure shows when the first child is wanted."""
    if wanted:
        try:
            nursery()
        except NoChildError:
            return
