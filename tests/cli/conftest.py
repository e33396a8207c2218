"""A folder with a user's kernel file in it, and the command run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moeracle.cli import main
from support.commands import RIGHT, Done


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working folder; `sys.path` is restored afterwards."""
    import sys

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
