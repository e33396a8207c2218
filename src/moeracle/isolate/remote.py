"""Kernels that run in a process of their own, as records that the harness can use like any other."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.cost import SMALL, operations
from moeracle.properties.common.endings import ENDINGS, Ended, InternalError
from moeracle.target.declaration import SaidError, check_device
from moeracle.target.load import OWN, TargetError, place_of

from .client import LOAD_SECONDS, Child, Limits
from .frames import WireError
from .start import WITHOUT, NoChildError
from .wire import (
    PAGE,
    Inputs,
    Window,
    arguments,
    check_header,
    largest_results,
    read_at,
    rounded,
)

__all__ = ["Limits", "Remote", "TargetLoader", "ended_of"]

GIVEN_UP = 2  # endings of its process after which a kernel is no longer run
# The limit of one call without --case-timeout: seconds, more for a large case, and never below so many times the
# slowest call so far, up to ten minutes. After a first timeout it is short: what hung once is not waited for as long.
CALL_SECONDS, AGAIN_SECONDS, TIMES_SLOWEST, MOST_SECONDS = 30.0, 10.0, 20.0, 600.0
MOST_NEW = 16  # sizes on which a child is first called with other values: later ones repeat what it may remember
ELSEWHERE = 16 * PAGE  # bytes by which the arguments of a second run lie further on
IDLE_SECONDS = 20.0  # that an import may neither end nor compute


class _Shown:
    """What a child returned where a value was due: only its text came over."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


@dataclass
class TargetLoader:
    """A TARGET and the children that have loaded it."""

    target: str
    device: str | None
    limits: Limits
    folder: str = field(default_factory=os.getcwd)
    source: bytes | None = None  # of the TARGET's file when this run began: what is judged, whatever it holds later
    declared: list[Any] | None = None
    confined: dict[str, bool] = field(default_factory=dict)  # what the children may not do, as the system allows
    spare: Child | None = None  # has loaded the TARGET, or is still loading it, and run nothing yet
    loading: bool = False  # whether the spare has not yet been heard of
    ahead: int = 0  # how many spares are still begun, each when one is taken

    @property
    def trusted(self) -> bool:
        """Whether its kernels are this library's own, and may share one child."""
        return not self.limits.adversarial and place_of(self.target) in OWN

    def take(self) -> Child:
        """Return a child that has loaded the TARGET.

        Raises:
            Ended: its import ended the process, or declared other kernels than the first time.
            TargetError: it cannot be loaded.
        """
        child, self.spare = self.spare, None
        if child is not None and child.alive and self.loading:
            try:
                self.loaded(child)
            except (Ended, TargetError):  # nobody's call: what is wrong with the TARGET shows once more
                child.release()
        if child is None or not child.alive:
            child = self.loaded(self.begun())
        if self.trusted:
            self.spare, self.loading = child, False
        elif self.ahead:
            self.ahead -= 1
            self.begin()
        return child

    def begin(self) -> None:
        """Let a spare load the TARGET, so that nobody waits when it is taken."""
        if self.spare is None and not self.trusted:
            with suppress(NoChildError, Ended):
                self.spare, self.loading = self.begun(), True

    def drop(self) -> None:
        """End the spare, if there is one."""
        if self.spare is not None:
            self.spare.release()
        self.spare, self.ahead = None, 0

    def begun(self) -> Child:
        """Return a child that was told to load the TARGET."""
        child = Child(self.limits)
        environment = {name: value for name, value in os.environ.items() if max(name + value, default="") < "\udc80"}
        message = {
            "do": "load", "target": self.target, "device": self.device, "folder": self.folder,
            "environment": environment, "path": list(map(str, sys.path)), "threads": torch.get_num_threads(),
            "source": self.source and self.source.decode("latin-1"),
        }  # fmt: skip
        try:
            child.put(message, "its import")
        except BaseException:
            child.release()
            raise
        return child

    def loaded(self, child: Child) -> Child:
        """Wait until a child has loaded the TARGET; return it."""
        seconds, idle = self.limits.case_timeout, None
        if seconds is None:
            seconds, idle = LOAD_SECONDS, IDLE_SECONDS
        try:
            answer = child.answer(seconds, "its import", idle)
            if "unable" in answer:
                raise NoChildError(f"child: {' '.join(str(answer['unable']).split())[:200]}; {WITHOUT}")
            if "refused" in answer:
                raise TargetError(str(answer["refused"]))
            if "ended" in answer:
                raise ended_of(answer)
            declared, confined = _said(answer, "kernels", list), _said(answer, "confined", dict)
            self.confined = {str(name): bool(value) for name, value in confined.items()}
            if self.declared is None:
                self.declared = declared
            elif self.declared != declared:
                raise Ended("exit", "its file declares other kernels when it is imported again")
        except WireError as error:
            child.release()
            raise Ended("exit", f"its import answered with {error}") from None
        except BaseException:
            child.release()
            raise
        return child


