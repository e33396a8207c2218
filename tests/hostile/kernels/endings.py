"""Kernels that end, or seem to end, the process that they run in: one each, with the tier that must name it."""

import _thread
import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
import threading
import time

import torch

import moeracle

TIERS = {}


def hostile(tier, **more):
    """Declare a kernel that must be found illegal with this tier."""

    def declare(fn):
        TIERS[fn.__name__] = tier
        return moeracle.kernel("silu_and_mul", contract="grouped", **more)(fn)

    return declare


def zeros(h):
    return torch.zeros(len(h), h.shape[1] // 2, dtype=h.dtype)


@hostile("exit")
def leaves(h):
    os._exit(0)


@hostile("exit")
def leaves_with_a_code(h):
    os._exit(3)


@hostile("exit")
def a_thread_leaves(h):
    threading.Thread(target=os._exit, args=(0,)).start()
    time.sleep(600)


@hostile("call")
def exits(h):
    sys.exit(0)


@hostile("call")
def interrupts(h):
    raise KeyboardInterrupt


@hostile("call")
def ends_a_generator(h):
    raise GeneratorExit


@hostile("call")
def interrupts_the_main_thread(h):
    _thread.interrupt_main()
    time.sleep(600)


class Odd(BaseException):
    pass


@hostile("call")
def raises_base(h):
    raise Odd("hi")


class Unspeakable(Exception):  # noqa: N818
    def __str__(self):
        raise SystemExit(0)


@hostile("call")
def raises_what_has_no_text(h):
    raise Unspeakable


@hostile("call")
def raises_a_lone_surrogate(h):
    raise ValueError("\ud800 \x1b[2J\nFAKE  legal")


@hostile("call")
def recurses(h):
    return recurses(h)


@hostile("crash")
def segfaults(h):
    ctypes.string_at(0)


@hostile("crash")
def aborts(h):
    os.abort()


@hostile("crash")
def overflows_the_stack(h):
    deep = iter([1])
    for _ in range(10**6):  # C calls C, and no Python counts how deep: a RecursionError would be an honest exception
        deep = filter(None, deep)
    threading.stack_size(1 << 20)  # whatever the limit of the main thread's
    thread = threading.Thread(target=next, args=(deep,))
    thread.start()
    thread.join()
    return zeros(h)


@hostile("crash")
def kills_itself(h):
    os.kill(os.getpid(), signal.SIGKILL)


@hostile("crash")
def kills_its_group(h):
    os.kill(0, signal.SIGTERM)
    time.sleep(600)


@hostile("crash")
def sets_an_alarm(h):
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(600)


@hostile("crash")
def divides_in_c(h):
    os.kill(os.getpid(), signal.SIGFPE)


@hostile("crash")
def has_no_time_left(h):
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    while True:
        pass


@hostile("memory")
def asks_for_too_much(h):
    return torch.empty(2**50)


@hostile("memory")
def says_that_memory_is_out(h):
    raise MemoryError


@hostile("exit")
def closes_every_descriptor(h):
    os.closerange(0, 4096)
    time.sleep(600)


@hostile("exit")
def writes_to_every_socket(h):
    for fd in range(3, 64):
        with contextlib.suppress(OSError):
            socket.socket(fileno=fd).sendall(b"\xff" * 64)
    time.sleep(600)


@hostile("exit")
def reads_no_more(h):
    for fd in range(3, 64):
        with contextlib.suppress(OSError):
            socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_RD)
    return zeros(h)


@hostile("exit")
def exits_from_a_timer(h):
    faulthandler.dump_traceback_later(0.02, exit=True)
    time.sleep(600)


@hostile("exit")
def becomes_another_program(h):
    os.execvp("sleep", ["sleep", "600"])


@hostile("exit")
def is_replaced_by_its_fork(h):
    libc = ctypes.CDLL(None)
    if libc.fork():
        libc._exit(0)
    libc.setsid()
    return zeros(h)


@hostile("exit")
def forks_and_both_return(h):
    os.fork()
    return zeros(h)


@hostile("exit")
def forks_and_one_stays(h):
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    return zeros(h)


@hostile("exit", supports=lambda case: os._exit(0))
def leaves_when_asked(h):
    return zeros(h)
