"""The site builds strictly, and every link within it leads to a page and an anchor that are there."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'moeracle[docs]'")
pytest.importorskip("material", reason="mkdocs-material is not installed: pip install 'moeracle[docs]'")

ROOT = Path(__file__).parents[1]
TARGET = re.compile(r'(?:href|src)="([^"]+)"')
ANCHOR = re.compile(r'\b(?:id|name)="([^"]+)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it in this process, which has imported torch already, without the index for searching and colours."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder, before = tmp_path_factory.mktemp("site"), os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOERACLE_SITE_WHOLE", "false")
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)  # ends the test where it is strict about something
        config.plugins.on_shutdown()
    assert os.getcwd() == before
    return folder


@cache
def anchors(page: Path) -> set[str]:
    """Return the names on a page that a link may lead to."""
    return set(ANCHOR.findall(page.read_text(encoding="utf-8")))


def broken(page: Path) -> list[str]:
    """Return the links of a page to files or anchors of the site that are not there."""
    wrong = []
    for link in TARGET.findall(page.read_text(encoding="utf-8")):
        address = urlsplit(link)
        if address.scheme or address.netloc or link.startswith(("/", "data:")):
            continue
        target = (page.parent / unquote(address.path)).resolve() if address.path else page
        there = target.is_file() or (target / "index.html").is_file()
        named = anchors(target) if there and target.suffix == ".html" else set()
        if not there or (address.fragment and target.suffix == ".html" and unquote(address.fragment) not in named):
            wrong.append(link)
    return wrong


def test_no_link_is_broken(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 60
    assert {page.relative_to(site).as_posix(): links for page in pages if (links := broken(page))} == {}


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r'<(?:script|img)[^>]*src="(https?:)?//|<link[^>]*rel="stylesheet"[^>]*href="(https?:)?//')
    assert not fetched.search((site / "index.html").read_text(encoding="utf-8"))


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "other.html").write_text('<p id="here">')
    page = tmp_path / "page.html"
    page.write_text('<a href="gone.html"></a><a href="other.html#gone"></a><a href="other.html#here"></a>')
    assert broken(page) == ["gone.html", "other.html#gone"]
