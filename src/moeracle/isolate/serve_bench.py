"""What a kernel's process does for the benchmark: it holds a point's problems, runs its kernel on them and times it.

What is said here of times is this process's word; what was computed when it was timed is read by the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from moeracle.kernels.bench.timing import GraphTimer, HostTimer, Launch, Prepared, launches
from moeracle.properties.trial.call import wait_for_device
from moeracle.target.declaration import Kernel

from .wire import received

_MADE = (GraphTimer.once, HostTimer.once)  # as they are before any TARGET is imported


class Server(Protocol):
    """The process's server (serve.py), as far as it is asked here."""

    kernels: Sequence[Kernel]
    used: int
    output: Any
    device_copies: list[tuple[torch.Tensor, torch.Tensor]]

    def grow(self, size: int) -> None: ...
    def bytes_at(self, at: int, size: int) -> torch.Tensor: ...
    def argument(self, header: dict[str, Any], device: torch.device, whole: torch.Tensor | None) -> torch.Tensor: ...
    def called(self, kernel: Kernel, args: Sequence[Any], run: int, poison: float | None) -> dict[str, Any]: ...
    def late(self, message: dict[str, Any]) -> dict[str, Any]: ...


class Held:
    """The problems of one point, on the kernel's device, and its kernel's calls on them.

    Args:
        server: whose memory and kernels these are.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by where in the memory they are
        self.launches: list[Launch] = []
        self.timer: GraphTimer | HostTimer = HostTimer()
        self.side: Prepared | None = None

    @property
    def answers(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """What each question of the judge's is answered by."""
        return {"hold": self.hold, "held": self.held, "prepare": self.prepare, "round": self.round,
                "inputs": self.inputs, "again": self.again, "launches": self.count}  # fmt: skip

    def hold(self, message: dict[str, Any]) -> dict[str, Any]:
        """Take the problems of a point in place of the last one's."""
        self.launches, self.side = [], None
        self.copies.clear()
        server, self.kernel = self.server, self.server.kernels[message["at"]]
        device = torch.device(self.kernel.device)
        server.grow(message["used"])
        server.used, server.output, server.device_copies = message["used"], None, []

        def argument(header: dict[str, Any]) -> torch.Tensor:
            if header["at"] not in self.copies and header["bytes"] and device.type != "cpu":
                whole = server.bytes_at(header["at"], header["bytes"])
                self.copies[header["at"]] = (whole.to(device), whole)
            return server.argument(header, device, self.copies.get(header["at"], (None,))[0])

        self.launches = [Launch(self.kernel.fn, received(args, argument)) for args in message["problems"]]
        self.timer = HostTimer() if device.type == "cpu" else GraphTimer(device)
        return {}

    def held(self, message: dict[str, Any]) -> dict[str, Any]:
        """Call the kernel on one problem, as it is called on any case."""
        return self.server.called(self.kernel, self.launches[message["problem"]].args, 0, None)

    def prepare(self, message: dict[str, Any]) -> dict[str, Any]:
        """Prepare the calls on every problem to be timed."""
        self.side = self.timer.prepare(self.launches)
        return {"captured": self.side.captured, "note": self.side.note}

    def round(self, message: dict[str, Any]) -> dict[str, Any]:
        """Time so many runs of all calls: microseconds a call."""
        assert self.side is not None
        once = _MADE[isinstance(self.timer, HostTimer)]
        return {"us": once(self.timer, self.side, message["times"])}  # type: ignore[arg-type]

    def inputs(self, message: dict[str, Any]) -> dict[str, Any]:
        """Copy the arguments into the memory, as the kernel left them."""
        for there, here in self.copies.values():
            here.copy_(there)
        return {}

    def again(self, message: dict[str, Any]) -> dict[str, Any]:
        """Take the arguments from the memory, run what was timed once more, and answer with the first call's result."""
        assert self.side is not None
        for there, here in self.copies.values():
            there.copy_(here)
        self.side.run()
        wait_for_device()
        self.server.output = self.launches[0].last
        return self.server.late({})

    def count(self, message: dict[str, Any]) -> dict[str, Any]:
        """Count what one call launches on a GPU."""
        return {"launches": launches(self.launches[0])}