class Remote:
    """The function of a kernel that runs in a child.

    Args:
        loader: where it is loaded.
        at: its number among the kernels of the TARGET.
        said: what the child says of it.
    """

    def __init__(self, loader: TargetLoader, at: int, said: dict[str, Any]) -> None:
        self.loader, self.at = loader, at
        self.__name__, self.__module__ = str(said["function"]), str(said["module"])
        self.op, self.interpreted, self.computes_wrongly = str(said["op"]), bool(said["interpreted"]), False
        self.child: Child | None = None
        self.endings: list[Ended] = []
        self.slowest = 0.0
        self.processes = 0  # that were ended to begin afresh
        self.known: dict[tuple[str, str], Any] = {}  # answers of supports and schedule, without the seed
        self.seen: set[str] = set()
        self.device, self.used = str(said["device"]), 0
        self.inputs = Inputs(0)
        self.results: list[tuple[dict[str, Any], torch.Tensor]] = []

    def __call__(self, *args: Any) -> Any:
        return self.remote({str(i): value for i, value in enumerate(args)}, 0, None, None)

    def remote(self, args: dict[str, Any], run: int, case: Case | None, poison: float | None) -> Any:
        """Call the kernel in its child; what it wrote into its arguments is written into these.

        Args:
            args: by name, on the kernel's device.
            run: number of the run, which decides what fresh memory holds.
            case: what they belong to; None: a probe.
            poison: what fresh memory holds instead.
        Returns:
            What the child says that it returned: plain tensors on the kernel's device, made here from bytes.
        Raises:
            Ended: it raised, or ended its process.
        """
        child = self.started()
        message = self.call_on(child, args, run, poison)
        started = time.monotonic()
        answer = self.ask(message, self.seconds(case, self.used), f"the call on {case or 'a probe'}")
        self.slowest = max(self.slowest, time.monotonic() - started)
        return self.taken(child, answer)

    def call_on(self, child: Child, args: dict[str, Any], run: int, poison: float | None) -> dict[str, Any]:
        """Write a call's arguments into a child's memory; return the question. Arguments are those of `remote`."""
        inputs = Inputs(run * ELSEWHERE, window=self._window(child))  # where the last call's were, or in other memory
        message = {"do": "call", "at": self.at, "args": arguments(args, inputs.place), "run": run, "poison": poison}
        inputs.write(child.memory)
        self.inputs, self.results, self.used = inputs, [], inputs.end
        return message | {"used": self.used, "threads": torch.get_num_threads()}

    def _window(self, child: Child) -> Window | None:
        """Return what the tensors of a device cross by, where there is one."""
        return None if self.device == "cpu" else child.window

    def late(self) -> bool:
        """Say whether the last call's results changed after it; what changed in its arguments is written into them."""
        before, child = self.results, self.child
        if child is None or not child.alive:
            return False
        self.results = []
        self.taken(child, self.ask({"do": "late"}, self.seconds(None, 0), "reading the results"))
        return len(before) != len(self.results) or not all(
            old == new and torch.equal(a, b) for (old, a), (new, b) in zip(before, self.results, strict=True)
        )

    def is_new(self, case: Case) -> bool:
        """Say whether this child has not yet been called on a case of these sizes; of the first few sizes only."""
        text = str(case.replace(seed=0))
        self.started()
        new = len(self.seen) < MOST_NEW and text not in self.seen
        self.seen.add(text)
        return new

    def supports(self, case: Case) -> Any:
        """Ask the kernel's `supports`, which does not learn the seed."""
        answer = self._about("why_not", case)
        return _Shown(str(answer["returned"])) if "returned" in answer else self._checked(answer, "answer", (bool, str))

    def schedule(self, case: Case) -> str | None:
        """Ask the kernel's `schedule`, which does not learn the seed."""
        text = self._checked(self._about("schedule", case), "text", (str, type(None)))
        return None if text is None else str(text)

    def forgive(self) -> None:
        """Forget how its process ended so far: probes were no case."""
        self.endings = self.endings[:1] if any(e.tier == "timeout" for e in self.endings) else []

    @property
    def alone(self) -> bool:
        """Whether no other kernel is called in its process, so that it can be begun afresh."""
        return not self.loader.trusted

    def renew(self) -> bool:
        """Let the next call be a fresh process's; False where the process is shared by all kernels of the TARGET."""
        self.close(spare=False)
        self.processes += 1
        return self.alone

    def ahead(self, more: bool) -> None:
        """Let another process load the TARGET while this kernel is judged: the one that is asked afresh at the end.

        Args:
            more: whether the TARGET has kernels that are judged after this one, which need processes, too.
        """
        loader = self.loader
        if loader.trusted:
            return
        if self.child is None and loader.spare is not None and not loader.loading:
            self.child = loader.take()
        if self.child is None:
            loader.ahead = 1 + more
        else:
            loader.ahead = int(more)
            loader.begin()

    def close(self, spare: bool = True) -> None:
        """End the child; a later call starts another.

        Args:
            spare: end one that waits to be used, too.
        """
        if self.loader.trusted:
            return
        if self.child is not None:
            self.child.release()
        self.child = None
        if spare:
            self.loader.drop()

    def _about(self, what: str, case: Case) -> dict[str, Any]:
        key = (what, str(case).rpartition("/")[0] + "/s0")
        if key not in self.known:
            self.started()
            self.known[key] = self.ask({"do": what, "at": self.at, "case": key[1]}, self.seconds(case, 0), what)
        if "raised" in self.known[key]:
            raise SaidError(str(self.known[key]["raised"]))
        return dict(self.known[key])

    def _checked(self, answer: dict[str, Any], name: str, types: Any) -> Any:
        try:
            return _said(answer, name, types)
        except WireError as error:
            if self.child is not None:
                self.child.release()
            raise self.counted(Ended("exit", f"answered with {error}")) from None

    def started(self) -> Child:
        """Return the child that the next call is put to.

        Raises:
            Ended: its process ended too often, or does not load the TARGET again.
            InternalError: no process can be started any more.
        """
        if len(self.endings) >= GIVEN_UP:
            last = self.endings[-1]
            raise Ended(last.tier, f"given up, its process having ended {len(self.endings)} times: {last.lines[0]}")
        if self.child is None or not self.child.alive:
            try:
                self.child = self.loader.take()
            except Ended as ended:
                raise self.counted(ended) from None
            except TargetError as error:
                raise self.counted(Ended("exit", f"cannot be loaded a second time: {error}")) from None
            except NoChildError as error:  # no fault of the kernel's
                raise InternalError(str(error)) from None
            self.seen.clear()
        return self.child

    def seconds(self, case: Case | None, used: int) -> float:
        """Return how long a call may take."""
        if self.loader.limits.case_timeout is not None:
            return self.loader.limits.case_timeout
        hung = any(ended.tier == "timeout" for ended in self.endings)
        size = (used >> 20) if case is None else operations(case) / SMALL
        base = (AGAIN_SECONDS if hung else CALL_SECONDS) + size * (10 if self.interpreted else 1)
        return max(base, min(TIMES_SLOWEST * self.slowest, MOST_SECONDS))

    def ask(self, message: dict[str, Any], seconds: float, what: str) -> dict[str, Any]:
        """Return the child's answer to one question.

        Args:
            message: with "do".
            seconds: how long it may take.
            what: what had not ended, for the text of a timeout.
        Raises:
            Ended: the kernel raised, or its process ended.
        """
        assert self.child is not None
        try:
            answer = self.child.ask(message, seconds, what)
        except Ended as ended:
            self.child.release()
            raise self.counted(ended) from None
        if "ended" in answer:
            said = ended_of(answer)
            if said.tier != "call":
                self.child.release()
                self.counted(said)
            raise said
        self.computes_wrongly = bool(answer.get("wrong"))
        return answer

    def counted(self, ended: Ended) -> Ended:
        """Remember how the process ended; return it."""
        self.endings.append(ended)
        return ended

    def taken(self, child: Child, answer: dict[str, Any]) -> Any:
        """Return what a child returned from a call, and take over what it wrote into the arguments."""
        try:
            output = self.output(answer)
            self.inputs.read(child.memory)
        except WireError as error:
            child.release()
            raise self.counted(Ended("exit", f"answered with {error}", *child.said())) from None
        return output

    def output(self, answer: dict[str, Any]) -> Any:
        """Return what the child says that the kernel returned, and keep what it was made of in `results`.

        Raises:
            WireError: it is none.
        """
        assert self.child is not None
        most = min(os.fstat(self.child.memory).st_size, rounded(self.used) + largest_results(self.used))
        self.results = []
        return self._value(self.child, answer.get("output"), most)

    def _value(self, child: Child, said: Any, most: int, depth: int = 0) -> Any:
        if not isinstance(said, dict) or len(said) != 1 or depth > 4:
            raise WireError("a result that is none")
        ((kind, value),) = said.items()
        if kind == "tensor":
            return self._tensor(child, value, most)
        if kind in ("list", "tuple", "dict") and isinstance(value, list):
            if kind == "dict":
                if not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
                    raise WireError("a result that is none")
                return {str(name): self._value(child, item, most, depth + 1) for name, item in value}
            items = [self._value(child, item, most, depth + 1) for item in value]
            return items if kind == "list" else tuple(items)
        if kind != "other" or not isinstance(value, str):
            raise WireError("a result that is none")
        if value == "NoneType":
            return None
        return type("".join(c for c in value if c.isprintable())[:80] or "nothing", (), {})()

    def _tensor(self, child: Child, header: Any, most: int) -> torch.Tensor | Any:
        dtype, shape, size = check_header(header, most)
        if header["bytes"] is None:
            try:
                return torch.empty(shape, dtype=dtype, device="meta")
            except RuntimeError:
                raise WireError("a tensor larger than any") from None
        there = str(header.get("device"))
        if there.partition(":")[0] not in ("cpu", self.device.partition(":")[0]):
            raise WireError("a tensor on a device that is not its own")
        try:
            number = int(check_device(there).partition(":")[2] or 0)
        except ValueError:
            number = -1
        if number and not 0 <= number < torch.cuda.device_count():
            raise WireError("a tensor on a device that is none")
        content = self._content(child, header["at"], size, there)
        self.results.append((header, content))
        return content.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype, device=content.device)

    def _content(self, child: Child, at: int, size: int, device: str) -> torch.Tensor:
        """Return a copy of `size` bytes of the memory, uint8 on a device: what is looked at is the copy."""
        window = self._window(child)
        if window is None or not self.inputs.by_window or device == "cpu":
            return read_at(child.memory, at, size).to(device)
        return window.bytes_at(at, size).to(device, copy=True)


def ended_of(answer: dict[str, Any]) -> Ended:
    """Return the ending that a child says."""
    said = answer["ended"]
    lines = [" ".join(str(line).split())[:2000] for line in said] if isinstance(said, list) else []
    known = len(lines) > 1 and lines[0] in (*ENDINGS, "call")
    return Ended(*lines) if known else Ended("exit", "answered with an ending that is none")


def _said(answer: dict[str, Any], name: str, types: Any) -> Any:
    """Return a field of an answer.

    Raises:
        WireError: it is missing, or of another type.
    """
    if name not in answer or not isinstance(answer[name], types):
        raise WireError(f"no {name}")
    return answer[name]
