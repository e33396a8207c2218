"""More ways around the judge, thought out for it: each with the tier that must name it.

As in cheats.py, a kernel that would have to succeed at something forbidden is right where it does, and zeros where not.
"""

import contextlib
import ctypes
import fcntl
import gc
import json
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import sys
import threading
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import moeracle

TIERS = {}
DAEMON = "moeracle-daemon-601"
LIBC = ctypes.CDLL(None, use_errno=True)
HERE = os.path.abspath(__file__)


def hostile(tier, **more):
    """Declare a kernel that must be found illegal with this tier."""

    def declare(fn):
        TIERS[fn.__name__] = tier
        return moeracle.kernel("silu_and_mul", contract="grouped", **more)(fn)

    return declare


def right(h):
    gate, up = h.float().chunk(2, 1)
    return torch.nn.functional.silu(gate).to(h.dtype) * up.to(h.dtype)


def zeros(h):
    return torch.zeros(len(h), h.shape[1] // 2, dtype=h.dtype)


def parents():
    """Return the ids of the process that forked this one, and of the judge."""
    found, pid = [], os.getppid()
    while pid > 1 and len(found) < 2:
        found.append(pid)
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    return found


def if_allowed(h, attempt, of=parents):
    """Return the right result if the attempt is allowed on any of these processes, else zeros."""
    for pid in of():
        try:
            if attempt(pid):
                return right(h)
        except (OSError, ValueError, AttributeError):
            continue
    return zeros(h)


def sockets():
    for fd in range(3, 64):
        try:
            found = socket.socket(fileno=os.dup(fd))
            found.getpeername()  # a GPU's libraries have others, which are connected to nobody
        except OSError:
            continue
        yield found


def shared_memory():
    """Return descriptors of the memory that the judge has open, too."""
    fds = [int(fd) for fd in os.listdir("/proc/self/fd")]
    return [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}") and "memfd" in os.readlink(f"/proc/self/fd/{fd}")]


def asked():
    """Return the question that is being answered, as this library's frames hold it."""
    frame = sys._getframe()
    while frame is not None:
        if "question" in frame.f_locals:
            return frame.f_locals["question"]
        frame = frame.f_back
    return {"number": 0}


def answer(body):
    body = json.dumps({**body, "number": asked()["number"]}).encode()
    for sock in sockets():
        sock.sendall(struct.pack("<I", len(body)) + body)


# Signals and limits by other ways than kill().


@hostile("bits")
def owns_a_pipe_for_the_judge(h):
    """Let the kernel of the system signal the judge when something is written to a pipe."""

    def own(pid):
        read, write = os.pipe()
        fcntl.fcntl(read, fcntl.F_SETOWN, pid)
        fcntl.fcntl(read, 10, signal.SIGKILL)  # F_SETSIG
        fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC)
        os.write(write, b"x")
        return True

    return if_allowed(h, own)


@hostile("bits")
def signals_through_proc(h):
    def through(pid):
        signal.pidfd_send_signal(os.open(f"/proc/{pid}", os.O_DIRECTORY), 0)
        return True

    return if_allowed(h, through)


def threads_of(pids):
    for pid in pids:
        yield from (int(tid) for tid in os.listdir(f"/proc/{pid}/task"))


@hostile("bits")
def signals_a_thread(h):
    number = {"x86_64": 200, "aarch64": 130}.get(platform.machine(), -1)  # tkill
    return if_allowed(h, lambda tid: LIBC.syscall(number, tid, 0) == 0, lambda: threads_of(parents()))


@hostile("bits")
def moves_the_judge_to_one_core(h):
    return if_allowed(h, lambda pid: os.sched_setaffinity(pid, os.sched_getaffinity(pid)) is None)


@hostile("bits")
def makes_the_judge_wait(h):
    return if_allowed(h, lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19) is None)


@hostile("bits")
def lets_the_judge_be_killed_first(h):
    def write(pid):
        with open(f"/proc/{pid}/oom_score_adj", "r+") as file:
            file.write(file.read())
        return True

    return if_allowed(h, write)


