"""What a kernel's process does: load the TARGET, say what it declares, and run its kernels on bytes that it is given.

Whatever the kernel does to this process, all that leaves it is one message after each question, and bytes.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from types import FunctionType
from typing import Any

import torch

from moeracle.commands.process import ignore_expected_warnings
from moeracle.properties.cases.case import Case
from moeracle.properties.common.endings import Ended
from moeracle.properties.common.guard import poisoned
from moeracle.properties.common.torch_state import switched
from moeracle.properties.trial.call import call_here, ending_of, one_line, wait_for_device
from moeracle.target.declaration import Kernel
from moeracle.target.interpreter import interpreter_is_wrong, prepare_triton
from moeracle.target.load import load_target, runs_interpreted

from . import confine
from .frames import packed, unpacked
from .rank import join_ranks
from .serve_bench import Held
from .wire import DTYPES, NOT_PLAIN, PIN_FROM, Window, largest_results, plain_contract, received, rounded, settle, span

DEVICES = (
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/kfd",
    "/dev/dri",
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    *(f"/dev/nvidia{i}" for i in range(16)),
)  # fmt: skip  (what may be written in spite of --adversarial)
CACHES = ("TMPDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH", "XDG_CACHE_HOME")
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)
DETACH = torch.Tensor.detach  # a tensor may have one of its own
KEPT = 1 << 28  # bytes of a device that the arguments of the last call may take beside the next ones
MOST_PARTS, DEEPEST = 64, 3  # of what a kernel returns
PATIENCE = 0.5  # seconds that a fork of this process has to end, once the call has returned


class Forks:
    """Knows which forks of this process, made by Python, still run; the first thing each holds is the end of a pipe."""

    def __init__(self) -> None:
        self.mine, self.pipes = os.getpid(), list[int]()
        self.end: int | None = None
        os.register_at_fork(before=self._before, after_in_parent=self._kept, after_in_child=self._forked)

    def _before(self) -> None:
        read, self.end = os.pipe()
        self.pipes.append(read)

    def _kept(self) -> None:
        if self.end is not None:
            os.close(self.end)

    def _forked(self) -> None:
        for pipe in self.pipes:
            os.close(pipe)
        self.pipes.clear()

    def leave_if_forked(self) -> None:
        """End this process if it is a fork that came back from the kernel, and say so to the one that it came from."""
        if os.getpid() != self.mine:
            if self.end is not None:
                os.write(self.end, b"!")
            os._exit(0)

    def complaint(self) -> str:
        """Say which forks came back from the kernel, or still run; "" if none."""
        pipes, self.pipes = self.pipes, []
        said = ""
        for pipe in pipes:
            ready, _, _ = select.select([pipe], [], [], PATIENCE)
            if not ready:
                said = "left a fork of its process running"
            elif os.read(pipe, 1):
                said = "forked, and both processes came back"
            os.close(pipe)
        return said


class Server:
    """Answers the judge's questions about the kernels of one TARGET.

    Args:
        memory: descriptor of the memory that both have open.
        started: the message that asked for this process.
    """

    def __init__(self, memory: int, started: dict[str, Any]) -> None:
        self.window = Window(memory, whole=True)  # so that addresses stay as they are
        self.scratch = str(started["scratch"])
        self.confined = {"signals": started["calls"], "network": bool(self.scratch) and started["calls"],
                         "files": bool(started.get("files"))}  # fmt: skip
        self.kernels: Sequence[Kernel] = ()
        self.forks = Forks()
        self.used = 0  # bytes of the memory that hold arguments
        self.device_copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.output: Any = None
        self.run = 0  # number of the last call's

    def load(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.window.map is None:
            return {"unable": "no memory that it shares with the judge can be mapped"}
        os.chdir(message["folder"])
        os.environ.update(message["environment"])
        for name in set(os.environ).difference(message["environment"]):
            del os.environ[name]
        sys.dont_write_bytecode = bool(self.scratch or os.environ.get("PYTHONDONTWRITEBYTECODE"))
        if self.scratch:
            os.environ.update(dict.fromkeys(CACHES, self.scratch), HOME=self.scratch)
            refuse_reference()
        sys.path[:] = message["path"]
        torch.set_num_threads(message["threads"])
        refused = ""
        try:
            source = message["source"] and message["source"].encode("latin-1")
            self.kernels = load_target(message["target"], message["device"], source).kernels
        except ValueError as error:
            refused = str(error)
        except BaseException as error:
            refused = f"TARGET {message['target']}: does not import: {one_line(error)}"
        self.forks.leave_if_forked()
        complaint = self.forks.complaint()
        if complaint:
            refused = f"TARGET {message['target']}: its import {complaint}"
        if refused:
            return {"refused": refused}
        if self.scratch:
            os.chdir(self.scratch)
        declared = [facts(kernel) for kernel in self.kernels]
        return {"kernels": declared, "wrong": interpreter_is_wrong(), "confined": self.confined}

    def why_not(self, message: dict[str, Any]) -> dict[str, Any]:
        kernel, case = self.kernels[message["at"]], Case.parse(message["case"])
        assert kernel.supports is not None
        try:
            answer = kernel.supports(case)
        except BaseException as error:
            return {"raised": one_line(error).partition(" (")[0] if isinstance(error, Ended) else _short(error)}
        self.forks.leave_if_forked()
        if isinstance(answer, (bool, str)):
            return {"answer": answer}
        return {"returned": _shown(answer)}

    def schedule(self, message: dict[str, Any]) -> dict[str, Any]:
        kernel, case = self.kernels[message["at"]], Case.parse(message["case"])
        assert kernel.schedule is not None
        try:
            text = kernel.schedule(case)
        except BaseException as error:
            return {"raised": _short(error)}
        return {"text": None if text is None else str(text)}

    def call(self, message: dict[str, Any]) -> dict[str, Any]:
        kernel = self.kernels[message["at"]]
        if torch.get_num_threads() != message["threads"]:
            torch.set_num_threads(message["threads"])
        self.grow(message["used"])
        device = torch.device(kernel.device)
        keeps = message["run"] != self.run and message["used"] < KEPT
        before, self.run = self.device_copies if keeps else [], message["run"]  # a second run's lie elsewhere
        self.used, self.output, self.device_copies = message["used"], None, []
        if message.get("rank") is not None:
            try:
                device = join_ranks(message["rank"], device)
            except Exception as error:
                return {"ended": ["call", f"torch.distributed does not start: {one_line(error)}"]}
        if device.type != "cpu" and self.used >= PIN_FROM:
            self.window.pin()
        args = received(message["args"], lambda header: self.argument(header, device))
        if self.window.pinned:
            settle([there for there, _ in self.device_copies])
        before.clear()
        return self.called(kernel, args, message["run"], message["poison"])

    def called(self, kernel: Kernel, args: Sequence[Any], run: int, poison: float | None) -> dict[str, Any]:
        """Call a kernel and answer with its results; what it did to its arguments then stands in the memory."""
        deepest = sys.getrecursionlimit()
        try:
            self.output = call_here(kernel, {str(i): value for i, value in enumerate(args)}, run, poison)
            answer = self.late({})  # on the caller's stream, before any other is waited for
            wait_for_device()
        except Exception as error:
            tier, lines = ending_of(error)
            return {"ended": [tier, *lines]}
        except KeyboardInterrupt as error:
            return {"ended": ["call", f"raised {one_line(error)}"]}
        finally:
            self.forks.leave_if_forked()
            with suppress(RecursionError):
                sys.setrecursionlimit(max(deepest, 1000))
            self.copy_back()
        complaint = self.forks.complaint() if self.forks.pipes else ""
        if complaint:
            return {"ended": ["exit", complaint]}
        return answer

    def copy_back(self) -> None:
        """Copy the arguments from the device into the memory."""
        with suppress(Exception):  # after an error of the device nothing can be read from it
            for there, here in self.device_copies:
                here.copy_(there, non_blocking=bool(self.window.pinned))
            if self.window.pinned:
                settle([there for there, _ in self.device_copies])

    def late(self, message: dict[str, Any]) -> dict[str, Any]:
        """Copy the last call's results into the memory: after the call, and when its case is over."""
        placer = _Placer(self)
        try:
            return {"output": placer.placed(self.output), "wrong": interpreter_is_wrong()}
        except Exception as error:
            tier, lines = ending_of(error)
            return {"ended": [tier, f"its result cannot be read: {lines[0]}"]}

    def argument(self, header: dict[str, Any], device: torch.device, whole: torch.Tensor | None = None) -> torch.Tensor:
        """Return an argument from its description: the memory itself, or a copy of it on a device, made or given."""
        dtype, size = DTYPES[header["dtype"]], header["bytes"]
        if not size:
            return torch.empty_strided(header["shape"], header["strides"], dtype=dtype, device=device)
        if whole is None:
            whole = self.bytes_at(header["at"], size)
            if device.type != "cpu":
                there = whole.to(device, non_blocking=bool(self.window.pinned))
                self.device_copies.append((there, whole))
                whole = there
        return whole.view(dtype).as_strided(header["shape"], header["strides"], header["start"])

    def grow(self, size: int) -> None:
        """Map at least so many bytes of the memory."""
        self.window.grow(size)

    def bytes_at(self, at: int, size: int) -> torch.Tensor:
        """Return uint8 [size] of the memory itself."""
        return self.window.bytes_at(at, size)


