"""SIGKILL at random moments: nothing half-written, lost or repeated, and the next run removes what was left.

`make kills` kills each command thirty times, a run of the tests one of them once (docs/robustness.md).
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from support.kills import COMMANDS, Bisect, Regen

KILLS = int(os.environ.get("MOERACLE_KILLS", "0"))
SEED = int(os.environ.get("MOERACLE_KILLS_SEED", "0"))
FEW = {"check": 1}  # test_swap.py and test_abandoned.py kill the others, at chosen moments

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc, to see which processes are left")


@pytest.mark.parametrize("name", COMMANDS if KILLS else FEW)
def test_a_killed_command_loses_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    times, started = KILLS or FEW[name], time.monotonic()
    work = COMMANDS[name](tmp_path / "work")
    ended = work.kill_at_random(times, random.Random(f"{SEED} {name}"))
    about = f"{times} kills ({work.resumed} of runs that went on from what was remembered), {ended} runs ended before"
    print(f"\n{name}: {about}; {time.monotonic() - started:.0f} s", flush=True)


def test_two_at_once_do_not_lose_each_others_work(tmp_path: Path) -> None:
    if not KILLS:
        pytest.skip("MOERACLE_KILLS is not set")
    for kind in (Regen, Bisect):
        work = kind(tmp_path / kind.__name__)
        both = [work.start() for _ in range(2)]
        assert [process.wait() for process in both] == [work.exit_code] * 2, (work.folder / "log").read_text()[-2000:]
        work.check()
        work.check_end()
        assert work.leftovers() == []
    built = Path(tmp_path / "Bisect" / "builds").read_text().split()
    assert len(built) - len(set(built)) <= 2, "the second run finds what the first remembered; both examine the result"


def test_what_is_planted_is_seen(tmp_path: Path) -> None:
    work = Regen(tmp_path / "work")
    (work.folder / "set").mkdir()
    (work.folder / "set" / ".golden.new").mkdir()
    assert work.leftovers() == ["set/.golden.new"]
    (work.folder / "set" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        work.check()
    bisect = Bisect(tmp_path / "bisect")
    memory = bisect.folder / "repository" / ".git" / "moeracle-bisect" / "key"
    memory.mkdir(parents=True)
    bisect.remembered = {"c" * 40: 1}
    with pytest.raises(AssertionError, match="nothing that was judged is lost"):
        bisect.check()
    (memory / f"{'c' * 40}.json").write_text('{"commit": "' + "c" * 40 + '", "verdict": "good"}')
    bisect.builds.write_text(f"{'c' * 40}\n" * 2)
    with pytest.raises(AssertionError, match="nothing that is remembered is judged again"):
        bisect.check()
    mark = f"PYTHONPATH={bisect.temporary}/moeracle-bisect-x/tree"
    with subprocess.Popen(["env", mark, "sleep", "60"]) as process:
        while not bisect.processes():
            time.sleep(0.01)
        process.kill()
