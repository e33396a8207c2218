"""The memory of a bisection over revisions: what was asked, and what each commit turned out to be, a file each.

    <git's common folder>/moeracle-bisect/<key>/plan.json               what was asked; the key is its digest
    <git's common folder>/moeracle-bisect/<key>/<commit>.json           one Judged
    <git's common folder>/moeracle-bisect/<key>/<commit>.log            what its build and its judgement printed

Nothing here imports torch: the runner that `git bisect run` starts reads these files for every commit.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..common.files import write_atomically

FORMAT_VERSION = 1
FOLDER = "moeracle-bisect"
GOOD, BAD, SKIP = "good", "bad", "skip"
EXIT_CODE = {GOOD: 0, BAD: 1, SKIP: 125}  # what `git bisect run` understands


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
    verdict: str
    reason: str = ""
    kind: str = ""
    statuses: list[str] = field(default_factory=list)
    max_ratio: float | None = None
    stage: str = ""
    tier: str = ""
    build_seconds: float = 0.0
    seconds: float = 0.0

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
        """Open a plan's memory in git's common folder, and write the plan down."""
        memory = cls(common / FOLDER / plan.key)
        _write_json(memory.folder / "plan.json", {"format_version": FORMAT_VERSION, **asdict(plan)})
        return memory

    def plan(self) -> Plan:
        """Read the plan."""
        plain = json.loads((self.folder / "plan.json").read_text())
        plain.pop("format_version")
        return Plan(**plain)

    def log(self, commit: str) -> Path:
        """Where a commit's build and judgement print."""
        return self.folder / f"{commit}.log"

    def get(self, commit: str) -> Judged | None:
        """Return what is remembered of a commit; a file that cannot be read is as good as none."""
        try:
            plain = json.loads((self.folder / f"{commit}.json").read_text())
            plain["max_ratio"] = None if plain["max_ratio"] is None else float(plain["max_ratio"])
            return Judged(**plain)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, judged: Judged) -> None:
        """Remember a commit."""
        _write_json(self.folder / f"{judged.commit}.json", judged.as_dict())

    def all(self) -> dict[str, Judged]:
        """Return every commit that is remembered."""
        names = sorted(path.stem for path in self.folder.glob("*.json") if path.stem != "plan")
        return {name: judged for name in names if (judged := self.get(name)) is not None}

    def forget(self) -> None:
        """Delete all of it."""
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
