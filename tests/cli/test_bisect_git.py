"""`moeracle bisect git` on a made repository of forty commits, as a user types it, interrupted and gone on with."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.bisect_repository import CASE, COMMITS, FLAKY, UNBUILDABLE, WRONG, git, make_repository, source

WORDS = (sys.executable, "-m", "moeracle", "bisect", "git", "kernels/moe.py", "--case", CASE)


@pytest.fixture(autouse=True)
def _own_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    monkeypatch.setattr(tempfile, "tempdir", None)


def alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended, and whose exit code nobody has asked for yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def checkout(folder: Path) -> dict[str, str]:
    """Return what a user could see changed: every file of the checkout, HEAD, the index, branches."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".git" not in path.parts]
    seen = {str(path.relative_to(folder)): path.read_text() for path in files}
    seen["HEAD"] = (folder / ".git" / "HEAD").read_text()
    seen["status"] = git(folder, "status", "--porcelain", "--branch")
    return seen | {"refs": git(folder, "for-each-ref"), "worktrees": git(folder, "worktree", "list")}


def test_forty_commits(tmp_path: Path, judged: Callable[..., Any]) -> None:
    repository = tmp_path / "repository"
    ids = make_repository(repository)
    (repository / "kernels" / "moe.py").write_text(source(COMMITS) + "\nraise SystemExit('not committed')\n")
    (repository / "scratch").write_text("mine\n")
    before = checkout(repository)
    answer, plot = tmp_path / "answer.json", tmp_path / "plot.png"
    waits = tmp_path / "waits.sh"
    waits.write_text(f"cd '{tmp_path}'\n{THIRD_BUILD_WAITS}")
    ends = ["--good", "HEAD~39", "--bad", "main", "--repo", str(repository), "--build", f"sh '{waits}' && sh build.sh"]
    words = [*WORDS, *ends, "--timeout", "3600", "--json", str(answer), "--plot", str(plot)]
    _interrupt_the_third(words, tmp_path / "third")
    assert checkout(repository) == before, "interrupted, the user's checkout must be as it was"
    assert not list(tmp_path.glob("moeracle-bisect-*"))

    done = judged(*words[3:])
    assert done.code == 1, done.err
    assert checkout(repository) == before
    assert not list(tmp_path.glob("moeracle-bisect-*"))
    assert f"first bad commit: {ids[WRONG - 1]}" in done.out
    for line in (
        "take the scales in one load",
        "kernels/moe.py | 4 ++--",
        "first wrong stage: scale",
        "F29",
        "smallest case: ",
    ):
        assert line in done.out, line
    assert f"{ids[FLAKY - 1][:10]} is flaky: " in done.out
    assert "do not build; passed over" in done.out
    assert "2 uncommitted changes" in done.err
    found = json.loads(answer.read_text())
    assert found["first_bad"]["id"] == ids[WRONG - 1]
    assert found["remembered"] >= 2
    assert found["stages"]["kernel"]["fault"]["id"] == "F29"
    by_kind = {one["position"] + 1: one["kind"] for one in found["judged"]}
    assert by_kind[FLAKY] == "flaky"
    assert {number for number, kind in by_kind.items() if kind == "build"} <= set(UNBUILDABLE)
    assert "build" in by_kind.values()
    assert len(found["judged"]) <= 14
    for one in found["judged"]:
        if one["verdict"] != "skip":
            number = one["position"] + 1
            assert one["verdict"] == ("bad" if number >= WRONG else "good"), number
            assert (float(one["max_ratio"]) > 1) == (number >= WRONG)
    assert plot.read_bytes().startswith(b"\x89PNG")


# The third build says that it has begun, and then goes on until it is ended.
THIRD_BUILD_WAITS = """echo >> builds
if [ "$(wc -l < builds)" -eq 3 ]; then
    echo $$ > third.new && mv third.new third
    exec sleep 3600
fi
"""