class _Placer:
    """Copies what a kernel returned into the memory, behind the arguments, and describes it."""

    def __init__(self, server: Server) -> None:
        self.server, self.at, self.parts = server, rounded(server.used), 0
        self.most = self.at + largest_results(server.used)

    def placed(self, value: Any, depth: int = 0) -> dict[str, Any]:
        self.parts += 1
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, (dict, list, tuple)) and max(self.parts, len(value)) < MOST_PARTS and depth < DEEPEST:
            if isinstance(value, dict):
                return {"dict": [[str(key), self.placed(item, depth + 1)] for key, item in value.items()]}
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.placed(item, depth + 1) for item in value]}
        return {"other": type(value).__name__}

    def _tensor(self, value: torch.Tensor) -> dict[str, Any]:
        if type(value) not in PLAIN_TENSORS:  # it would answer as it likes
            return {"other": type(value).__name__}
        if value.layout != torch.strided or value.is_nested:
            return {"other": f"a {'nested' if value.is_nested else value.layout} tensor"}
        plain = DETACH(value).resolve_conj().resolve_neg()
        size = plain.numel() * plain.element_size()
        header: dict[str, Any] = {
            "dtype": str(plain.dtype),
            "shape": list(plain.shape),
            "strides": list(plain.stride()),
        }
        header |= {"device": str(plain.device), "bytes": None, "at": 0}
        if plain.device.type == "meta" or self.at + size > self.most:
            return {"tensor": header}
        if size and plain.untyped_storage().nbytes() < (plain.storage_offset() + span(plain)) * plain.element_size():
            return {"other": "a tensor whose storage was freed"}
        if size:
            content = plain.contiguous().flatten().view(torch.uint8)
            self.server.bytes_at(self.at, size).copy_(content)
        header |= {"bytes": size, "at": self.at}
        self.at += rounded(size)
        return {"tensor": header}


