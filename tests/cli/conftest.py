"""A folder with a user's kernel file in it, and the command run in this process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from moeracle.cli import main
from moeracle.commands.bisect import config, git
from moeracle.properties.bisect import history_runner
from support.commands import RIGHT, Done
from support.fork_server import forking


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working folder; `sys.path` is restored afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[..., str]:
    """Write a kernel file and return its name, as a user would type it."""

    def file(source: str = RIGHT, name: str = "my_kernels.py") -> str:
        (folder / name).write_text(source)
        return name

    return file


@pytest.fixture
def cli(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `moeracle` with these arguments."""

    def run(*argv: str) -> Done:
        capsys.readouterr()
        code = main(argv)
        return Done(code, *capsys.readouterr())

    return run


# As `python -m pytest WORDS` in a folder and an environment.
SESSION = """
import json, os, sys, pytest
folder, environment, *words = sys.argv[1:]
os.environ.clear()
os.environ.update(json.loads(environment))
os.chdir(folder)
sys.path.insert(0, folder)
code = pytest.main(words)
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
"""


@pytest.fixture(scope="session")
def _forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    with forking(tmp_path_factory, dict(os.environ), "torch", "hypothesis", "pytest", "pydantic", "rich") as ask:
        yield ask


@pytest.fixture
def session(_forked: Callable[..., Any], pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Run pytest in the pytester's folder, in a process of its own that finds torch imported, but nothing of ours."""

    def run(*words: str) -> pytest.RunResult:
        words = (f"--basetemp={pytester.path.parent / 'of_session'}", *words)
        done = _forked(SESSION, str(pytester.path), json.dumps(dict(os.environ)), *words)
        return pytest.RunResult(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), 0.0)

    return run


@pytest.fixture
def judged(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `moeracle`; what a bisection starts of it runs here, with the folder and environment that it was to have.

    The kernel runs in a process of its own all the same. Builds are started; there is no limit of time.
    """
    started = history_runner.run_bounded

    def run_here(
        command: str | list[str], cwd: Path, timeout: float, log: Path, env: dict[str, str]
    ) -> history_runner.Ended:
        if isinstance(command, str):
            return started(command, cwd, timeout, log, env)
        assert command[:3] == [sys.executable, "-m", "moeracle"]
        with monkeypatch.context() as there, log.open("a") as output:
            there.chdir(cwd)
            for name in set(os.environ) - set(env):
                there.delenv(name)
            for name, value in env.items():
                there.setenv(name, value)
            there.setattr(sys, "path", [*env["PYTHONPATH"].split(os.pathsep), *sys.path])
            with redirect_stdout(output), redirect_stderr(output):
                return history_runner.Ended(main(command[3:]), 0.0)

    for module in (history_runner, git, config):
        monkeypatch.setattr(module, "run_bounded", run_here)
    return cli
