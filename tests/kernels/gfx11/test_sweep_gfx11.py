"""`moeracle bisect config --each` over compilers and flags of one source: bits, instructions, verdicts side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from moeracle.cli import main
from moeracle.commands.bisect import compare
from moeracle.kernels.gfx11 import machine
from moeracle.kernels.toolchain.compilers import gfx_compiler

pytestmark = pytest.mark.usefixtures("toolchain")
TARGET = Path(__file__).parents[3] / "examples" / "rdna" / "target.py"
CASE = "int4_linear/T1-N8-K256-G32/bf16/compressed_tensors-sym/-/normal/s3"
DEBIAN = ("clang++-19", "clang++-16")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Judge in this process, as the command does in one for each row; the stage is told (test_judged_gfx11 asks)."""

    def run_under(words: list[str], settings: dict[str, Any], timeout: float) -> tuple[Any, int, str]:
        if words[1] == "stages":
            return (
                {"kernel": {"stage": "gemm1", "also": "", "fault": {"title": settings["ROW"]}, "smallest": None}},
                1,
                "",
            )
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            gfx_compiler.cache_clear()
            machine.EXECUTED.clear()
            written = tmp_path / "answer.json"
            code = main([*words, "--json", str(written)])
        gfx_compiler.cache_clear()
        return json.loads(written.read_text()), code, ""

    monkeypatch.setattr(compare, "run_under", run_under)


def swept(tmp_path: Path, *each: str) -> tuple[int, dict[str, Any]]:
    written = tmp_path / "swept.json"
    words = [word for setting in each for word in ("--each", setting)]
    code = main(["bisect", "config", str(TARGET), "--case", CASE, "--repeat", "1", *words, "--json", str(written)])
    return code, json.loads(written.read_text())


def test_a_planted_defect_is_found_among_flags(here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = swept(tmp_path, "MOERACLE_GFX_FLAGS=-O2", "MOERACLE_GFX_FLAGS=-O2 -DTRUNCATED", "ROW=what it is")
    said = capsys.readouterr().out
    good, bad = found["rows"]
    assert code == 1
    assert (good["status"], bad["status"]) == ("legal", "illegal")
    assert good["bits"] != bad["bits"]
    assert "v_cvt_i32_f32" in bad["instructions"]
    assert "v_cvt_i32_f32" not in good["instructions"]
    assert "turns it illegal: MOERACLE_GFX_FLAGS: '-O2' -> '-O2 -DTRUNCATED'" in said
    assert "row 2:\n  first wrong stage: gemm1\n  known fault: what it is" in said
    assert "in every row: ROW=what it is" in said


@pytest.mark.parametrize("compiler", DEBIAN)
@pytest.mark.parametrize(("flag", "told_by"), [("-DAS_SHIPPED", "v_cvt_i32_f32"), ("-DPERMLANE", "")])
def test_what_older_compilers_make_of_the_same_source(
    here: None, tmp_path: Path, compiler: str, flag: str, told_by: str
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    compilers = [f"MOERACLE_GFX_CXX={name}" for name in ("ziglang", compiler)]
    code, found = swept(tmp_path, *compilers, f"MOERACLE_GFX_FLAGS={flag}", "MOERACLE_GFX_ARCH=gfx1100", "ROW=")
    ours, theirs = found["rows"]
    assert code == 1
    assert (ours["status"], theirs["status"]) == ("legal", "illegal")
    assert not told_by or (told_by in theirs["instructions"] and told_by not in ours["instructions"])


@pytest.mark.parametrize("compiler", DEBIAN)
def test_compilers_agree_where_the_source_is_right(here: None, tmp_path: Path, compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    code, found = swept(
        tmp_path, "MOERACLE_GFX_CXX=ziglang", f"MOERACLE_GFX_CXX={compiler}", "MOERACLE_GFX_ARCH=gfx1100"
    )
    assert code == 0
    assert found["rows"][0]["bits"] == found["rows"][1]["bits"] != {}


def test_a_compiler_that_is_not_there_is_no_verdict(
    here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = swept(tmp_path, "MOERACLE_GFX_CXX=clang++-99")
    assert code == 3
    assert found["rows"][0]["status"] == "unjudged"
    assert "row 1: raised ToolchainError: MOERACLE_GFX_CXX: got 'clang++-99'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--each", "A"], "--each: got 'A', must be KEY=VALUE"),
        (["--each", "A=1", "--each", "A=1"], "--each: got A=1 twice"),
        (["--each", "A=1", "--good", "B=1"], "--each: got --good or --bad as well"),
    ],
)
def test_settings_that_cannot_be_compared(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", "config", str(TARGET), "--case", CASE, *words]) == 2
    assert message in capsys.readouterr().err
