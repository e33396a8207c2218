"""What people install: one wheel, the same bytes every time, that works without this source tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from moeracle.properties.report.html.next_steps import READ

pytest.importorskip("hatchling", reason="hatchling is not installed: pip install 'moeracle[dev]'")

ROOT = Path(__file__).parents[1]
NAMING = ("src/moeracle", "ref", "kernels", "properties")  # whose texts name documents
HELP = [path.read_text() for folder in NAMING for path in (ROOT / folder).glob("**/*.py")]
FOLDERS = ("docs", "fixtures", "kernels", "properties", "ref")
# Of these folders a wheel leaves out what only this repository's tests and site read.
LEFT_OUT = ("docs/generate/", "fixtures/hardware/", "fixtures/clients/", "fixtures/checkpoints/")


def build(folder: Path, kind: str, source: Path = ROOT) -> Path:
    """Build a wheel or an sdist of a source tree into a folder and return its path."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder], cwd=source, check=True)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), "wheel")


def installed(wheel: Path, folder: Path, *commands: tuple[str, ...]) -> list[str]:
    """Run moeracle from an unpacked wheel, outside this repository; return what each command printed."""
    zipfile.ZipFile(wheel).extractall(folder / "site")
    here = {**os.environ, "PYTHONPATH": str(folder / "site")}
    each = f"for words in {commands!r}:\n    assert main(words) == 0, words\n    print('\\f')"
    script = f"from moeracle.cli import main\n{each}"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=here, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return [text.lstrip("\n") for text in ended.stdout.split("\f")][:-1]


def test_every_file_of_the_packages_is_in_a_wheel(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=False)
    tracked = [name for name in listed.stdout.split() if not name.startswith(LEFT_OUT)]
    if not tracked:
        pytest.skip("no git checkout")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert [name for name in tracked if f"moeracle/{name}" not in packed] == []
    assert [name for name in packed if name.startswith(tuple(f"moeracle/{folder}" for folder in LEFT_OUT))] == []
    assert {"moeracle/properties/report/html/page.html", "moeracle/py.typed", "moeracle/cli.py"} <= packed


def test_the_same_bytes_every_time_and_through_an_sdist(wheel: Path, tmp_path: Path) -> None:
    first, second = build(tmp_path / "first", "sdist"), build(tmp_path / "second", "sdist")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert build(tmp_path / "again", "wheel", source).read_bytes() == wheel.read_bytes()
    assert wheel.stat().st_size < 6e6


def test_the_version_is_the_same_everywhere(wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} (20" in (ROOT / "CHANGELOG.md").read_text()


def test_golden_data_documents_and_schemas_come_with_the_wheel(wheel: Path, tmp_path: Path) -> None:
    golden, page, links = installed(
        wheel, tmp_path, ("golden", "verify", "--op", "unpack_int4"), ("docs", "contracts"), ("docs",)
    )
    assert f"{tmp_path}/site/moeracle/fixtures" in golden
    assert page.startswith("# Contracts")
    assert (tmp_path / "site/moeracle/docs/schemas/check.json").is_file()
    named = re.findall(r"moeracle docs (\w[\w-]*)", " ".join(map(str, HELP)))
    listed = {line.split()[0] for line in links.splitlines()[1:-1]}
    assert named
    assert {*named, *READ.values()} - {"PAGE"} <= listed


def test_nothing_is_written_that_the_oldest_python_cannot_read() -> None:
    """typing of Python 3.10 takes no plain ClassVar where pydantic reads a class that has annotations as text."""
    sources = [path for folder in ("ref", "kernels", "properties", "src") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 300
    plain = re.compile(r":\s*ClassVar\s*=")
    assert [str(path) for path in sources if plain.search(path.read_text())] == []
    assert plain.search("config: ClassVar = 1")
