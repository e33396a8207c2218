"""The process that forks a child for every kernel: it has imported torch and this library, and knows nothing else.

It is started once, early, as `python -m moeracle.isolate.nursery FD`, and ends when the judge's end of the socket does.
A child that it forks shares no memory that the judge ever wrote.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from . import confine, serve
from .frames import packed, unpacked

MOST_GENERATIONS = 100  # of processes that a child left behind
MOST_PROTECTED = 50  # other children that a child cannot signal where there is no Landlock: a filter has an end
FDS = 3  # the child's socket, its memory, and where its standard output and error go


def _receive(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return one message and the descriptors that came with it; {} at the end."""
    buffer, fds = b"", list[int]()
    while True:
        content, more, _, _ = socket.recv_fds(control, 1 << 16, FDS)
        fds += more
        for fd in more:
            os.set_inheritable(fd, False)  # a program that a child becomes, or starts, has no way to the judge
        if not content:
            return {}, fds
        buffer += content
        message, buffer = unpacked(buffer)
        if message is not None:
            return message, fds


def _fork(control: socket.socket, message: dict[str, Any], fds: list[int], protected: Iterable[int]) -> int:
    protected = (*protected, os.getpid())
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        control.close()
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        confine.die_with_parent()
        confine.be_killed_first()
        out = fds[2]
        for standard in (1, 2):
            os.dup2(out, standard)
        os.close(out)
        if message["scratch"]:
            confine.drop_capabilities(every=True)
            message["files"] = confine.write_only_below([message["scratch"], *serve.DEVICES])
        else:
            confine.write_only_below(confine.all_but_the_systems())
        message["calls"] = confine.filter_calls(protected, bool(message["scratch"]))
        serve.serve(socket.socket(fileno=fds[0]), fds[1], message)
        code = 0
    finally:
        os._exit(code)


def _status(pid: int, wait: bool = False) -> int | None:
    """Return how a child ended, as os.waitpid says it, or None while it has not."""
    try:
        found, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    except ChildProcessError:
        return 0
    return status if found else None


def main(fd: int) -> None:
    """Serve the judge until it closes its end of the socket.

    Args:
        fd: this end of it.
    """
    control = socket.socket(fileno=fd)
    judge = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    others = (judge, os.getpgid(judge), *confine.ancestors(judge))
    confine.adopt_orphans()
    confine.hide_memory()
    confine.drop_capabilities()
    serve.warm_up()
    ended: dict[int, int] = {}
    alive: set[int] = set()
    control.sendall(packed({"ready": os.getpid()}))
    while True:
        message, fds = _receive(control)
        if not message:
            break
        if message["do"] == "fork":
            answer: dict[str, Any]
            try:
                pid = _fork(control, message, fds, (*others, *sorted(alive)[-MOST_PROTECTED:]))
                alive.add(pid)
                answer = {"pid": pid}
            except OSError as error:
                answer = {"refused": error.strerror}
            for one in fds:
                os.close(one)
        else:
            pid = message["pid"]
            if message["do"] == "end" and pid in alive:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            elif message["do"] == "stack" and pid in alive:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGUSR1)
            status = ended[pid] if pid in ended else _status(pid, wait=message["do"] == "end")
            if status is not None and pid in alive:
                ended[pid] = status
                alive.discard(pid)
                _end_strays(alive)
            answer = {"status": status}
        control.sendall(packed(answer))
    for pid in alive:
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    _end_strays(set())


def _end_strays(alive: set[int]) -> None:
    """End what children left behind: this process adopts it, and then what that had started in turn."""
    for _ in range(MOST_GENERATIONS):
        strays = [stray for stray in confine.children_of(os.getpid()) if stray not in alive]
        if not strays:
            return
        for stray in strays:
            with suppress(OSError):
                os.kill(stray, signal.SIGKILL)
        for stray in strays:
            with suppress(OSError):
                os.waitpid(stray, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
