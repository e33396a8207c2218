"""Commands that are killed at random moments: how each is started, and what must hold after a kill and at the end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

from moeracle.commands.sweep.summary import rows_of
from moeracle.files import parse_json
from moeracle.properties.bisect.history_state import FOLDER, Judged
from moeracle.properties.golden.store import read_set

from .bisect_repository import git
from .commands import RIGHT

WORDS = (sys.executable, "-m", "moeracle")
SILU = '''"""Version {number}."""
import moeracle

@moeracle.kernel("silu_and_mul", contract="grouped")
def mine(h):
    gate, up = h.float().chunk(2, 1)
    return (gate.sigmoid() * gate * {factor}).to(h.dtype) * up.to(h.dtype)
'''
COMMITS, WRONG = 8, 6
CASE = "silu_and_mul/T2-I8/bf16/-/-/integers/s0"


class Killed(ABC):
    """One command.

    Args:
        folder: an empty one; temporary files go into a folder of it.
    """

    remembered: Mapping[str, int] = {}  # what earlier runs left for the next to go on from

    words: tuple[str, ...] = ()
    exit_code = 0

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary, self.resumed = folder, folder / "temporary", 0
        self.temporary.mkdir(parents=True)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Make what the command works on, and set `words`."""

    @abstractmethod
    def check(self) -> None:
        """Assert what holds whenever the command was killed."""

    @abstractmethod
    def check_end(self) -> None:
        """Assert what holds when it has ended."""

    @abstractmethod
    def again(self) -> None:
        """Let the next run have something to do, after one that ended."""

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command."""
        env = {**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        log = (self.folder / "log").open("ab")
        with log:
            return subprocess.Popen([*WORDS, *self.words], cwd=self.folder, env=env, stdout=log, stderr=log)

    def leftovers(self) -> list[str]:
        """Return what the command leaves for a moment: temporary files, staged sets."""
        theirs = {".git", ".hypothesis"}  # what git and Hypothesis keep is their own
        found = (path for path in self.folder.rglob(".[!h]*") if theirs.isdisjoint(path.parts))
        names = [str(path.relative_to(self.folder)) for path in found]
        return sorted(names + self.temporaries())

    def temporaries(self) -> list[str]:
        """Return what lies in the folder of temporary files; torch's cache stays there by its own design."""
        return [path.name for path in self.temporary.iterdir() if not path.name.startswith("torchinductor_")]

    def run(self) -> float:
        """Run it to its end; return the seconds that it took."""
        began = time.monotonic()
        code = self.start().wait()
        assert code == self.exit_code, (code, (self.folder / "log").read_text()[-2000:])
        self.check()
        self.check_end()
        assert self.leftovers() == [], self.leftovers()
        return time.monotonic() - began

    def kill(self, process: subprocess.Popen[bytes], rng: random.Random) -> None:
        """Kill a run."""
        process.kill()

    def kill_at_random(self, times: int, rng: random.Random) -> int:
        """Kill it so often, at moments of its whole run and of its end; return how many more runs were faster.

        Every next run begins where the killed one stopped.
        """
        took, ended, killed = self.run(), 0, 0
        self.again()
        while killed < times:
            i, goes_on = killed + ended, bool(self.remembered)
            process = self.start()
            try:
                process.wait(took * (0.6 + 0.5 * rng.random() if i % 2 else rng.random()))
            except subprocess.TimeoutExpired:
                self.kill(process, rng)
            code = process.wait()
            killed += code == -9
            self.resumed += code == -9 and goes_on
            assert code in (-9, self.exit_code), (self.folder / "log").read_text()[-2000:]
            self.check()
            if code == self.exit_code:
                ended += 1
                assert ended <= 10 * times, f"{killed} kills in {killed + ended} runs"
                self.check_end()
                self.again()
        self.run()
        return ended


