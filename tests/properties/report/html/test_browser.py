"""The page in a real browser, opened from a file: themes, keyboard, copy button, and nothing loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moeracle.properties.report.html.page import write_page
from moeracle.properties.report.html.view import read_run
from support.browser import Browser, browsing, missing, until
from support.runs import NASTY, a_run, config_json, git_json

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")
PAPER = "return getComputedStyle(document.body).backgroundColor"
CUT = """return [...document.querySelectorAll('.command code, .next code')].filter((code) =>
    code.scrollWidth > code.clientWidth + 1 && code.clientWidth).map((code) => code.textContent)"""
READING = "return document.querySelector('.reading').textContent"

CONTRAST = """
    const lum = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map((v) => {
      v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
    const low = [];
    for (const e of document.querySelectorAll('body *')) {
      if (!e.getClientRects().length || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
      const style = getComputedStyle(e);
      const [a, b] = [lum(e.closest('svg') ? style.fill : style.color), lum(ground(e))].sort((x, y) => y - x);
      if ((a + 0.05) / (b + 0.05) < 4.5) low.push(e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 30));
    }
    return low;"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Browser:
    """The page of one failing run, in a browser whose system is light."""
    path = tmp_path / "report.html"
    write_page(path, [a_run(note=NASTY), {**a_run(failing=False), "started": "1969-01-01"}])
    browser.prefer("light")
    browser.open(path)
    browser.run("try { localStorage.clear() } catch {}; delete document.documentElement.dataset.theme")
    return browser


def test_nothing_is_loaded_and_nothing_complains(page: Browser) -> None:
    assert page.messages() == []
    loaded = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded == []
    assert page.run("return document.title").startswith("Something is wrong: 1 of 2 kernels illegal")
    assert page.run("return document.querySelectorAll('h1').length") == 1


def test_a_page_that_would_load_or_run_something_else_is_seen(page: Browser) -> None:
    page.run("const image = new Image(); image.src = 'https://example.invalid/x.png'; document.body.append(image)")
    assert until(lambda: any("Content Security Policy" in message for message in page.messages()))


def test_it_follows_the_system_and_the_button_overrules_it(page: Browser) -> None:
    light = page.run(PAPER)
    page.prefer("dark")
    dark = page.run(PAPER)
    assert light != dark
    assert until(lambda: page.run("return document.getElementById('theme').textContent") == "Light")
    page.click("#theme")
    assert page.run(PAPER) == light
    page.prefer("light")
    page.click("#theme")
    assert page.run(PAPER) == dark
    assert page.run("return document.getElementById('theme').getAttribute('aria-pressed')") == "true"


def test_a_map_is_read_by_keyboard(page: Browser) -> None:
    page.run("document.querySelector('svg[data-map]').focus({focusVisible: true})")
    page.press("down", "right", "right", "right")
    assert page.run(READING) == "token 1, column 3: legal"
    page.press("right")
    assert page.run(READING) == "token 1, column 4: not finite"
    assert page.run("return document.querySelector('.cursor').getAttribute('visibility')") == "visible"
    page.press("down")
    page.press("end")
    assert page.run(READING) == "token 2, column 31: legal"
    page.press("escape")
    assert page.run(READING) == ""


def test_a_maps_values_are_read_without_a_mouse(page: Browser) -> None:
    page.run("document.querySelector('details.values').open = true")
    rows = page.run("return [...document.querySelectorAll('details.values tbody')][0].innerText")
    assert rows.splitlines()[0].split("\t") == ["1", "4", "illegal, not finite"]


def test_every_control_is_reached_by_tab_and_shows_where_it_is(page: Browser) -> None:
    page.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    where = (
        "const e = document.activeElement; return [e.tagName + (e.id ? '#' + e.id : '') + (e.dataset.map ? 'map' : ''),"
    )
    where += " getComputedStyle(e).outlineStyle]"
    seen = []
    for _ in range(40):
        page.press("tab")
        seen.append(page.run(where))
    names = [name for name, _ in seen]
    assert names[0] == "A"  # the way past the header
    assert {"BUTTON#theme", "svgmap", "SUMMARY", "BUTTON", "CODE"} <= set(names)
    assert all(style != "none" for name, style in seen if name != "BODY")


def test_the_copy_button_copies_the_replay_command(page: Browser) -> None:
    button = "article button.copy"
    page.ask("POST", "/goog/cdp/execute", {"cmd": "Browser.grantPermissions", "params": {
        "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}})  # fmt: skip
    page.run(
        f"const button = document.querySelector('{button}'); window.said = [];"
        "new MutationObserver(() => said.push(button.textContent)).observe(button, {childList: true, subtree: true})"
    )  # what it says goes away again after a while, however slowly it is asked
    page.click(button)
    assert until(lambda: "Copied" in page.run("return said"))
    page.run("const t = document.createElement('textarea'); t.id = 'paste'; document.body.append(t); t.focus()")
    page.run("return document.execCommand('paste')")
    want = page.run(f"return document.querySelector('{button}').dataset.copy")
    assert want.startswith("moeracle check my_kernels.py --case moe_w4a16/")
    pasted = "return navigator.clipboard.readText()"
    assert page.run(pasted) == want
    assert until(lambda: page.run(f"return document.querySelector('{button}').textContent").startswith("Copy "))


@pytest.mark.parametrize("width", [360, 1150])
def test_nothing_runs_off_the_side(page: Browser, width: int) -> None:
    page.ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}})  # fmt: skip
    try:
        assert page.run("return document.documentElement.scrollWidth") <= width
        assert page.run(CUT) == [], "a command wraps, and is read without scrolling"
        assert page.screenshot().startswith(b"\x89PNG")
    finally:
        page.ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.clearDeviceMetricsOverride", "params": {}})


def test_text_is_dark_enough_on_its_ground(page: Browser) -> None:
    """WCAG's contrast of 4.5 for text, in both themes."""
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        assert page.run(CONTRAST) == [], scheme
    page.run("document.querySelector('h1').style.color = document.body.style.background = '#777777'")
    assert page.run(CONTRAST) != []  # it can fail


@pytest.mark.parametrize("make", [git_json, config_json])
def test_a_bisections_page_fits_and_is_readable_too(page: Browser, tmp_path: Path, make: Any) -> None:
    (tmp_path / "found.json").write_text(json.dumps(make()))
    write_page(tmp_path / "found.html", [read_run(tmp_path / "found.json")])
    page.open(tmp_path / "found.html")
    assert page.messages() == []
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        assert page.run(CONTRAST) == [], scheme
    page.ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": {
        "width": 360, "height": 900, "deviceScaleFactor": 1, "mobile": False}})  # fmt: skip
    try:
        assert page.run("return document.documentElement.scrollWidth") <= 360
    finally:
        page.ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.clearDeviceMetricsOverride", "params": {}})
