"""What others call things drives no terminal, forges no line and breaks no report; nor does a stdout that is gone."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from rich.table import Table

from moeracle import files
from moeracle.cli import main
from moeracle.commands import check
from moeracle.commands.console import table_for
from moeracle.text import one_line, printable
from support.commands import Done

Cli = Callable[..., Done]
CASE = "silu_and_mul/T1-I8/bf16/-/-/integers/s0"
FORGED = "mine  silu_and_mul  grouped  legal"
EVIL = f"evil\x1b[31m\r\x00\x07\n{FORGED}\t\u202e\x9b\ud800"
KERNEL = """
import moeracle

@moeracle.kernel("silu_and_mul", contract="grouped", name={name!r}, supports=lambda case: {supports})
def mine(h):
    if {raises!r}:
        raise RuntimeError({raises!r})
    gate, up = h.float().chunk(2, 1)
    return (gate.sigmoid() * gate).to(h.dtype) * up.to(h.dtype)
"""


def kernel(folder: Path, name: str = "mine", raises: str = "", supports: str = "True") -> str:
    path = folder / "kernels.py"
    path.write_text(KERNEL.format(name=name, raises=raises, supports=supports))
    return str(path)


def is_clean(text: str) -> bool:
    return not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]", text)


def test_what_is_printed_says_every_byte_and_drives_nothing() -> None:
    assert is_clean(printable(EVIL))
    assert printable("a\nb") == "a\nb"
    assert one_line(EVIL) == f"evil\\x1b[31m\\r\\x00\\x07\\n{FORGED}\\t\\u202e\\x9b\\ud800"
    assert not is_clean(EVIL)
    assert printable("größer → ∞") == "größer → ∞"


@pytest.mark.parametrize(
    ("given", "code"),
    [({"name": EVIL}, 0), ({"raises": EVIL}, 1), ({"supports": repr(EVIL)}, 3), ({"name": EVIL, "raises": EVIL}, 1)],
)
def test_names_and_messages(cli: Cli, tmp_path: Path, given: dict[str, str], code: int) -> None:
    reports = ("--json", "r.json", "--junit", "r.xml", "--html", "r.html")
    done = cli("check", kernel(tmp_path, **given), "--case", CASE, *reports)
    assert done.code == code, done.err
    assert is_clean(done.out), repr(done.out)
    assert is_clean(done.err), repr(done.err)
    assert not [line for line in done.out.splitlines() if line.startswith(FORGED)]
    assert "evil" in done.out
    found = json.loads(Path("r.json").read_text())
    assert "evil" in json.dumps(found)
    assert found["exit_code"] == code
    suite = ElementTree.parse("r.xml").getroot()
    assert "evil" in ElementTree.tostring(suite, "unicode")
    assert "evil" in Path("r.html").read_text(encoding="utf-8")
    name = found["kernels"][0]["kernel"]
    again = cli("check", f"{tmp_path / 'kernels.py'}:{name}", "--case", CASE)
    assert again.code == code, "the printed name must choose the kernel"


def broken(text: str, rows: list[list[str]]) -> list[str]:
    """Return the words of a table that no line of what was printed has as a whole."""
    printed = [line.split() for line in text.splitlines()]
    words = {word for row in rows for cell in row for word in cell.split()}
    return sorted(word for word in words if not any(word in line for line in printed))


@pytest.mark.parametrize("width", [80, 110])
def test_no_table_breaks_a_word(width: int) -> None:
    schedule = "marlin,accumulator=fp32,schedule=fma/pairwise"
    tables = (
        (check.COLUMNS, 4, [["my_layer_with_a_name", "moe_w4a16", schedule, "FAIL", *("12,345,678",) * 7]] * 2),
        (check.COLUMNS, 4, [["f", "tiny_dot", "grouped", "legal", *("1",) * 7]]),
        (("page", "about"), 2, [["contracts", "what a kernel of this kind may round, and where it may do so " * 3]]),
    )
    for columns, text_columns, rows in tables:
        console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
        console.print(table_for(columns, rows, text_columns, "a title", width))
        text = console.file.getvalue()
        assert broken(text, [list(columns[1:]), *rows]) == []
        assert max(map(len, text.splitlines())) <= width
    console = Console(width=width, file=io.StringIO())
    plain = Table(*check.COLUMNS)
    plain.add_row(*tables[0][2][0])
    console.print(plain)
    assert broken(console.file.getvalue(), tables[0][2]), "rich alone breaks them: this can fail"


class Gone(io.TextIOWrapper):
    """A stdout whose reader has gone."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8")

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize(("raises", "code"), [("", 2), ("no", 1)])
def test_without_stdout_the_reports_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raises: str, code: int
) -> None:
    report = tmp_path / "r.json"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Gone())
        assert main(["check", kernel(tmp_path, raises=raises), "--case", CASE, "--json", str(report)]) == code
    assert json.loads(report.read_text())["kernels"][0]["status"] == ("illegal" if raises else "legal")
    assert capsys.readouterr().err.count("stdout: Broken pipe; the rest is not printed") == 1
    assert main(["check", kernel(tmp_path), "--case", CASE]) == 0