class Regen(Killed):
    """`golden regen` of one op over a set that lacks entries."""

    def prepare(self) -> None:
        self.words = ("golden", "regen", "--dir", "set", "--op", "silu_and_mul", "--accept", "kills")
        self.old = self.files()

    def files(self) -> dict[str, bytes]:
        """Return the set's files as they are after the next command has looked at them."""
        if (self.folder / "set" / "manifest.json").is_file():
            shutil.rmtree(self.folder / "copy", ignore_errors=True)
            shutil.copytree(self.folder / "set", self.folder / "copy")
            read_set(self.folder / "copy")
        found = [path for path in sorted((self.folder / "copy").rglob("*")) if path.is_file()]
        whole = {str(path.relative_to(self.folder / "copy")): path.read_bytes() for path in found}
        shutil.rmtree(self.folder / "copy", ignore_errors=True)
        return whole

    def check(self) -> None:
        now = self.files()
        manifest = now.get("manifest.json", b"").count(b'"case"')
        assert manifest in {len(self.old and json.loads(self.old["manifest.json"])["entries"]), self.whole()}

    def whole(self) -> int:
        """Return how many entries a whole set has."""
        return 30

    def check_end(self) -> None:
        assert len(read_set(self.folder / "set").entries) == self.whole()

    def again(self) -> None:
        manifest = json.loads((self.folder / "set" / "manifest.json").read_text())
        kept = manifest["entries"][: self.whole() // 2]
        files = {name: sha for name, sha in manifest["files"].items() if name in {entry["file"] for entry in kept}}
        for name in set(manifest["files"]) - set(files):
            (self.folder / "set" / name).unlink()
        text = json.dumps({"format_version": 1, "kind": manifest["kind"], "files": files, "entries": kept})
        (self.folder / "set" / "manifest.json").write_text(text)
        self.old = self.files()


class Make(Regen):
    """`golden make` of a kernel's bits."""

    def prepare(self) -> None:
        (self.folder / "mine.py").write_text(RIGHT)
        cases = [f"int4_linear/T2-N16-K64-G32/bf16/exllama-sym/-/normal/s{seed}" for seed in range(6)]
        words = ("golden", "make", "mine.py", "--dir", "set", "--accept", "kills")
        self.words = (*words, *(word for case in cases for word in ("--case", case)))
        self.old = self.files()

    def whole(self) -> int:
        return 6


class Check(Killed):
    """`check` with all its reports, over reports that are there."""

    names = ("r.json", "r.xml", "r.html")

    def prepare(self) -> None:
        (self.folder / "mine.py").write_text(SILU.format(number=0, factor=1.0))
        self.words = ("check", "mine.py", "--examples", "3", "--profile", "smoke",
                      "--json", "r.json", "--junit", "r.xml", "--html", "r.html")  # fmt: skip
        self.again()

    def again(self) -> None:
        for name in self.names:
            (self.folder / name).write_text("old")

    def check(self) -> None:
        texts = {name: (self.folder / name).read_text() for name in self.names}
        if texts["r.json"] != "old":
            assert json.loads(texts["r.json"])["exit_code"] == 0
        if texts["r.xml"] != "old":
            ElementTree.fromstring(texts["r.xml"])
        assert texts["r.html"] == "old" or texts["r.html"].rstrip().endswith("</html>")

    def check_end(self) -> None:
        assert all((self.folder / name).read_text() != "old" for name in self.names)


class Faults(Check):
    """`faults --json` of one fault."""

    names = ("r.json",)

    def prepare(self) -> None:
        self.words = ("faults", "--op", "silu_and_mul", "--fault", "F22", "--json", "r.json")
        self.again()

    def check(self) -> None:
        text = (self.folder / "r.json").read_text()
        assert text == "old" or json.loads(text)["kind"] == "moeracle faults"


class Bisect(Killed):
    """`bisect git` of eight commits, which goes on where it was killed."""

    exit_code = 1

    def prepare(self) -> None:
        repository = self.folder / "repository"
        (repository / "kernels").mkdir(parents=True)
        git(repository, "init", "--quiet", "--initial-branch=main")
        for number in range(1, COMMITS + 1):
            text = SILU.format(number=number, factor=1.0 if number < WRONG else 1.5)
            (repository / "kernels" / "mine.py").write_text(text)
            git(repository, "add", "--all")
            git(repository, "commit", "--quiet", "--message", f"change {number}")
        self.builds = self.folder / "builds"
        self.builds.write_text("")
        build = f"git rev-parse HEAD >> {self.builds}"
        ends = ("--good", f"main~{COMMITS - 1}", "--bad", "main", "--case", CASE, "--repo", "repository")
        self.words = ("bisect", "git", "kernels/mine.py", *ends, "--build", build, "--repeat", "1", "--json", "r.json")
        self.remembered: dict[str, int] = {}

    def memory(self) -> dict[str, Judged]:
        """Return what is remembered: every file whole."""
        files = (self.folder / "repository" / ".git" / FOLDER).glob("*/[0-9a-f]*.json")
        return {path.stem: parse_json(path.read_bytes(), Judged, str(path)) for path in files}

    def check(self) -> None:
        built, memory = self.builds.read_text().split(), self.memory()
        assert set(self.remembered) <= set(memory), "nothing that was judged is lost"
        examined = (git(self.folder / "repository", "rev-parse", f"main~{COMMITS - WRONG}"),)
        repeated = [c for c, count in self.remembered.items() if built.count(c) > count and c not in examined]
        assert repeated == [], "nothing that is remembered is judged again"
        self.remembered |= {commit: built.count(commit) for commit in memory if commit not in self.remembered}

    def check_end(self) -> None:
        found = json.loads((self.folder / "r.json").read_text())
        assert found["first_bad"]["subject"] == f"change {WRONG}"
        listed = git(self.folder / "repository", "worktree", "list", "--porcelain").splitlines()
        assert [line for line in listed if line.startswith("worktree ")] == [f"worktree {self.folder / 'repository'}"]
        assert self.processes() == []

    def processes(self) -> list[str]:
        """Return the processes that a bisection's worktree is known to, that is its own."""
        mark, found = os.fsencode(self.temporary / "moeracle-bisect-"), []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if mark in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(pid)
            except OSError:
                continue
        return found

    def leftovers(self) -> list[str]:
        memory = self.folder / "repository" / ".git" / FOLDER
        return sorted(self.temporaries() + [path.name for path in memory.rglob(".*")])

    def again(self) -> None:
        shutil.rmtree(self.folder / "repository" / ".git" / FOLDER)
        self.builds.write_text("")
        self.remembered = {}


class Sweep(Killed):
    """`sweep` of a good kernel beside one that crashes and one that hangs; workers are killed, then the driver."""

    exit_code = 1
    cases = 120

    def prepare(self) -> None:
        text = SILU.format(number=0, factor=1.0)
        for name, does in (("crashes", "import ctypes; ctypes.string_at(0)"), ("hangs", "import time; time.sleep(99)")):
            head = f'\n@moeracle.kernel("silu_and_mul", contract="grouped")\ndef {name}(h):\n'
            text += f"{head}    if len(h) > 100:\n        {does}\n    return mine(h)\n"
        (self.folder / "mine.py").write_text(text)
        self.words = ("sweep", "mine.py", "--cases", str(self.cases), "--jobs", "2", "--profile", "smoke",
                      "--case-timeout", "1", "--out", "campaign")  # fmt: skip
        self.remembered: dict[str, int] = {}

    def rows(self) -> list[str]:
        """Return kernel, case and digests of every finished case."""
        if not (self.folder / "campaign" / "parts").is_dir():
            return []
        return [f"{row['kernel']} {row['case']} {row['digests']}" for row in rows_of(self.folder / "campaign")]

    def kill(self, process: subprocess.Popen[bytes], rng: random.Random) -> None:
        workers = [pid for pid in os.listdir("/proc") if pid.isdigit() and self._parent(pid) == process.pid]
        for pid in workers[: rng.randrange(3)]:
            with suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)
        if rng.random() < 0.5:
            time.sleep(rng.random())
        process.kill()

    def _parent(self, pid: str) -> int:
        try:
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            return 0

    def check(self) -> None:
        found = self.rows()
        assert len(found) == len(set(found)), "no case is finished twice"
        assert set(self.remembered) <= set(found), "no finished case is lost"
        self.remembered = dict.fromkeys(found, 1)

    def check_end(self) -> None:
        found = self.rows()
        assert len({text.rpartition(" ")[0] for text in found}) == len(found) == self.cases
        assert not list((self.folder / "campaign" / "journal").iterdir())

    def again(self) -> None:
        shutil.rmtree(self.folder / "campaign")
        self.remembered = {}


COMMANDS: dict[str, type[Killed]] = {
    "golden regen": Regen,
    "golden make": Make,
    "check": Check,
    "faults": Faults,
    "bisect git": Bisect,
    "sweep": Sweep,
}