def _shown(value: Any) -> str:
    try:
        return repr(value)[:200]
    except BaseException:
        return type(value).__name__


def _short(error: BaseException) -> str:
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def facts(kernel: Kernel) -> dict[str, Any]:
    """Return what a kernel declares, as JSON.

    Args:
        kernel: any.
    """
    plain = {one.name: getattr(kernel, one.name) for one in fields(kernel) if one.name not in NOT_PLAIN}
    return {
        **plain, "contract": plain_contract(kernel.contract), "supports": kernel.supports is not None,
        "schedule": kernel.schedule is not None, "function": str(getattr(kernel.fn, "__name__", "")),
        "interpreted": runs_interpreted(kernel),
    }  # fmt: skip


def refuse_reference() -> None:
    """Make every op of the reference raise in this process: a kernel has to compute by itself."""
    modules = [module for name, module in sys.modules.items() if name.startswith("moeracle.ref.ops")]
    ops = {op for module in modules for op in vars(module).values()
           if isinstance(op, FunctionType) and op.__module__.startswith("moeracle.ref.ops")}  # fmt: skip

    def refused(*args: Any, **named: Any) -> Any:
        raise PermissionError("the reference is not for kernels under --adversarial")

    for module in (*modules, *(module for name, module in sys.modules.items() if name.startswith("moeracle."))):
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value in ops:
                setattr(module, name, refused)


def warm_up() -> None:
    """Load, before any child is forked, what each would: torch's dispatch modes, Triton's interpreter, checked."""
    torch.set_num_threads(1)
    if not any(os.path.exists(driver) for driver in GPU_DRIVERS):  # asking for a GPU would forbid to fork
        prepare_triton(None)
        interpreter_is_wrong()
    with poisoned(0), switched(None):
        (torch.empty(4, 4, dtype=torch.bfloat16).nan_to_num().float() @ torch.empty(4, 4)).to(torch.float16)


def wake_device(kernels: Sequence[Kernel]) -> None:
    """Let a GPU that kernels declare take up this process, while the judge makes its first problem."""
    for device in dict.fromkeys(kernel.device for kernel in kernels if kernel.device != "cpu"):
        with suppress(Exception):  # the first call says what is wrong
            torch.empty(1, device=device)


def serve(sock: socket.socket, memory: int, message: dict[str, Any]) -> None:
    """Answer questions until the judge closes its end.

    Args:
        sock: where they come from.
        memory: descriptor of the memory that both have open.
        message: what this process may use.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # where a rank stands that the others wait for
    ignore_expected_warnings()
    server = Server(memory, message)
    with suppress(OSError):  # `load` says so
        server.grow(1)
    if message["max_memory"]:
        confine.limit_memory(message["max_memory"])
    answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "load": server.load, "why_not": server.why_not, "schedule": server.schedule, "call": server.call,
        "late": server.late, **Held(server).answers,
    }  # fmt: skip
    buffer = b""
    gc.freeze()
    while True:
        content = sock.recv(1 << 16)
        if not content:
            return
        question, buffer = unpacked(buffer + content)
        if question is None:
            continue
        try:
            answer = answers[question["do"]](question)
        except BaseException as error:
            server.forks.leave_if_forked()
            tier, lines = ending_of(error) if isinstance(error, Exception) else ("call", (f"raised {one_line(error)}",))
            answer = {"ended": [tier, *lines]}
        sock.sendall(packed({**answer, "number": question["number"]}))
        if question["do"] == "load":
            wake_device(server.kernels)
