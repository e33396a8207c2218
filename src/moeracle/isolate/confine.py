"""What a kernel's process may not do to the judge, as far as Linux lets an unprivileged process say so.

A child cannot read or write the judge's memory (no CAP_SYS_PTRACE, a judge that is not dumpable, no process_vm_readv),
and cannot signal, slow down or limit it, its ancestors or the process that forks the children (a seccomp filter on the
system calls that take a pid); where the system has Landlock it signals nobody but what it started, and changes no file
of /proc or /sys but its own. On other systems nothing here does anything.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER = 1, 4, 24, 36
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
# CAP_KILL, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, SYS_BOOT, SYS_NICE, SYS_RESOURCE, SYS_TIME, PERFMON and BPF:
# each reads or writes the memory of other processes, ends them or lets them wait.
_OVER_OTHERS, _CAPABILITY_VERSION = (5, 16, 17, 19, 21, 22, 23, 24, 25, 38, 39), 0x20080522
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ERRNO with EPERM
_EVERYONE = 0xFFFFFFFF  # kill(-1)
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_AT_ONCE = 100  # values that one jump can pass over
_X32 = 0x40000000  # from here on the numbers of x86-64's second set of system calls
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # on every machine
_SCOPE_SIGNAL = 1 << 1
_WRITE_RIGHTS = 1 << 1 | sum(1 << n for n in range(4, 13))  # write, remove and make files of every kind
AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 2, 10, 16, 17


# Of fcntl: F_SETOWN, F_SETSIG, F_SETOWN_EX; of ioctl: FIOSETOWN, SIOCSPGRP, TIOCSTI. Each lets the system send a
# signal, or what is typed, to a process of one's choice.
_OWNERS, _TYPED = (8, 10, 15), (0x8901, 0x8902, 0x5412)


class _Machine(NamedTuple):
    audit: int
    always: tuple[int, ...]  # ptrace, process_vm_readv, process_vm_writev, pidfd_getfd, pidfd_send_signal, tkill
    signals: tuple[int, ...]  # kill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_open: the first is a pid
    schedules: tuple[int, ...]  # sched_setparam, sched_setscheduler, sched_setaffinity, sched_setattr: likewise
    second: tuple[int, ...]  # setpriority, ioprio_set: the second is a pid
    prlimit: int
    fcntl: int
    ioctl: int
    socket: int
    ring: int  # io_uring_setup, whose operations no filter sees


_MACHINES = {
    "x86_64": _Machine(
        0xC000003E, (101, 310, 311, 438, 424, 200), (62, 234, 129, 297, 434), (142, 144, 203, 314), (141, 251),
        302, 72, 16, 41, 425,
    ),
    "aarch64": _Machine(
        0xC00000B7, (117, 270, 271, 438, 424, 130), (129, 131, 138, 240, 434), (118, 119, 122, 274), (140, 30),
        261, 25, 29, 198, 425,
    ),
}  # fmt: skip


class _Rule(NamedTuple):
    number: int  # of a system call
    values: Sequence[int] = ()  # of one argument; none: it is denied whatever they are
    argument: int = 0
    allowed: bool = False  # whether it is allowed with these values only, in place of denied with them


def _prctl(option: int, first: int = 0, second: int = 0) -> int:
    if not sys.platform.startswith("linux"):
        return -1
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.prctl(option, ctypes.c_ulong(first), ctypes.c_ulong(second), 0, 0))


def hide_memory() -> None:
    """Let no other process of this user read or write this one's memory."""
    _prctl(_PR_SET_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Become the parent of whatever this process's descendants leave behind."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Be killed when the process that forked this one ends."""
    _prctl(_PR_SET_PDEATHSIG, 9)


def drop_capabilities(every: bool = False) -> None:
    """Give up the rights over other processes, or every right that root has beyond other users'."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("<Ii", _CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(24)
    if libc.capget(header, held):
        return
    numbers = range(64) if every else _OVER_OTHERS
    kept = ~sum(1 << number for number in numbers) & 0xFFFFFFFFFFFFFFFF
    low, high = kept & 0xFFFFFFFF, kept >> 32
    words = [w & (low if i < 3 else high) for i, w in enumerate(struct.unpack("<6I", held.raw))]
    for number in numbers:
        _prctl(_PR_CAPBSET_DROP, number)
    libc.capset(header, struct.pack("<6I", *words))


def limit_memory(most: int) -> None:
    """Let this process map at most `most` bytes more than it has now."""
    with suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + most, now + most))


def be_killed_first() -> None:
    """Where the machine runs out of memory, be what the system ends, before the judge; and leave no core file."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def filter_calls(protected: Iterable[int], adversarial: bool = False) -> bool:
    """Deny system calls that reach other processes' memory, or signal one of `protected`; return whether it is so now.

    Args:
        protected: process ids.
        adversarial: deny signals to every process but this one, and sockets of the internet.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None or not sys.platform.startswith("linux"):
        return False
    others = [pid for pid in protected if pid > 0]
    pids = [*others, *(-pid & 0xFFFFFFFF for pid in others), _EVERYONE]
    mine = (0, os.getpid())
    rules = [_Rule(number) for number in machine.always]
    rules += [_Rule(number, mine if adversarial else pids, 0, adversarial) for number in machine.signals]
    rules += [_Rule(number, pids) for number in machine.schedules]
    rules += [_Rule(number, pids, 1) for number in machine.second]
    rules += [_Rule(machine.prlimit, mine, 0, True), _Rule(machine.fcntl, _OWNERS, 1), _Rule(machine.ioctl, _TYPED, 1)]
    if adversarial:
        rules += [_Rule(machine.ring), _Rule(machine.socket, (AF_INET, AF_INET6, AF_NETLINK, AF_PACKET))]
    program = _program(machine.audit, rules)
    block = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(block))
    place = ctypes.create_string_buffer(header, len(header))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    return _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(place)) == 0


def _program(audit: int, rules: Sequence[_Rule]) -> bytes:
    """Return BPF that denies system calls as the rules say, and every call of another machine's set."""
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _DENY), (_LOAD, 0, 0, 0)]
    lines += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _DENY)]
    for number, values, argument, allowed in rules:
        for start in range(0, max(1, len(values)), _AT_ONCE):
            block = [(_LOAD, 0, 0, 16 + 8 * argument)] if values else []  # its lower half
            for value in values[start : start + _AT_ONCE]:
                block += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW if allowed else _DENY)]
            if allowed or not values:
                block.append((_RETURN, 0, 0, _DENY))
            lines += [(_LOAD, 0, 0, 0), (_EQUAL, 0, len(block), number), *block]
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def write_only_below(folders: Iterable[str]) -> bool:
    """Let this process change files below some folders (or devices) only, and signal only what it starts: by Landlock.

    Args:
        folders: paths; those that are not there are left out.
    Returns:
        Whether files are so now; signals are from Linux 6.12 on.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    rights = _WRITE_RIGHTS | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)  # refer, truncate
    wanted = struct.pack("QQQ", rights, 0, _SCOPE_SIGNAL) if version >= 6 else struct.pack("Q", rights)
    rules = libc.syscall(_LANDLOCK_CREATE, wanted, len(wanted), 0)
    if rules < 0:
        return False
    for folder in folders:
        with suppress(OSError):
            place = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            allowed = rights if os.path.isdir(folder) else rights & (1 << 1 | 1 << 14)
            libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, place), 0)
            os.close(place)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    done = libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0
    os.close(rules)
    return bool(done)


def all_but_the_systems() -> list[str]:
    """Return what a child may change: all but /proc, /sys, and the terminals, on which it could forge a verdict."""
    try:
        names = [f"/{name}" for name in os.listdir("/") if name not in ("proc", "sys", "dev")]
        names += [
            f"/dev/{name}" for name in os.listdir("/dev") if not name.startswith(("pts", "tty", "console", "vcs"))
        ]
    except OSError:
        return []
    return [*names, "/proc/self"]


def ancestors(pid: int) -> list[int]:
    """Return the ids of a process's parent, its parent's and so on, without the first process of all."""
    parents = {child: int(fields[1]) for child, fields in _processes()}
    found: list[int] = []
    while parents.get(pid, 0) > 1:
        pid = parents[pid]
        found.append(pid)
    return found


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children, where the system says."""
    return [child for child, fields in _processes() if fields[1] == str(pid)]


def computed(session: int) -> int:
    """Return how long the processes of a session have computed, in the system's ticks; 0 where it does not say."""
    return sum(sum(map(int, fields[11:15])) for _, fields in _processes() if fields[3] == str(session))


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Yield (id, fields of its stat file after the name) of every process."""
    with suppress(OSError):
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with suppress(OSError), open(f"/proc/{entry}/stat") as file:
                    yield int(entry), file.read().rpartition(")")[2].split()
