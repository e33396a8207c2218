"""Running a campaign: workers on this machine, or on a Ray cluster, until nothing is left or the time is over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moeracle.files import lock
from moeracle.ref.errors import require

from .journal import FAILURES, JOURNALS, PARTS, finished
from .plan import Plan, read_plan
from .worker import DISK, ENDED, OTHERS_LEFT, work

ANSWERS_WITHIN = 10.0  # seconds in which a cluster must
POLL = 0.25  # seconds between two looks at the workers, and more where a look takes long:
SHARE_OF_LOOKING = 0.1  # of the driver's time at most
MEMORY_EVERY = 5.0  # seconds between two lines of memory.jsonl
MOST_DEATHS = 20  # workers that end without a case finished meanwhile, after which the campaign is given up
Progress = Callable[[str, int, int], None]


@dataclass
class Outcome:
    """How a campaign's run ended: how many workers had died, and what stopped it, or ""."""

    deaths: int = 0
    stopped: str = ""


class Workers(Protocol):
    """Where workers run."""

    def start(self) -> None:
        """Start one more."""
        ...

    def ended(self) -> list[int | None]:
        """Return the exit code of each that ended since it was asked last; None: it was killed."""
        ...

    def running(self) -> int:
        """Return how many there are."""
        ...

    def stop(self) -> None:
        """End all of them."""
        ...

    def pids(self) -> list[int]:
        """Return those that run on this machine, as far as that is known."""
        ...


class LocalWorkers:
    """Processes of this machine.

    Args:
        folder: the campaign's.
        until: of time.monotonic(), or None.
    """

    def __init__(self, folder: Path, until: float | None) -> None:
        self.folder, self.until, self.processes = folder, until, list[subprocess.Popen[bytes]]()

    def start(self) -> None:
        seconds = "" if self.until is None else str(max(0.0, self.until - time.monotonic()))
        command = [sys.executable, "-m", "moeracle.commands.sweep.worker", str(self.folder), seconds]
        self.processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))

    def ended(self) -> list[int | None]:
        over = [p for p in self.processes if p.poll() is not None]
        self.processes = [p for p in self.processes if p not in over]
        return [None if p.returncode < 0 else p.returncode for p in over]

    def running(self) -> int:
        return len(self.processes)

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()

    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]


class RayWorkers:
    """Tasks of a Ray cluster, whose nodes all see the campaign's folder under the same path.

    Args:
        folder: the campaign's.
        until: of time.monotonic(), or None.
        on_gpu: whether each worker takes a GPU.
    """

    def __init__(self, folder: Path, until: float | None, on_gpu: bool) -> None:
        import ray

        self.ray, self.folder, self.until, self.on_gpu = ray, folder, until, on_gpu
        self.task = ray.remote(num_cpus=1, num_gpus=int(on_gpu), max_retries=0)(_work_on_a_node)
        self.tasks: list[Any] = []

    def start(self) -> None:
        seconds = None if self.until is None else max(0.0, self.until - time.monotonic())
        self.tasks.append(self.task.remote(str(self.folder), seconds))

    def ended(self) -> list[int | None]:
        over, self.tasks = self.ray.wait(self.tasks, num_returns=len(self.tasks), timeout=0) if self.tasks else ([], [])
        return [self._code(task) for task in over]

    def _code(self, task: Any) -> int | None:
        try:
            return int(self.ray.get(task))
        except self.ray.exceptions.RayTaskError as error:
            print(f"error: {error.cause}", file=sys.stderr)
            return DISK if isinstance(error.cause, OSError) else 2
        except self.ray.exceptions.RayError:  # its process or its node has ended
            return None

    def running(self) -> int:
        return len(self.tasks)

    def stop(self) -> None:
        for task in self.tasks:
            self.ray.cancel(task, force=True)

    def pids(self) -> list[int]:
        return []

    def places(self) -> int:
        """Return how many workers the cluster has room for."""
        return max(1, int(self.ray.cluster_resources().get("GPU" if self.on_gpu else "CPU", 1)))


def _work_on_a_node(folder: str, seconds: float | None) -> int:
    return 0 if work(Path(folder), seconds) else OTHERS_LEFT


