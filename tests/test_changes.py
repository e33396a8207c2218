"""Change notes, a file each or a line under Unreleased: each is well formed, and a release keeps all of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed")
NOTE = re.compile(rf"[\w+-]+\.({'|'.join(kind.lower() for kind in KINDS)})\.md")


def unreleased(changelog: str) -> str:
    """Return what stands under Unreleased; there is exactly one such section, above every version."""
    before, section = changelog.split("\n## Unreleased\n")
    assert "\n## " not in before
    return section.partition("\n## ")[0]


def wrong(folder: Path) -> list[str]:
    """Return what is wrong with the notes of a repository: files that towncrier passes over, texts that are no item."""
    files = [path for path in (folder / "changes").iterdir() if path.name != "template.md"]
    found = [f"{path.name}: must be NAME.KIND.md" for path in files if not NOTE.fullmatch(path.name)]
    texts = {path.name: path.read_text() for path in files}
    found += [f"{name}: is no item" for name, text in texts.items() if not text.strip() or text[0] in "-*# "]
    section = unreleased((folder / "CHANGELOG.md").read_text())
    headings = re.findall(r"^### (.*)", section, re.MULTILINE)
    found += [f"Unreleased: {heading}" for heading in headings if heading not in KINDS or headings.count(heading) > 1]
    return found + [f"Unreleased: {line}" for line in section.splitlines() if line[:2] not in ("- ", "  ", "##", "")]


def test_every_note_is_well_formed() -> None:
    assert wrong(ROOT) == []


@pytest.mark.parametrize(
    ("note", "text", "section"),
    [
        ("faster.sped-up.md", "It is faster.", ""),
        ("faster.changed.md", "- It is faster.", ""),
        ("faster.changed.md", " \n", ""),
        ("faster.changed.md", "It is faster.", "### Faster\n- It is.\n"),
        ("faster.changed.md", "It is faster.", "### Fixed\n- It is.\n### Fixed\n- It was.\n"),
        ("faster.changed.md", "It is faster.", "### Fixed\nIt is.\n"),
    ],
)
def test_a_wrong_note_is_seen(tmp_path: Path, note: str, text: str, section: str) -> None:
    (tmp_path / "changes").mkdir()
    (tmp_path / "changes" / note).write_text(text)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## Unreleased\n\n{section}\n## 0.1.0 (2026-01-01)\n")
    assert wrong(tmp_path)


def test_a_release_keeps_every_note(tmp_path: Path) -> None:
    pytest.importorskip("towncrier", reason="towncrier is not installed: pip install 'moeracle[dev]'")
    shutil.copytree(ROOT / "changes", tmp_path / "changes")
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    old = (tmp_path / "CHANGELOG.md").read_text()
    (tmp_path / "changes/first.added.md").write_text("A first thing, which\ntakes two lines.\n")
    (tmp_path / "changes/second.fixed.md").write_text("A second thing.\n")
    notes = [path.read_text().split() for path in (tmp_path / "changes").glob("*.*.md")]
    command = [sys.executable, "-m", "towncrier", "build", "--yes", "--version", "9.9.9", "--date", "2099-01-01"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    new = (tmp_path / "CHANGELOG.md").read_text()
    assert unreleased(new).strip() == ""
    made, versions = new.split("\n## 9.9.9 (2099-01-01)\n")[1].split("\n## ", 1)
    assert versions == old.split("\n## Unreleased\n")[1].split("\n## ", 1)[1]
    assert unreleased(old).strip() in made
    assert len(notes) >= 2
    assert all(" ".join(note) in " ".join(made.split()) for note in notes)
    added = made.split("\n### Added\n")[1].split("\n### ")[0]
    assert "- A first thing, which\n  takes two lines.\n" in added
    assert [path.name for path in (tmp_path / "changes").iterdir()] == ["template.md"]
