"""The memory of a bisection over revisions: what was asked, and what each commit turned out to be, a file each.

<git's common folder>/moeracle-bisect/<key>/plan.json               what was asked; the key is its digest
<git's common folder>/moeracle-bisect/<key>/<commit>.json           one Judged
<git's common folder>/moeracle-bisect/<key>/<commit>.log            what its build and its judgement printed
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from moeracle.files import OPEN, lock, parse_json, read_bytes, write_atomically

FORMAT_VERSION = 1
FOLDER = "moeracle-bisect"
GOOD: Final = "good"
BAD: Final = "bad"
SKIP: Final = "skip"


@dataclass(frozen=True)
class Plan:
    """What a bisection was asked to do; two equal plans share their memory.

    Args:
        good, bad: full commit ids.
        target: the TARGET, as typed.
        case: the case's text.
        build: a shell command, or "".
        device: where to run, or "".
        repeat: judgements of each commit.
        timeout: seconds that one build, and one commit's judgement, may take.
        harness: digest of a TARGET file that no revision holds, "" if the revisions hold it.
    """

    good: str
    bad: str
    target: str
    case: str
    build: str = ""
    device: str = ""
    repeat: int = 3
    timeout: float = 1800.0
    harness: str = ""

    __pydantic_config__: ClassVar[Any] = OPEN

    @property
    def key(self) -> str:
        """The digest under which it is remembered; a longer timeout is another plan, since skips may change."""
        text = json.dumps([FORMAT_VERSION, *asdict(self).items()])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass
class Judged:
    """One commit.

    Args:
        commit: its full id.
        verdict: "good", "bad" or "skip".
        reason: in one line.
        kind: why it was skipped: "build", "build timeout", "target", "unjudged", "flaky"; else "".
        statuses: what each judgement said, in order.
        max_ratio: largest error over bound of any of them; inf for a result that is not finite; None if there is none.
        stage, tier: of a bad one.
        build_seconds, seconds: of the build and of the judgement.
    """

    commit: str
    verdict: Literal["good", "bad", "skip"]
    reason: str = ""
    kind: str = ""
    statuses: list[str] = field(default_factory=list)
    max_ratio: float | None = None
    stage: str = ""
    tier: str = ""
    build_seconds: float = 0.0
    seconds: float = 0.0

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}  # not strict: inf and nan stand there as text

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what is not finite as text."""
        plain = asdict(self)
        if self.max_ratio is not None and not math.isfinite(self.max_ratio):
            plain["max_ratio"] = str(self.max_ratio)
        return plain


class Memory:
    """The files of one plan.

    Args:
        folder: where they are; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of(cls, common: Path, plan: Plan) -> Memory:
        """Return a plan's memory in git's common folder."""
        return cls(common / FOLDER / plan.key)

    @contextmanager
    def opened(self, plan: Plan, forget: bool, waiting: Callable[[], object]) -> Iterator[None]:
        """Keep other runs of the plan waiting, remove what a killed one left, and write the plan down.

        Args:
            plan: whose memory this is.
            forget: delete what is remembered.
            waiting: called if another run must be waited for.
        """
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            if not lock(handle, wait=False):
                waiting()
                lock(handle)
            for path in self.folder.iterdir():
                if forget or path.name.startswith("."):
                    path.unlink()
            _write_json(self.folder / "plan.json", {"format_version": FORMAT_VERSION, **asdict(plan)})
            yield
        finally:
            os.close(handle)

    def plan(self) -> Plan:
        """Read the plan.

        Raises:
            ValueError: in one line: its file is damaged.
        """
        path = self.folder / "plan.json"
        return parse_json(read_bytes(path, "bisect"), Plan, f"bisect: {path}")

    def log(self, commit: str) -> Path:
        """Where a commit's build and judgement print."""
        return self.folder / f"{commit}.log"

    def get(self, commit: str) -> Judged | None:
        """Return what is remembered of a commit; a file that cannot be read is as good as none."""
        try:
            judged = parse_json(read_bytes(self.folder / f"{commit}.json", "bisect"), Judged, "bisect")
        except ValueError:
            return None
        return judged if judged.commit == commit else None

    def put(self, judged: Judged) -> None:
        """Remember a commit."""
        _write_json(self.folder / f"{judged.commit}.json", judged.as_dict())

    def all(self) -> dict[str, Judged]:
        """Return every commit that is remembered."""
        names = sorted(path.stem for path in self.folder.glob("*.json") if path.stem != "plan")
        return {name: judged for name in names if (judged := self.get(name)) is not None}


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False))
