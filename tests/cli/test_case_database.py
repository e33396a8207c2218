"""Cases that failed once are judged first, and those that fail are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moeracle import case_database
from moeracle.case_database import add_to_database, read_database
from moeracle.properties.cases.case import Case
from moeracle.properties.common.verdict import StageResult, Verdict
from moeracle.properties.hunt import search
from moeracle.properties.hunt.effort import HuntResult
from moeracle.properties.hunt.hunt import hunt
from moeracle.properties.hunt.shard import Shard
from moeracle.target.declaration import make_kernel
from support.commands import RIGHT, Done

CASES = [f"silu_and_mul/T{T}-I8/bf16/-/-/normal/s1" for T in range(1, 5)]
STUB = make_kernel(lambda h: None, "silu_and_mul", supports=lambda case: case.T != 3 or "three")


def failing(*cases: str) -> list[HuntResult]:
    result = HuntResult("k", "silu_and_mul", None, "grouped", "cpu", 0, 0)
    result.failures = [Verdict("silu_and_mul", case, status="illegal") for case in cases]
    return [result]


def test_what_fails_is_kept_newest_first_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cases.txt"
    assert read_database(path) == read_database(None) == []
    add_to_database(path, failing(CASES[0]))
    add_to_database(path, failing(CASES[1], CASES[2]))
    add_to_database(path, failing(CASES[0]))
    assert [str(case) for case in read_database(path)] == CASES[:3]
    before = path.stat().st_ino
    add_to_database(path, failing())
    assert path.stat().st_ino == before, "what says the same is not written again"
    monkeypatch.setattr(case_database, "MOST", 2)
    add_to_database(path, failing(CASES[3]))
    assert [str(case) for case in read_database(path)] == [CASES[3], CASES[0]]


@pytest.mark.parametrize(
    ("content", "said"),
    [(f"# said\n\n{CASES[0]}\nT1\n".encode(), "cases.txt, line 4: "), (b"\xff\n", "is not UTF-8")],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "cases.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        read_database(tmp_path / "cases.txt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [None, CASES[1]])
def test_they_come_before_all_others(bad: str | None) -> None:
    ran: list[str] = []

    def run(kernel: Any, case: Case, **_: Any) -> Verdict:
        ran.append(str(case))
        return Verdict(case.op, str(case), status="illegal" if str(case) == bad else "legal", tier="bits",
                       stages=[StageResult("out", 1)])  # fmt: skip

    again = [Case.parse(text) for text in CASES]
    result = hunt(STUB, run=run, again=again, examples=3, laws=False)
    assert ran[:2] == CASES[:2]
    assert ("silu_and_mul/T4-I8/bf16/-/-/normal/s1" in ran[:4]) == (bad is None)
    assert result.status == ("legal" if bad is None else "illegal")
    assert "three" not in result.skipped or bad is None, "what the kernel declines is left out"
    ran.clear()
    parts = [hunt(STUB, run=run, again=again, examples=0, fixed=False, laws=False, shard=Shard(k, 2)) for k in (1, 2)]
    assert len(parts) == 2
    assert bad or sorted(ran) == [CASES[0], CASES[1], CASES[3]], "each in one part"


def test_laws_are_put_to_them_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(search, "laws_of", lambda op: [lambda kernel, case: asked.append(str(case))])
    legal = Verdict("silu_and_mul", CASES[0], status="legal", stages=[StageResult("out", 1)])
    hunt(STUB, run=lambda *_, **__: legal, again=[Case.parse(CASES[0])], fixed=False, examples=0)
    assert asked[0] == CASES[0]
    assert len(asked) > 1


def test_check_keeps_a_case_and_asks_for_it_first(
    cli: Callable[..., Done], write: Callable[..., str], folder: Path
) -> None:
    options = ("--in-process", "--profile", "smoke", "--examples", "1", "--database", "cases.txt")
    right = RIGHT.replace('"exllama"', '"exllama", contract="grouped"')
    assert cli("check", write(right.replace("y = ", "y = 2 * ")), *options).code == 1
    (kept,) = read_database(Path("cases.txt"))
    assert cli("check", write(right), *options).code == 0
    assert read_database(Path("cases.txt")) == [kept]
    Path("cases.txt").write_text("nothing\n")
    done = cli("check", "my_kernels.py", *options)
    assert (done.code, done.out) == (2, "")
    assert "error: database: cases.txt, line 1: " in done.err
    done = cli("check", "my_kernels.py", "--database", ".")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: database: got ., which is a folder, must be a file of cases, or none yet\n"
