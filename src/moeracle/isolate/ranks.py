"""A kernel that runs over ranks: a child each, called together, and watched so that the one at fault is named."""

from __future__ import annotations

import os
import re
import select
import shutil
import tempfile
import time
from typing import Any

import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.common.endings import Ended, InternalError
from moeracle.properties.common.guard import Guarded, same_bits
from moeracle.properties.trial.ranks import args_of_rank, joined_outputs
from moeracle.ref.contracts.ranks import Ranks
from moeracle.target.load import TargetError

from .client import LOOK_EVERY, Child
from .remote import GIVEN_UP, Remote, TargetLoader, ended_of
from .start import NoChildError

GRACE = 2.0  # seconds that the other ranks have once one has failed: what they say tells cause from consequence
SHOWN = 160  # characters of what a rank says that is not the one at fault
STACK = 0.3  # seconds for a rank to write where it stands
# What a rank says when another one is gone, or a collective was given up: the consequence, not the cause.
_OF_OTHERS = ("connection closed by peer", "connection reset", "connection refused", "broken pipe", "gloo", "nccl",
              "distbackenderror", "diststoreerror", "distnetworkerror", "socket timeout", "c10d")  # fmt: skip
_WAITS = "torch/distributed/"
_FINGERPRINT = re.compile(
    r"Rank (\d+) is running collective: CollectiveFingerPrint\(SequenceNumber=\d+,? ?OpType=(\w+)"
    r"(?:, TensorShape=\[([\d, ]*)\])?"
)
_PLACE = re.compile(r"\([^()]*:\d+\)$")