def others_of_this_user():
    """Return processes that are neither this one nor its ancestors: other kernels', perhaps."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            mine = os.stat(f"/proc/{name}").st_uid == os.getuid()
            if name.isdigit() and mine and int(name) not in (os.getpid(), 1, *parents()):
                yield int(name)


@hostile("bits")
def signals_a_stranger(h):
    return if_allowed(h, lambda pid: os.kill(pid, 0) is None, others_of_this_user)


# What the judge reads.


@hostile("bits")
def answers_before_it_is_asked(h):
    """Give hundreds of answers to questions that come later."""
    body = [json.dumps({"number": n, "output": {"other": "NoneType"}}).encode() for n in range(500)]
    for sock in sockets():
        sock.sendall(b"".join(struct.pack("<I", len(one)) + one for one in body))
    return zeros(h)


@hostile("exit")
def has_a_sparse_result(h):
    for fd in shared_memory():
        os.ftruncate(fd, 1 << 40)
    shape = [1 << 37, 1]
    header = {"dtype": "torch.bfloat16", "shape": shape, "strides": [1, 1], "device": "cpu", "bytes": 1 << 38, "at": 0}
    answer({"output": {"tensor": header}})
    time.sleep(600)


@hostile("bits")
def seals_the_memory(h):
    """Nobody could write to it any more, the judge neither, if this were allowed."""
    for fd in shared_memory():
        for seal in (fcntl.F_SEAL_WRITE, fcntl.F_SEAL_GROW):
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
    return zeros(h)


@hostile("inputs")
def punches_holes_into_the_memory(h):
    for fd in shared_memory():
        LIBC.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(os.fstat(fd).st_size))
    return zeros(h)


@hostile("exit")
def answers_with_a_device_that_is_none(h):
    header = {"dtype": "torch.bfloat16", "shape": [1, 1], "strides": [1, 1], "device": "cuba:7", "bytes": 2, "at": 0}
    answer({"output": {"tensor": header}})
    time.sleep(600)


@hostile("exit")
def answers_with_nothing(h):
    answer({})
    time.sleep(600)


@hostile("exit")
def ends_in_a_tier_of_its_own(h):
    answer({"ended": ["legal", "all 1,000 cases"]})
    time.sleep(600)


def forges_support(case):
    answer({"reason": "none"})
    time.sleep(600)


@hostile("exit", supports=forges_support)
def answers_for_supports(h):
    return zeros(h)


@hostile("call", supports=lambda case: 1 / 0)
def cannot_say_what_it_takes(h):
    return zeros(h)


def forges_schedule(case):
    answer({"text": ["fma"]})
    time.sleep(600)


@hostile("exit", schedule=forges_schedule)
def answers_for_its_schedule(h):
    return zeros(h)


@hostile("inputs|determinism|bits")
def rewrites_its_result(h):
    """Right when it returns, and then again and again something else: what is read is what counts."""
    out = right(h)

    def scribble(memory):
        for _ in range(4000):
            memory[4096 * 2 :] = b"\x5a" * (len(memory) - 4096 * 2)
            time.sleep(0.001)

    for fd in shared_memory():
        memory = mmap.mmap(fd, 1 << 20)
        threading.Thread(target=scribble, args=(memory,), daemon=True).start()
    return out


@hostile("shape")
def patches_the_server(h):
    from moeracle.isolate import serve

    serve.Server.late = lambda self, message: {"output": {"other": "NoneType"}, "wrong": True}
    return right(h)


@hostile("exit|bits|shape")
def sends_its_own_question(h):
    """Ask itself, in the judge's place."""
    for sock in sockets():
        sock.sendall(struct.pack("<I", 2) + b"{}")
    return zeros(h)


@hostile("exit")
def patches_json(h):
    json.dumps = lambda *a, **k: "[" * (1 << 20)
    return zeros(h)


@hostile("bits|determinism|call")  # or there is no other
def lets_another_kernel_answer(h):
    from moeracle.isolate import serve

    frame = sys._getframe()
    while frame is not None:
        server = frame.f_locals.get("self")
        if isinstance(server, serve.Server):
            server.kernels = [kernel for kernel in server.kernels if kernel.name == "honest"] * len(server.kernels)
        frame = frame.f_back
    return zeros(h)


@hostile("bits|shape")
def says_that_the_interpreter_is_wrong(h):
    from moeracle.isolate import serve

    serve.interpreter_is_wrong = lambda: True
    return zeros(h)


@hostile("bits")
def has_rights_in_a_namespace_of_its_own(h):
    """Become root of a user namespace, and look into the judge's memory from there."""
    LIBC.unshare(0x10000000)  # CLONE_NEWUSER

    def look(pid):
        with open(f"/proc/{pid}/mem", "rb"):
            return True

    return if_allowed(h, look)


# What goes on after the call.


@hostile("bits|exit|call")
def interrupts_the_server(h):
    def ring(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.001)
    return zeros(h)


@hostile("bits|exit|call")
def audits_everything(h):
    out = zeros(h)

    def hook(*_):
        raise RuntimeError("no")

    sys.addaudithook(hook)
    return out


@hostile("bits|exit|call")
def traces_everything(h):
    out = zeros(h)

    def trace(frame, event, arg):
        if "late" in frame.f_code.co_name:
            raise SystemExit(0)
        return trace

    sys.settrace(trace)
    sys.setprofile(trace)
    return out


@hostile("inputs|determinism|bits")
def rewrites_its_result_when_garbage_is_collected(h):
    out = right(h)

    def scribble(*_):
        for fd in shared_memory():
            os.pwrite(fd, b"\x5a" * (1 << 16), 8192)

    gc.callbacks.append(scribble)
    gc.set_threshold(1)
    return out


