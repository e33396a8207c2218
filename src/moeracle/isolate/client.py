"""One child, as the judge sees it: it is asked, waited for with a limit, and its end has a name."""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import shutil
import signal
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from moeracle.properties.common.endings import Ended

from . import confine
from .frames import WireError, packed, unpacked
from .start import WITHOUT, NoChildError, nursery
from .wire import Window

SEALS = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_SEAL", 0)  # it stays as long as it is
ROOMY = 1 << 26  # bytes of the memory from the start: taken up only as they are written
TAIL = 4096  # bytes of its output that are kept
MOST_READS = 16  # of it, once the child has ended
SHOWN = 5  # lines of it that a failure shows
LOAD_SECONDS = 300.0  # for importing a TARGET
LOOK_EVERY = 0.2  # seconds between two questions whether a silent child is still there
SEND_SECONDS = 30.0  # for a question, which is short
GRACE = 2.0  # seconds that a child has to end after it has closed its connection
_OF_MEMORY = ("bad_alloc", "MemoryError", "out of memory", "annot allocate memory")


@dataclass(frozen=True)
class Limits:
    """What a child may use.

    Args:
        case_timeout: seconds for one call of the kernel, and for importing its TARGET; None: derived (remote.py).
        max_memory: bytes that it may map beyond what it starts with; None: any.
        adversarial: whether network, files and every right beyond its own are taken from it.
    """

    case_timeout: float | None = None
    max_memory: int | None = None
    adversarial: bool = False


