"""`--html` and `moeracle report`, as typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.commands import RIGHT, Done

Cli = Callable[..., Done]
Write = Callable[..., str]
CASE = "int4_linear/T3-N40-K96-G32/bf16/exllama-sym/-/normal/s1"
WRONG = RIGHT.replace("    return (y", "    y[:, 32:] *= 2\n    return (y")


def test_a_failing_check_writes_a_page_with_its_map(cli: Cli, write: Write) -> None:
    done = cli("check", write(WRONG), "--case", CASE, "--html", "page.html")
    assert done.code == 1
    page = Path("page.html").read_text()
    assert "Something is wrong: 1 of 1 kernel illegal" in page
    assert f'data-copy="moeracle check my_kernels.py --case {CASE}"' in page
    assert "out: 3 tokens by 40 columns, 24 of 120 cells are illegal" in page
    assert [p.name for p in Path().iterdir() if p.suffix == ".tmp"] == []


def test_one_file_cannot_hold_two_reports(cli: Cli, write: Write) -> None:
    done = cli("check", write(WRONG), "--case", CASE, "--json", "out", "--html", "./out")
    assert done.code == 2
    assert done.err.strip() == "error: --html: got out, must be another file than --json's"
    assert not Path("out").exists()


def test_a_hunt_shows_the_case_as_first_found_too(cli: Cli, write: Write) -> None:
    done = cli("check", write(WRONG), "--profile", "smoke", "--examples", "2", "--html", "page.html")
    assert done.code == 1
    page = Path("page.html").read_text()
    assert "As first found" in page
    assert "Shrunk to the case above" in page


def test_a_legal_check_writes_a_page_and_several_make_a_history(cli: Cli, write: Write) -> None:
    target = write()
    assert cli("check", target, "--case", CASE, "--json", "1.json", "--html", "page.html").code == 0
    assert "All judged, all legal: 1 kernel" in Path("page.html").read_text()
    write(WRONG)
    assert cli("check", target, "--case", CASE, "--json", "2.json").code == 1
    done = cli("report", "1.json", "2.json", "--html", "history.html")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("history.html: 2 runs, 1 kernel, ")
    page = Path("history.html").read_text()
    assert "legal from run 1, illegal from run 2" in page


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("report", "none.json", "--html", "x.html"), "report: none.json: no such file"),
        (("report", "text.json", "--html", "x.html"), "is not JSON"),
        (("report", "text.json", "--html", "no/such/folder.html"), "cannot be written"),
        (("report", "--html", "x.html"), "Missing argument"),
        (("report", "text.json", "--html", "folder"), "folder: cannot be written"),
        (("report", "text.json", "--html", "text.json/x.html"), "cannot be written"),
        (("report", "folder", "--html", "x.html"), "no such file"),
        (("report", "text.json", "--html", "text.json"), "is one of the files to read"),
        (("report", "deep.json", "--html", "x.html"), "is not JSON"),
        (("report", "half.json", "--html", "x.html"), "is not JSON"),
        (("check", "my_kernels.py", "--html", "folder"), "folder: cannot be written"),
        (("check", "my_kernels.py", "--html", "no/such/folder.html"), "cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(cli: Cli, write: Write, argv: tuple[str, ...], said: str) -> None:
    write()
    Path("folder").mkdir()
    Path("text.json").write_text("not json")
    Path("deep.json").write_text("[" * 100_000)
    Path("half.json").write_bytes(b'{"kind": "moeracle check", "target": "\xc3')
    done = cli(*argv)
    assert (done.code, len(done.err.strip().splitlines())) == (2, 1)
    assert said in done.err
    assert not Path("x.html").exists()
    assert Path("text.json").read_text() == "not json"