@contextmanager
def ray_cluster(address: str, jobs: int | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine.

    Args:
        address: "local", "auto", or HOST:PORT.
        jobs: CPUs of a local one; None: all.
    Raises:
        ValueError: Ray is not installed, or the address does not answer.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("--ray: needs the extra `ray`: pip install 'moeracle[ray]'") from None
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():  # Ray itself tries for minutes
        try:
            socket.create_connection((host, int(port)), timeout=ANSWERS_WITHIN).close()
        except OSError as error:
            raise ValueError(f"--ray: got {address!r}, nothing answers there ({error.strerror or error})") from None
    options: dict[str, Any] = {"include_dashboard": False, "num_cpus": jobs} if address == "local" else {}
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, **options)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"--ray: got {address!r}, no cluster answers there ({said[0][:200]})") from None
    try:
        yield
    finally:
        ray.shutdown()


def prepare(folder: Path) -> None:
    """Make a campaign's folders.

    Raises:
        ValueError: they cannot be made, or their file system has no locks.
    """
    try:
        for name in (JOURNALS, PARTS, FAILURES, ENDED):
            (folder / name).mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ENDED, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"--out: {folder} cannot be made ({error.strerror})") from None
    try:
        require(lock(handle, wait=False), f"--out: {folder} is used by another run, or its file system has no locks")
    finally:
        os.close(handle)


def run(folder: Path, workers: Workers, jobs: int, until: float | None, progress: Progress) -> Outcome:
    """Keep workers at work until nothing is left, or the time is over.

    Args:
        folder: a campaign's, with its plan.
        workers: where they run.
        jobs: how many at a time.
        until: of time.monotonic(); None: until nothing is left.
        progress: called with words, cases finished and cases in all (0: no end).
    """
    plan, outcome = read_plan(folder), Outcome()
    meter, fruitless, before, took = Meter(folder, plan), 0, -1, 0.0
    try:
        for _ in range(jobs):
            workers.start()
        while workers.running():
            time.sleep(max(POLL, took / SHARE_OF_LOOKING))
            looked = time.monotonic()
            meter.look(progress)
            took = time.monotonic() - looked
            meter.weigh([os.getpid(), *workers.pids()])
            for code in workers.ended():
                fruitless = 0 if meter.rows > before else fruitless + 1
                before = meter.rows
                outcome.deaths += code not in (0, OTHERS_LEFT)
                if code in (2, DISK):
                    outcome.stopped = "a worker could not go on (see above)"
                elif fruitless >= MOST_DEATHS:
                    outcome.stopped = f"{fruitless} workers ended, and no case was finished meanwhile"
                elif code != 0 and (until is None or time.monotonic() < until):
                    workers.start()
            if outcome.stopped:
                break
    finally:
        workers.stop()
        meter.look(progress)
    return outcome


class Meter:
    """Counts what is finished, and how fast that was since this run began; time.monotonic() does not follow the clock.

    Args:
        folder: the campaign's.
        plan: its plan.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan, self.started = folder, plan, time.monotonic()
        self.rows = self.before = self._count()
        self.weighed = -MEMORY_EVERY

    def _count(self) -> int:
        done = finished(self.folder)
        under_way = 0
        for entry in os.scandir(self.folder / JOURNALS):
            if entry.name.endswith(".jsonl") and int(entry.name[:-6]) not in done:
                try:
                    under_way += Path(entry.path).read_bytes().count(b'\n{"case":')
                except FileNotFoundError:  # finished meanwhile
                    continue
        return sum(done.values()) + under_way

    def look(self, progress: Progress) -> None:
        """Count again, and say so."""
        self.rows = max(self.rows, self._count())
        seconds = time.monotonic() - self.started
        rate = (self.rows - self.before) / max(seconds, 1e-9)
        words, whole = f"{rate:.1f} cases/s", self.plan.cases or 0
        if rate and whole:
            words += f", {_duration((whole - self.rows) / rate)} left"
        progress(words, self.rows, whole)

    def weigh(self, pids: list[int]) -> None:
        """Write down now and then how much memory processes and their descendants take, where /proc can tell."""
        seconds = time.monotonic() - self.started
        if seconds < self.weighed + MEMORY_EVERY or not os.path.isdir("/proc/self"):
            return
        self.weighed = seconds
        with open(self.folder / "memory.jsonl", "a") as file:
            file.write(f"[{seconds:.1f}, {resident(pids)}]\n")


def resident(pids: list[int]) -> int:
    """Return the bytes of memory that processes and their descendants hold."""
    children: dict[int, list[int]] = {}
    pages: dict[int, int] = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError, ValueError, IndexError):  # it has ended
            children.setdefault(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]), []).append(
                pid
            )
            pages[pid] = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    found, waiting = set[int](), list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return sum(pages.get(pid, 0) for pid in found) * os.sysconf("SC_PAGE_SIZE")


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(max(0.0, seconds)), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