class Ranked(Remote):
    """The function of a kernel over ranks; itself it is rank 0, which also answers for all.

    Args:
        loader, at, said: as of Remote.
        ranks: how many, and where experts and tokens lie.
    """

    def __init__(self, loader: TargetLoader, at: int, said: dict[str, Any], ranks: Ranks) -> None:
        super().__init__(loader, at, said)
        self.ranks = ranks
        self.members: list[Remote] = [self, *(Remote(loader, at, said) for _ in range(ranks.count - 1))]
        self.folder = ""  # of the file by which the ranks find each other; "" before they have
        self.remarks: list[str] = []  # what calls show beside their results, since somebody cleared it
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []  # of the call before, by rank: x, and its partial sum

    def remote(self, args: dict[str, Any], run: int, case: Case | None, poison: float | None) -> Any:
        """Call every rank with its part; return what they returned as one output. Arguments are those of Remote's.

        Raises:
            Ended: a rank raised, ended its process, hung, or returned what does not fit the others'; it is named.
        """
        children = self._gathered()
        parts = [Guarded(args_of_rank(args, self.ranks, rank)) for rank in range(self.ranks.count)]
        seconds = sum(m.seconds(case, 0) for m in self.members[:1])
        started = time.monotonic()
        for rank, (member, child, part) in enumerate(zip(self.members, children, parts, strict=True)):
            said = {"rank": rank, "of": self.ranks.count, "folder": self.folder, "seconds": seconds}
            try:
                child.put(member.call_on(child, part.args, run, poison) | {"rank": said}, f"the call on rank {rank}")
            except Ended as ended:
                raise self._failed({rank: ended}, []) from None
        answers = self._answers(children, seconds, f"the call on {case or 'a probe'}")
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.computes_wrongly = any(bool(answer.get("wrong")) for answer in answers)
        try:
            outputs = [m.taken(child, a) for m, child, a in zip(self.members, children, answers, strict=True)]
        except Ended:
            self._let_go()
            raise
        for rank, part in enumerate(parts):
            changed = part.written()
            if changed:
                raise Ended("inputs", f"rank {rank} wrote into its input {changed}; inputs must be unchanged")
        self.remarks += self._repeated(outputs, parts)
        return joined_outputs(outputs, args, self.ranks)

    def _repeated(self, outputs: list[Any], parts: list[Guarded]) -> list[str]:
        """Say which ranks handed on the partial sum of the call before, although they were given other tokens."""
        sums = [output.get("partial") if isinstance(output, dict) else None for output in outputs]
        if not all(isinstance(one, torch.Tensor) for one in sums):
            self.before = []
            return []
        before, self.before = (
            self.before,
            [(part.args["x"].clone(), one) for part, one in zip(parts, sums, strict=True) if one is not None],
        )
        return [
            f"rank {rank} handed on the partial sum of the call before: it is stale"
            for rank, ((x_then, then), (x, now)) in enumerate(zip(before, self.before, strict=False))
            if same_bits(then, now) and not same_bits(x_then, x) and bool(now.any())
        ]

    def late(self) -> bool:
        """Say whether any rank's results changed after the call."""
        return any(Remote.late(member) for member in self.members)

    def close(self, spare: bool = True) -> None:
        """End every rank; a later call starts others. `spare` is Remote's."""
        self._let_go()
        super().close(spare)

    def _let_go(self) -> None:
        """End every rank: one that has failed leaves the others' group useless."""
        for member in self.members:
            if member.child is not None:
                member.child.release()
                member.child = None
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder = ""

    def _gathered(self) -> list[Child]:
        """Return a child for each rank, all of which have loaded the TARGET."""
        if self.folder and not all(m.child is not None and m.child.alive for m in self.members):
            self._let_go()
        if not self.folder:
            try:
                self._begin()
            except (Ended, InternalError):
                self._let_go()
                raise
        return [member.child for member in self.members if member.child is not None]

    def _begin(self) -> None:
        """Let every rank load the TARGET, all at the same time."""
        try:
            for member in self.members[1:] if len(self.endings) < GIVEN_UP else ():
                member.child = self.loader.begun()
            self.started()  # rank 0, or the reason why no more are
            for rank, member in enumerate(self.members[1:], 1):
                assert member.child is not None
                try:
                    self.loader.loaded(member.child)
                except TargetError as error:
                    raise self.counted(Ended("exit", f"rank {rank}: cannot be loaded: {error}")) from None
                except Ended as ended:
                    said = Ended(ended.tier, f"rank {rank}: its import {ended.lines[0]}", *ended.lines[1:])
                    raise self.counted(said) from None
        except NoChildError as error:  # no fault of the kernel's
            raise InternalError(str(error)) from None
        self.folder = tempfile.mkdtemp(prefix="moeracle-ranks-")

    def _answers(self, children: list[Child], seconds: float, what: str) -> list[dict[str, Any]]:
        """Wait until every rank has answered.

        Raises:
            Ended: one did not; the text names which, and what the others did meanwhile.
        """
        answers: dict[int, dict[str, Any]] = {}
        failures: dict[int, Ended] = {}
        waiting = list(range(len(children)))
        end = time.monotonic() + seconds
        while waiting and time.monotonic() < end:
            sockets = [children[rank].sock.fileno() for rank in waiting]
            ready, _, _ = select.select(sockets, [], [], max(0.0, min(end - time.monotonic(), LOOK_EVERY)))
            for rank in list(waiting):
                child = children[rank]
                fds = {fd for fd, _ in child.poll.poll(0)}
                try:
                    answer = child.answer_from(fds) if fds else None
                    if not ready and not fds:
                        child.still_there()
                    if answer is not None and "ended" in answer:
                        raise ended_of(answer)
                except Ended as ended:
                    failures[rank], answer = ended, {}
                    end = min(end, time.monotonic() + GRACE)
                if answer is not None:
                    answers[rank] = answer
                    waiting.remove(rank)
        if failures:
            raise self._failed(failures, waiting)
        if waiting:
            raise self._hung(children, waiting, f"{what} had not ended after {seconds:.0f} s (--case-timeout)")
        return [answers[rank] for rank in range(len(children))]

    def _failed(self, failures: dict[int, Ended], waiting: list[int]) -> Ended:
        """Return the failure that the others follow from, with its rank; end all ranks."""
        self._let_go()
        apart = _apart(failures)
        if apart is not None:
            return apart
        cause = min(failures, key=lambda rank: (_of_others(failures[rank]), failures[rank].tier == "call", rank))
        first = failures[cause]
        alike = [rank for rank, ended in failures.items() if ended.lines[:1] == first.lines[:1]]
        who = f"each of the {self.ranks.count} ranks" if len(alike) == self.ranks.count else f"rank {cause}"
        later = {rank: ended for rank, ended in failures.items() if rank not in (cause, *alike)}
        others = [f"rank {rank} then {ended.lines[0][:SHOWN]}" for rank, ended in later.items()]
        others += [f"rank {rank} still ran" for rank in waiting]
        said = Ended(first.tier, f"{who}: {first.lines[0]}", *first.lines[1:], *others[:3])
        return said if first.tier == "call" else self.counted(said)

    def _hung(self, children: list[Child], waiting: list[int], text: str) -> Ended:
        """Return the ending of a call that some ranks did not come back from; end all ranks.

        A rank that computes, or sleeps, keeps those waiting that stand in a collective; where all do, no two of which
        go together, each one's place is said.
        """
        for rank in waiting:
            children[rank].show_stack()
        time.sleep(STACK)
        places = {rank: children[rank].stack() for rank in waiting}
        self._let_go()
        inside = [rank for rank in waiting if any(_WAITS in line for line in places[rank])]
        outside, back = [r for r in waiting if r not in inside], [r for r in range(len(children)) if r not in waiting]
        said = [f"rank {r} stands at {_of_user(places[r])}" for r in waiting]
        if outside and inside:
            head = f"{_ranks(outside)}: {text}, while {_ranks(inside)} waited for {_it(outside)} in a collective"
        elif back:
            head = f"{_ranks(back)} returned, while {_ranks(waiting)} waited in a collective: {text}"
        elif inside:
            head = f"the ranks wait for each other, in collectives that do not go together: {text}"
        else:
            head = f"{_ranks(waiting)}: {text}"
        return self.counted(Ended("timeout", head, *said[:4]))


def _apart(failures: dict[int, Ended]) -> Ended | None:
    """Return the one line about ranks whose collectives do not go together, as torch has found; None if it has not."""
    found = {rank: _FINGERPRINT.search(ended.lines[0]) for rank, ended in failures.items()}
    seen = {int(match[1]): (match[2], match[3] or "") for match in found.values() if match is not None}
    if not seen:
        return None
    said = [
        f"rank {rank} in {kind.lower()}{f' of [{shape}]' if shape else ''}"
        for rank, (kind, shape) in sorted(seen.items())
    ]
    place = next(_PLACE.search(failures[rank].lines[0]) for rank in failures if found[rank] is not None)
    alike = len({kind for kind, _ in seen.values()}) == 1
    about = "the shape of what they reduce or exchange" if alike else "which collective comes next"
    at = f" {place[0]}" if place is not None else ""
    return Ended("shape" if alike else "call", f"ranks disagree about {about}: {', '.join(said)}{at}")


def _of_others(ended: Ended) -> bool:
    text = " ".join(ended.lines).lower()
    return any(sign in text for sign in _OF_OTHERS)


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _it(ranks: list[int]) -> str:
    return "them" if len(ranks) > 1 else "it"


def _of_user(lines: list[str]) -> str:
    """Return the innermost line of a stack that is the kernel's own."""
    site = f"{os.sep}torch{os.sep}"
    return next((line for line in lines if site not in line and "moeracle/" not in line), lines[0] if lines else "?")
