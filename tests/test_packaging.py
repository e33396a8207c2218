"""What a wheel must hold: every file of the packages that is no Python source is named in pyproject.toml."""

from __future__ import annotations

import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "properties", "ref", "src")


def patterns() -> list[str]:
    """The package-data patterns; read by hand, since Python 3.10 has no tomllib."""
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    line = next(line for line in lines if line.startswith('"*" = ['))
    return line.split('"')[3::2]


def left_out(names: list[str]) -> list[str]:
    return [n for n in names if not n.endswith(".py") and not any(fnmatch(Path(n).name, p) for p in patterns())]


def test_every_file_of_the_packages_is_in_a_wheel() -> None:
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in listed.stdout.split() if not (ROOT / name).is_symlink()]
    if not names:
        pytest.skip("no git checkout")
    assert left_out(names) == []
    assert any(name.endswith("page.html") for name in names)
    assert left_out(["kernels/new.cuh"]) == ["kernels/new.cuh"]