class Child:
    """A process forked from the nursery, with memory that it shares with this one.

    Args:
        limits: what it may use.
    Raises:
        NoChildError: it cannot be started.
    """

    def __init__(self, limits: Limits) -> None:
        self.alive, self.buffer, self.tail, self.number = True, b"", b"", ""
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(SEND_SECONDS)
        self.out, out = os.pipe()
        self.memory = _shared_memory()
        self.window = Window(self.memory) if _sealed(self.memory) else None  # the judge maps what cannot shrink alone
        try:
            self.nursery = nursery()
            self.scratch = tempfile.mkdtemp(prefix="moeracle-scratch-") if limits.adversarial else ""
            message = {"do": "fork", "max_memory": limits.max_memory, "scratch": self.scratch}
            answer = self.nursery.ask(message, (theirs.fileno(), self.memory, out))
        finally:
            theirs.close()
            os.close(out)
        if "pid" not in answer:
            raise NoChildError(f"child: no process can be forked for a kernel ({answer.get('refused')}); {WITHOUT}")
        self.pid = int(answer["pid"])
        os.set_blocking(self.out, False)
        self.poll = select.poll()
        for fd in (self.sock.fileno(), self.out):
            self.poll.register(fd, select.POLLIN)

    def ask(self, message: dict[str, Any], seconds: float, what: str) -> dict[str, Any]:
        """Return the child's answer to one question.

        Args:
            message: with "do".
            seconds: how long it may take.
            what: what had not ended, for the text of a timeout.
        Raises:
            Ended: the child ended, or had to be ended, instead of answering.
        """
        self.put(message, what)
        return self.answer(seconds, what)

    def put(self, message: dict[str, Any], what: str) -> None:
        """Put one question to the child, whose `answer` is still to be waited for; arguments and errors as of `ask`."""
        self.number = secrets.token_hex(8)  # nobody answers what has not been asked
        self.tail = b""
        try:
            self.sock.sendall(packed({**message, "number": self.number}))
        except TimeoutError:
            raise self._hung(f"{what} had not begun: its process reads nothing") from None
        except OSError:
            raise self._gone() from None

    def answer(self, seconds: float, what: str, idle: float | None = None) -> dict[str, Any]:
        """Return the answer to the last question.

        Args:
            seconds, what: as of `ask`.
            idle: seconds that it may neither answer nor compute; None: any.
        Raises:
            Ended: as of `ask`.
        """
        end = time.monotonic() + seconds
        computed, since = -1, time.monotonic()
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise self._hung(f"{what} had not ended after {seconds:.0f} s (--case-timeout)")
            if idle is not None and confine.computed(self.pid) != computed:
                computed, since = confine.computed(self.pid), time.monotonic()
            if idle is not None and time.monotonic() - since > idle:
                raise self._hung(f"{what} had neither ended nor computed for {idle:g} s (--case-timeout)")
            events = self.poll.poll(min(left, LOOK_EVERY) * 1000)
            answer = self.answer_from({fd for fd, _ in events})
            if answer is not None:
                return answer
            if not events:
                self.still_there()

    def still_there(self) -> None:
        """Raise Ended if the process has ended."""
        if self.nursery.ask({"do": "status", "pid": self.pid})["status"] is not None:
            raise self._gone()

    def show_stack(self) -> None:
        """Let it write to its output where it stands: even where it waits in C, or holds Python's lock."""
        self.tail = b""
        self.nursery.ask({"do": "stack", "pid": self.pid})

    def stack(self) -> list[str]:
        """Return the places that it stands at since `show_stack`, innermost first: "FILE, line N in NAME"."""
        for _ in range(MOST_READS):
            with suppress(KeyError, OSError):
                self._drain()
        lines = self.tail.decode("utf-8", "replace").splitlines()
        own = lines[max((i for i, line in enumerate(lines) if line.startswith("Current thread")), default=0) :]
        shown = [line.strip().removeprefix("File ").replace('"', "") for line in own if line.startswith("  File ")]
        return ["".join(c if c.isprintable() else "?" for c in line)[:200] for line in shown]

    def _hung(self, text: str) -> Ended:
        self.close()
        return Ended("timeout", text, *self.said())

    def answer_from(self, fds: set[int]) -> dict[str, Any] | None:
        """Read what has come on some of its descriptors; return the answer to the last question, if it is there.

        Raises:
            Ended: it closed its connection, or wrote what is no message.
        """
        if self.out in fds:
            self._drain()
        if self.sock.fileno() not in fds:
            return None
        try:
            content = self.sock.recv(1 << 16)
        except OSError:
            content = b""
        if not content:
            raise self._gone()
        try:
            message, self.buffer = unpacked(self.buffer + content)
            while message is not None:
                if message.get("number") == self.number:
                    return message
                message, self.buffer = unpacked(self.buffer)  # a fork of the child's came back, perhaps
        except WireError as error:
            self.close()
            raise Ended("exit", f"wrote {error} to the judge", *self.said()) from None
        return None

    def _drain(self) -> None:
        try:
            content = os.read(self.out, 1 << 16)
        except BlockingIOError:
            return
        if not content:
            self.poll.unregister(self.out)
        self.tail = (self.tail + content)[-TAIL:]

    def _gone(self) -> Ended:
        """Return how a child ended that closed its connection."""
        end, status = time.monotonic() + GRACE, None
        while status is None and time.monotonic() < end:
            status = self.nursery.ask({"do": "status", "pid": self.pid})["status"]
            if status is None:
                time.sleep(0.01)
        self.close()
        if status is None:
            return Ended("exit", "closed its connection to the judge", *self.said())
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            with suppress(ValueError):
                name = f"{signal.Signals(number).name} ({signal.strsignal(number)})"
            if any(sign in self.tail.decode("utf-8", "replace") for sign in _OF_MEMORY):
                return Ended("memory", f"ran out of memory: killed by {name}", *self.said())
            hint = ", by itself or by a system that ran out of memory" if number == signal.SIGKILL else ""
            return Ended("crash", f"its process was killed by {name}{hint}", *self.said())
        return Ended("exit", f"ended its process with exit code {os.WEXITSTATUS(status)}", *self.said())

    def said(self) -> list[str]:
        """Return the last lines of the child's output, safe to print: of a crash, up to where the kernel stands."""
        if self.sock.fileno() >= 0:
            for _ in range(MOST_READS):
                with suppress(KeyError):  # its end was seen before
                    self._drain()
        lines = self.tail.decode("utf-8", "replace").splitlines()
        lines = [
            line for line in lines if line.strip() and not line.startswith(("Extension modules:", "Current thread"))
        ]
        ours = next((i for i, line in enumerate(lines) if "moeracle/properties/trial" in line), len(lines))
        shown = ["".join(c if c.isprintable() else "?" for c in line)[:200] for line in lines[:ours][-SHOWN:]]
        return [f"its output ended: {line.strip()}" for line in shown]

    def close(self) -> None:
        """End the child and whatever it started."""
        if self.alive:
            self.alive = False
            with suppress(NoChildError):
                self.nursery.ask({"do": "end", "pid": self.pid})

    def release(self) -> None:
        """End it, and give back what it had open; a second call does nothing."""
        self.close()
        if self.sock.fileno() >= 0:
            if self.scratch:
                shutil.rmtree(self.scratch, ignore_errors=True)
            self.sock.close()
            os.close(self.out)
            if self.window is not None:
                self.window.close()
            os.close(self.memory)


def _sealed(memory: int) -> bool:
    """Say whether memory can never become shorter: reading what is mapped of it could end the process that reads."""
    try:
        return SEALS != 0 and fcntl.fcntl(memory, fcntl.F_GET_SEALS) & SEALS == SEALS
    except (OSError, AttributeError):
        return False


def _shared_memory() -> int:
    """Return the descriptor of a file in memory.

    Raises:
        NoChildError: there is none to be had.
    """
    try:
        if hasattr(os, "memfd_create"):
            memory = os.memfd_create("moeracle", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            with suppress(OSError, AttributeError):  # whose sealing a system does not know is only read and written
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
        else:
            with tempfile.TemporaryFile() as file:
                memory = os.dup(file.fileno())
        os.ftruncate(memory, ROOMY)
        return memory
    except OSError as error:
        raise NoChildError(
            f"child: no memory to share with the process that kernels run in ({error.strerror}); {WITHOUT}"
        ) from None
