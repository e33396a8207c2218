"""The documents: every file, module and link that they mention exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("docs", "examples", "fixtures", "kernels", "mutation", "properties", "ref", "src", "tests")
# Files of a user, or of a user's repository, in examples; never ours.
USERS = {"ci/moeracle.sh", "kernels/moe.py", "kernels/mow.py", "my_kernels.py", "fused.py", "split.py"}

LINK = re.compile(r"\]\(([^)#\s]+)")
# Pages and pictures that the site makes from the code; tests/test_site.py follows these links.
MADE = re.compile(r"(?:ops|reference|pictures)/|faults-gallery\.md")
MODULE = re.compile(r"(?:python3? -m|--pyargs) (moeracle(?:\.\w+)*)")
# A path from the top of the repository; one with a placeholder in it ("<op>", "*", "{a,b}", "…") is none.
PATH = re.compile(rf"(?<![\w/.…<>*{{}}-])((?:{'|'.join(FOLDERS)})/[\w./-]*)(?![\w/<>*{{…-])")
# A file's name alone, in backticks: it may be in any folder. Names that end in .hip are kernels' as well as files'.
NAME = re.compile(r"`([\w./-]+\.(?:cpp|h|py))`")


def wrong_links(text: str, folder: Path) -> list[str]:
    """Return the relative links that lead nowhere."""
    targets = [target for target in LINK.findall(text) if "://" not in target and not MADE.match(target)]
    return [target for target in targets if not (folder / target).exists()]


def wrong_modules(text: str) -> list[str]:
    """Return the modules of moeracle that a command names and that do not exist."""
    return [name for name in MODULE.findall(text) if not is_module(name)]


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a package that it would be in is missing, too
        return False


def wrong_paths(text: str) -> list[str]:
    """Return the paths from the top of the repository, and the files' names, that do not exist."""
    paths = [path.rstrip(".") for path in PATH.findall(text)]
    wrong = [path for path in paths if path not in USERS and not (ROOT / path).exists()]
    names = [name for name in NAME.findall(text) if name not in USERS and not name.startswith(FOLDERS)]
    return wrong + [name for name in names if not any(next((ROOT / f).rglob(name), None) for f in FOLDERS)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_document_mentions_exists(page: Path) -> None:
    text = page.read_text()
    assert wrong_links(text, page.parent) == []
    assert wrong_modules(text) == []
    assert wrong_paths(text) == []


def test_the_documents_mention_something() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    found = {pattern: len(pattern.findall(text)) for pattern in (LINK, MODULE, PATH, NAME)}
    assert len(PAGES) > 15
    assert min(found.values()) >= 5, found


@pytest.mark.parametrize(
    "text",
    [
        "as `ref/ops/nothing.py` says",
        "python -u tests/on_hardware/nothing.py gemms",
        "(kernels/nothing/)",
        "see `nothing.py`",
        "and `gfx11/nothing.py`.",
    ],
)
def test_a_wrong_path_is_seen(text: str) -> None:
    assert len(wrong_paths(text)) == 1


def test_wrong_links_and_modules_are_seen() -> None:
    text = "[a](nothing.md#there) [b](https://example.org) [c](infer.md)"
    assert wrong_links(text, ROOT / "docs") == ["nothing.md"]
    commands = "`python3 -m moeracle.kernels.nothing.here`, python -m moeracle"
    assert wrong_modules(commands) == ["moeracle.kernels.nothing.here"]


@pytest.mark.parametrize("text", ["`ref/ops/<op>.py`", "kernels/{triton,hip}/x.py", "kernels/tuned/<gpu>.json"])
def test_a_placeholder_is_no_path(text: str) -> None:
    assert wrong_paths(text) == []


def test_what_the_page_of_variants_names_exists() -> None:
    """Its words are words of cases, its contracts are contracts, its entries are kernels in plain PyTorch."""
    from moeracle.properties.cases.optable import OPS
    from moeracle.ref.contracts.contract import contract
    from support.real_kernels import REAL

    judged, wishes = (ROOT / "docs/variants.md").read_text(encoding="utf-8").split("## What could not be said before")
    known = {word for op in OPS.values() for word in (*op.weight_flags, *op.routing_flags, *op.data_flags)}
    words = set(re.findall(r"`\+(\w+)`", wishes))
    assert words <= known
    assert len(words) >= 18
    fields = re.findall(
        r"`((?:router_weight|activation|bias|one_group|parts|store_rounding)=[\w./=]+)`", judged + wishes
    )
    assert len({text for text in fields if "alphaN" not in text and contract(f"grouped,{text}")}) >= 7
    rows = [line.split(" | ") for line in judged.splitlines() if line.count(" | ") == 4 and "`" in line]
    entries = {name for row in rows for name in re.findall(r"`([\w ,-]+)`", row[3])}
    entries = {name for name in entries if not name.startswith("test_")}
    assert entries <= set(REAL)
    assert len(entries) >= 8
