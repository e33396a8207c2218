"""git, as a bisection over revisions needs it: a repository, a worktree of our own, and what `git bisect` says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moeracle.files import remove_abandoned, scratch
from moeracle.ref.errors import require

SCRATCH, TREE = "moeracle-bisect-", "tree"
_COMMIT = re.compile(r"^[0-9a-f]{40,64}$")


@dataclass(frozen=True)
class Commit:
    """One commit: id, author, date, subject."""

    id: str
    author: str
    date: str
    subject: str

    @property
    def short(self) -> str:
        """The first ten digits."""
        return self.id[:10]


class Repository:
    """A git repository that is only read, but for worktrees of our own.

    Args:
        folder: any folder inside it.
    Raises:
        ValueError: there is no git, no such folder, or no repository.
    """

    def __init__(self, folder: Path) -> None:
        require(shutil.which("git") is not None, "git: not found on PATH; bisecting revisions needs it")
        require(folder.is_dir(), f"--repo: got {str(folder)!r}, must be a folder inside a git repository")
        self.folder = folder
        top = self._run("rev-parse", "--show-toplevel", check=False)
        if top.returncode:
            raise ValueError(f"--repo: got {str(folder)!r}, must be inside a git repository: {_last(top.stderr)}")
        self.top = Path(top.stdout.removesuffix("\n"))
        self.common = (folder / self.git("rev-parse", "--git-common-dir")).resolve()

    def _run(self, *words: str, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        env["LC_ALL"] = "C"
        done = subprocess.run(
            ["git", *words],
            cwd=cwd or self.folder,
            capture_output=True,
            env=env,
            encoding=sys.getfilesystemencoding(),
            errors="surrogateescape",  # a path may hold any bytes
        )
        if check and done.returncode:
            raise ValueError(f"git {' '.join(words[:2])}: {_last(done.stderr) or f'exit code {done.returncode}'}")
        return done

    def git(self, *words: str, cwd: Path | None = None) -> str:
        """Run git; return what it prints, stripped.

        Raises:
            ValueError: it failed; its last line.
        """
        return self._run(*words, cwd=cwd).stdout.strip()

    def bisect(self, *words: str, cwd: Path) -> str:
        """Run `git bisect` in a worktree; return what it prints, where only skipped commits are left, too: exit code 2.

        Raises:
            ValueError: it failed; its last line.
        """
        done = self._run("bisect", *words, cwd=cwd, check=False)
        if done.returncode not in (0, 2):
            raise ValueError(f"git bisect {words[0]}: {_last(done.stderr) or f'exit code {done.returncode}'}")
        return done.stdout

    def commit(self, revision: str, option: str) -> str:
        """Return a revision's full commit id.

        Raises:
            ValueError: git does not know it.
        """
        done = self._run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", check=False)
        found = done.stdout.strip()
        require(bool(_COMMIT.match(found)), f"{option}: got {revision!r}, must be a revision of {self.top}")
        return found

    def check_order(self, good: str, bad: str) -> None:
        """Raise ValueError unless GOOD is an ancestor of BAD."""
        require(good != bad, f"--bad: got {bad[:10]}, which is GOOD too; must be a later commit")
        if self._run("merge-base", "--is-ancestor", good, bad, check=False).returncode == 0:
            return
        if self._run("merge-base", "--is-ancestor", bad, good, check=False).returncode == 0:
            raise ValueError(f"--good: got {good[:10]}, which comes after BAD {bad[:10]}; are they swapped?")
        base = self._run("merge-base", good, bad, check=False).stdout.strip()
        hint = f"; they part at {base[:10]}" if base else "; they have no common history"
        raise ValueError(f"--good: got {good[:10]}, must be an ancestor of BAD {bad[:10]}{hint}")

    def between(self, good: str, bad: str) -> list[Commit]:
        """List the commits after GOOD that lead to BAD, oldest first, GOOD before them."""
        form = "--format=%H%x1f%an%x1f%ad%x1f%s"
        lines = self.git("log", "--reverse", "--topo-order", "--ancestry-path", "--date=short", form, f"{good}..{bad}")
        first = self.git("log", "-1", "--date=short", form, good)
        return [Commit(*line.split("\x1f", 3)) for line in [first, *lines.splitlines()] if line]

    def holds(self, commit: str, path: str) -> bool:
        """Say whether a commit holds a path, relative to the top."""
        return self._run("cat-file", "-e", f"{commit}:{path}", check=False).returncode == 0

    def changes(self) -> int:
        """Count the uncommitted changes of the user's checkout, untracked files included."""
        return len(self._run("status", "--porcelain", check=False).stdout.splitlines())

    def diff_stat(self, commit: str) -> list[str]:
        """Return the lines of a commit's diff stat."""
        shown = self.git("show", "--stat=100", "--format=", commit)
        return [line.strip() for line in shown.splitlines() if line.strip()]

    @contextmanager
    def worktree(self, commit: str) -> Iterator[Path]:
        """Check a commit out into a worktree of its own, in the system's temporary folder; remove it afterwards."""
        self._remove_abandoned()
        with scratch(SCRATCH) as outer:
            tree = outer / TREE
            try:
                self.git("worktree", "add", "--detach", "--quiet", str(tree), commit)
                yield tree
            finally:
                if tree.exists():
                    self._run("bisect", "reset", cwd=tree, check=False)
                self._forget(tree)

    def _remove_abandoned(self) -> None:
        """Remove the worktrees that killed runs left, in whatever temporary folder, and end what these had started."""
        listed = self.git("worktree", "list", "--porcelain").splitlines()
        trees = [Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")]
        ours = [tree for tree in trees if tree.name == TREE and tree.parent.name.startswith(SCRATCH)]
        remove_abandoned(tree.parent for tree in ours)
        for tree in ours:
            if not tree.exists():
                self._forget(tree)

    def _forget(self, tree: Path) -> None:
        """Let git forget a worktree, also one that it was killed while adding."""
        self._run("worktree", "unlock", str(tree), check=False)
        self._run("worktree", "remove", "--force", str(tree), check=False)
        self._run("worktree", "prune", check=False)

    def check_out(self, tree: Path, commit: str) -> None:
        """Check another commit out into our worktree, whatever a build did to its files."""
        self.git("checkout", "--quiet", "--force", "--detach", commit, cwd=tree)


@dataclass(frozen=True)
class Found:
    """What `git bisect` ended with: the first bad commit, or those of which one is it because they were skipped."""

    first_bad: str = ""
    suspects: tuple[str, ...] = ()


def read_result(printed: str) -> Found:
    """Read what `git bisect` prints: whether it knows the first bad commit, or that it never will."""
    match = re.search(r"^([0-9a-f]{40,64}) is the first bad commit", printed, re.MULTILINE)
    if match:
        return Found(match.group(1))
    _, said, rest = printed.partition("The first bad commit could be any of:")
    if said:
        return Found("", tuple(line.strip() for line in rest.splitlines() if _COMMIT.match(line.strip())))
    return Found()


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("fatal: ") if lines else ""
