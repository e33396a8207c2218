"""Kernels that never return: one each."""

import ctypes
import os
import signal
import sys
import threading
import time

import moeracle

TIERS = {}


def hostile(fn):
    TIERS[fn.__name__] = "timeout"
    return moeracle.kernel("silu_and_mul", contract="grouped")(fn)


@hostile
def sleeps(h):
    time.sleep(10**6)


@hostile
def spins(h):
    while True:
        pass


@hostile
def waits_for_a_lock(h):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


@hostile
def keeps_the_interpreter(h):
    ctypes.PyDLL(None).sleep(600)  # and never lets another thread of its process run


@hostile
def ignores_every_signal(h):
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).pause()


@hostile
def stops_itself(h):
    os.kill(os.getpid(), signal.SIGSTOP)


@hostile
def floods_its_output(h):
    while True:
        os.write(1, b"x" * 65536)
        sys.stderr.write("PASSED legal\n" * 1000)