def test_a_process_whose_stdout_is_closed_or_full_ends_without_noise(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "moeracle", "case", CASE, "--save", str(tmp_path / "case.safetensors")]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (2, "error: stdout: Broken pipe; the rest is not printed\n")
    assert (tmp_path / "case.safetensors").is_file()


def test_what_has_no_end_or_no_bottom_is_one_line(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "READER_COMES", 0.1)
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    head = {"format": 1, "kind": "moeracle probe", "questions_version": 1, "machine": {}}
    (tmp_path / "probe.json").write_text(json.dumps({**head, "sections": {"gpu": "x"}}))
    target, loop, pipe = kernel(tmp_path), str(tmp_path / "loop"), str(tmp_path / "pipe")
    for words, said in (
        (["case", f"silu_and_mul/T{'9' * 40}-I8/bf16/-/-/normal/s0"], "must be at most 2,147,483,647"),
        (["case", "silu_and_mul/T2147483647-I2147483647/bf16/-/-/normal/s0"], "too large for the memory here"),
        (["check", target, "--case", CASE, "--json", loop], "is a symbolic link that leads back to itself"),
        (["check", target, "--case", CASE, "--json", pipe], "nobody reads this pipe"),
        (["report", loop, "--html", str(tmp_path / "r.html")], "no such file"),
        (["report", pipe, "--html", str(tmp_path / "r.html")], "no such file"),
        (["report", target, "--html", loop], "is a symbolic link that leads back to itself"),
        (["infer", "--probe-file", str(tmp_path / "probe.json")], "sections: Input should be a valid"),
        (["infer", "--probe-file", pipe], "is no file"),
        (["infer", "--probe-file", loop], "Too many levels of symbolic links"),
        (["golden", "verify", "--dir", loop], "found no manifest.json"),
        (
            ["bisect", "git", f"{loop}.py", "--good", "a", "--bad", "b", "--case", CASE, "--repo", loop],
            "must be a folder",
        ),
    ):
        done = cli(*words)
        assert done.code == 2, (words, done)
        assert said in done.err, (words, done.err)
        errors = [line for line in done.err.splitlines() if not line.startswith("[silu_and_mul] mine: legal")]
        assert len(errors) == 1, done.err


def test_a_name_that_is_no_utf8(tmp_path: Path, cli: Cli) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    report = folder / os.fsdecode(b"\xfe.json")
    done = cli(
        "check", kernel(folder), "--case", CASE, "--json", str(report), "--html", str(report.with_suffix(".html"))
    )
    assert done.code == 0, done.err
    assert is_clean(done.out)
    assert json.loads(report.read_text())["target"].endswith("\\udcff/kernels.py")
    page = cli("report", str(report), "--html", str(folder / "page.html"))
    assert page.code == 0, page.err
    assert is_clean(page.out)
