"""What a kernel's process may not do to the judge, as far as Linux lets an unprivileged process say so.

A child cannot read or write the judge's memory (no CAP_SYS_PTRACE, a judge that is not dumpable, no process_vm_readv),
and cannot signal it or the process that forks the children (a seccomp filter on the system calls that take a pid). On
other systems nothing here does anything.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER = 1, 4, 24, 36
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
# CAP_SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, SYS_BOOT, PERFMON and BPF: each reads or writes the memory of other
# processes, or ends them all.
_OVER_OTHERS, _CAPABILITY_VERSION = (16, 17, 19, 21, 22, 38, 39), 0x20080522
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ERRNO with EPERM
_EVERYONE = 0xFFFFFFFF  # kill(-1)
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # on every machine
_WRITE_RIGHTS = 1 << 1 | sum(1 << n for n in range(4, 13))  # write, remove and make files of every kind
AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 2, 10, 16, 17


class _Machine(NamedTuple):
    audit: int
    always: tuple[int, ...]  # ptrace, process_vm_readv, process_vm_writev, pidfd_getfd
    first_is_pid: tuple[int, ...]  # kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_open, prlimit64
    socket: int
    ring: int  # io_uring_setup, whose operations no filter sees


_MACHINES = {
    "x86_64": _Machine(0xC000003E, (101, 310, 311, 438), (62, 200, 234, 129, 297, 434, 302), 41, 425),
    "aarch64": _Machine(0xC00000B7, (117, 270, 271, 438), (129, 130, 131, 138, 240, 434, 261), 198, 425),
}


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
    pids = [*(pid for pid in protected if pid > 0), *(-pid & 0xFFFFFFFF for pid in protected if pid > 0), _EVERYONE]
    rules: list[tuple[int, Sequence[int]]] = [(number, ()) for number in machine.always]
    rules += [(number, pids) for number in machine.first_is_pid]
    if adversarial:
        rules += [(machine.ring, ()), (machine.socket, (AF_INET, AF_INET6, AF_NETLINK, AF_PACKET))]
    alone = dict.fromkeys(machine.first_is_pid, (0, os.getpid())) if adversarial else {}
    program = _program(machine.audit, rules, alone)
    block = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(block))
    place = ctypes.create_string_buffer(header, len(header))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    return _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(place)) == 0


def _program(audit: int, rules: Sequence[tuple[int, Sequence[int]]], alone: Mapping[int, Sequence[int]]) -> bytes:
    """Return BPF that denies system calls by number, some only where their first argument is one of some values.

    `alone` holds those that are allowed only where it is one of these.
    """
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _DENY), (_LOAD, 0, 0, 0)]
    for number, values in rules:
        if not values:
            lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DENY)]
            continue
        block = [(_LOAD, 0, 0, 16)]  # the lower half of the first argument
        listed, otherwise = (_ALLOW, _DENY) if number in alone else (_DENY, _ALLOW)
        for value in alone.get(number, values):
            block += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, listed)]
        block.append((_RETURN, 0, 0, otherwise))
        lines += [(_EQUAL, 0, len(block), number), *block]
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def write_only_below(folders: Iterable[str]) -> bool:
    """Let this process change files below some folders (or devices) only; return whether it is so now: by Landlock."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    rights = _WRITE_RIGHTS | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)  # refer, truncate
    rules = libc.syscall(_LANDLOCK_CREATE, struct.pack("Q", rights), 8, 0)
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