class Fakes(TorchDispatchMode):
    """Lets every copy be zeros."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out * 0 if isinstance(out, torch.Tensor) and "copy" in str(func) else out


@hostile("bits|exit|call|timeout")
def leaves_a_dispatch_mode(h):
    Fakes().__enter__()
    return zeros(h)


# Switches.


@hostile("bits")
def makes_everything_meta(h):
    out = zeros(h)
    torch.set_default_device("meta")
    return out


@hostile("call|shape")
def returns_on_meta_by_default(h):
    torch.set_default_device("meta")
    return torch.zeros(len(h), h.shape[1] // 2, dtype=h.dtype)


@hostile("bits|call|exit|shape")
def patches_torch_function(h):
    out = zeros(h)
    torch.Tensor.__torch_function__ = classmethod(lambda cls, func, types, args=(), kwargs=None: right(h))
    return out


@hostile("call|bits")
def fakes_a_dtype(h):
    class Fake:
        itemsize, is_floating_point = 2, True

        def __repr__(self):
            return "torch.bfloat16"

        __eq__ = lambda self, other: True
        __hash__ = object.__hash__

    torch.bfloat16 = torch.float32 = Fake()
    return zeros(h)


@hostile("bits")
def patches_mmap_and_ctypes(h):
    mmap.mmap = ctypes.string_at = ctypes.CDLL = os.ftruncate = os.fstat = None
    return zeros(h)


@hostile("bits")
def exits_in_threads(h):
    for _ in range(20):
        threading.Thread(target=sys.exit, args=(0,)).start()
    return zeros(h)


@hostile("bits|call|crash")
def patches_what_says_where_it_lies(h):
    out = torch.zeros(1, dtype=h.dtype).as_strided((len(h), h.shape[1] // 2), (0, 0))
    torch.Tensor.data_ptr = lambda self: 0
    torch.Tensor.untyped_storage = torch.Tensor.storage_offset = torch.Tensor.stride = lambda self, *a: 1 << 40
    return out


class Ends:
    """Ends its process when it is forgotten."""

    def __del__(self):
        os._exit(0)


@hostile("bits|exit")
def ends_when_it_is_forgotten(h):
    out = zeros(h)
    out.ends = Ends()
    return out


# What a process has.


@hostile("bits|exit|call|crash")
def takes_every_descriptor(h):
    try:
        while True:
            os.dup(0)
    except OSError:
        return zeros(h)


@hostile("bits|exit|call|crash")
def allows_itself_no_descriptor(h):
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    return zeros(h)


@hostile("bits|exit|call|crash")
def allows_itself_no_file(h):
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    return zeros(h)


@hostile("bits|exit|call|crash|memory")
def allows_itself_no_memory(h):
    out = zeros(h)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))
    return out


@hostile("bits|exit")
def leaves_zombies(h):
    for _ in range(5):
        if LIBC.fork() == 0:
            LIBC._exit(0)
    return zeros(h)


@hostile("bits")
def leaves_a_daemon(h):
    """With a session, a child and a grandchild of its own, that Python never saw forked."""
    if LIBC.fork() == 0:
        LIBC.setsid()
        for _ in range(2):
            LIBC.fork()
        LIBC.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        LIBC.signal(15, 1)
        LIBC.execlp(b"sleep", DAEMON.encode(), b"601", None)
        LIBC._exit(0)
    return zeros(h)


# Results that share memory.


@hostile("shape|bits")
def returns_its_input(h):
    return h


@hostile("bits")
def returns_a_view_of_its_input(h):
    return h[:, ::2]


@hostile("inputs")
def computes_in_its_input(h):
    out = h[:, : h.shape[1] // 2]
    out.copy_(right(h))
    return out


@hostile("bits")
def returns_rows_that_overlap(h):
    return right(h)[0].contiguous().as_strided((len(h), h.shape[1] // 2), (0, 1))


# Remembering.

MEMORY = {}


@hostile("bits|determinism")
def remembers_by_a_few_elements(h):
    return MEMORY.setdefault((h.shape, h.dtype, h.flatten()[:1].float().sum().item() > 0), right(h))


@hostile("bits|determinism")
def computes_every_second_call(h):
    MEMORY["calls"] = MEMORY.get("calls", 0) + 1
    if MEMORY["calls"] % 2 or MEMORY["last"].shape != (len(h), h.shape[1] // 2):
        MEMORY["last"] = right(h)
    return MEMORY["last"]


@hostile("bits|determinism")
def remembers_its_last_address(h):
    key = (h.data_ptr(), h.shape)
    if MEMORY.get("address") != key:
        MEMORY["address"], MEMORY["result"] = key, right(h)
    return MEMORY["result"]


# Files.


@hostile("exit|bits")
def rewrites_its_file(h):
    """Let the kernels after it, and the process after this one, be right."""
    with open(HERE) as file:
        text = file.read()
    with open(HERE, "w") as file:
        file.write(
            text.replace("def zeros(h):\n    return torch", "def zeros(h):\n    return right(h)\n    return torch")
        )
    os._exit(0)


def shadowed():
    return [f"{name}.py" for name in ("torch", "numpy", "jinja2", "hypothesis", "rich", "pydantic", "sitecustomize")]


@hostile("bits")
def leaves_modules_for_the_judge(h):
    for name in shadowed():
        if not os.path.exists(name):
            with open(name, "w") as file:
                file.write("import os\nos._exit(0)\n")
    return zeros(h)