def _interrupt_the_third(words: list[str], third: Path) -> None:
    """Start the command, press Ctrl-C while it builds its third revision, and see it end with all that it started."""
    # In a job in a shell's background SIGINT is ignored, and so it would be in whatever the tests start.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, start_new_session=True, preexec_fn=heed)
    while not third.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # none is sent if it has ended
    out, err = process.communicate()
    assert process.returncode == 130, out + err
    assert "nothing is lost" in err
    told = [line for line in err.splitlines() if any(f" {word}" in line for word in ("good,", "bad,", "passed over"))]
    assert len(told) == 2, err
    assert not alive(int(third.read_text())), "the build goes on"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Three commits: legal, legal, wrong."""
    folder = tmp_path_factory.mktemp("small") / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "kernels").mkdir()
    (folder / "kernels" / "constants.py").write_text("ONE = 1.0\n")
    ids = []
    for number in (1, 2, WRONG):
        (folder / "kernels" / "moe.py").write_text(source(number))
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", f"change {number}")
        ids.append(git(folder, "rev-parse", "HEAD"))
    return folder, ids


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (["--good", "v9", "--bad", "main"], "--good: got 'v9', must be a revision of"),
        (["--good", "main~2", "--bad", "--help-me"], "--bad: got '--help-me', must be a revision of"),
        (["--good", "main", "--bad", "main~1"], "are they swapped?"),
        (["--good", "main", "--bad", "main"], "which is GOOD too"),
        (["--good", "main~1", "--bad", "main", "--repo", "/nowhere"], "--repo: got '/nowhere'"),
        (["--good", "main~1", "--bad", "main", "--json", "/nowhere/f.json"], "cannot be written"),
    ],
)
def test_ends_that_are_none_are_one_line(cli, small: tuple[Path, list[str]], ends: list[str], message: str) -> None:
    folder, _ = small
    done = cli(*WORDS[3:], "--repo", str(folder), *ends)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_target_that_no_revision_holds(cli, small: tuple[Path, list[str]]) -> None:
    folder, _ = small
    words = [word.replace("moe.py", "mow.py") for word in WORDS[3:]]
    done = cli(*words, "--repo", str(folder), "--good", "main~1", "--bad", "main")
    assert done.code == 2
    assert "does not hold, and no file on disk (neither does GOOD)" in done.err
    done = cli(
        "bisect", "git", "moeracle.kernels", *WORDS[6:], "--repo", str(folder), "--good", "main~1", "--bad", "main"
    )
    assert done.code == 2
    assert "must be a file of the repository" in done.err


def test_a_good_that_is_bad_and_a_build_that_never_ends(
    judged: Callable[..., Any], small: tuple[Path, list[str]]
) -> None:
    folder, ids = small
    done = judged(*WORDS[3:], "--repo", str(folder), "--good", "main~2", "--bad", "main~1", "--repeat", "1")
    assert done.code == 2
    assert f"--bad: {ids[1][:10]} is legal; must be illegal on this case" in done.err.splitlines()[-1]
    words = ["--repo", str(folder), "--good", "main~1", "--bad", "main", "--build", "sleep 300", "--timeout", "0.5"]
    done = judged(*WORDS[3:], *words)
    assert done.code == 2
    assert f"--good: {ids[1][:10]} cannot be judged: the build did not end in 0.5 s" in done.err.splitlines()[-1]
    assert git(folder, "worktree", "list").count("\n") == 0


def test_a_file_that_is_in_no_revision_judges_them_all(
    judged: Callable[..., Any], small: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, ids = small
    harness = tmp_path / "harness.py"
    harness.write_text("import sys\nsys.path.insert(0, 'kernels')\nfrom moe import moe\n")
    words = ["bisect", "git", str(harness), "--case", CASE, "--repo", str(folder), "--good", ids[1], "--bad", ids[2]]
    done = judged(*words, "--repeat", "1")
    assert done.code == 1, done.err
    assert "the file on disk judges every revision" in done.err
    assert f"first bad commit: {ids[2]}" in done.out
