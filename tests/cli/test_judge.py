"""`moeracle judge FILE`: the exit code, the text and the JSON of a comparison that was saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moeracle import judge_tensors
from moeracle.cli import main
from moeracle.properties.cases.case import Case
from moeracle.properties.simulate import simulation_of
from moeracle.ref.contracts.contract import contract

TEXT = "int4_linear/T9-N64-K128-G32/bf16/exllama-sym/-/normal/s7"


def saved(path: Path, out: torch.Tensor | None = None, scale: float = 1.0) -> Path:
    """Save a comparison of a linear layer: legal unless another output is given."""
    args = dict(Case.parse(TEXT).build().args)
    args["x"] = args["x"] * scale
    legal = simulation_of("int4_linear", contract("grouped")).int4_linear(*args.values())
    out = legal if out is None else out
    return judge_tensors("int4_linear", out, contract="grouped", explain=False, name="mine", **args).save(path)


def test_a_legal_file_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "a.safetensors")
    assert main(["judge", str(path)]) == 0
    assert "own/s0  legal" in capsys.readouterr().out


def test_an_illegal_file_exits_1_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "a b.safetensors", torch.ones(9, 64).bfloat16())
    code = main(["judge", str(path), "--json", str(tmp_path / "v.json"), "--html", str(tmp_path / "v.html")])
    out = capsys.readouterr().out
    assert code == 1
    assert "[int4_linear] mine  int4_linear/T9-N64-K128-G32/bf16/exllama-sym/-/own/s0  FAIL  tier=interval" in out
    assert out.splitlines()[-1] == f"  replay: moeracle judge '{path}'"
    found = json.loads((tmp_path / "v.json").read_text())
    assert (found["kind"], found["exit_code"], found["verdict"]["status"]) == ("moeracle judge", 1, "illegal")
    assert "<svg" in (tmp_path / "v.html").read_text()


def test_another_contract_can_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "a.safetensors")
    assert main(["judge", str(path), "--contract", "grouped,weight=exact"]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_what_says_nothing_exits_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "a.safetensors", scale=0.0)
    assert main(["judge", str(path)]) == 3
    assert "vacuous: every result is zero" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["judge", "no.safetensors"], "no.safetensors: no such file"),
        (["judge", "{file}", "--contract", "groped"], "did you mean 'grouped'?"),
        (["judge", "{file}", "--device", "cuda:77"], "device: got 'cuda:77'"),
        (["judge", "{file}", "--json", "{file}.py"], "must be another file"),
        (["judge", "{file}", "--json", "{file}.x", "--html", "{file}.x"], "--html: must not be --json's file"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "a.safetensors")
    assert main([word.replace("{file}", str(path)) for word in words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
