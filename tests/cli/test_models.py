"""`moeracle models`: the table, and recorded vectors replayed, with exit codes and mistakes in one line."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moeracle.commands.models.models import row_of
from moeracle.properties.recordings.vectors import MANIFEST, VectorSet, write_vectors
from moeracle.ref.bitmodels.models import MODELS, predict

ROOT = Path(__file__).resolve().parents[2]
PROBE = ROOT / "fixtures" / "hardware" / "h200" / "probe.json"
SHARED = ROOT.parent / "shared" / "hardware_vectors"


def vectors(name="one", device="an H100 (sm_90)"):
    g = torch.Generator().manual_seed(1)
    a, b, c = torch.randn(30, 16, generator=g).half(), torch.randn(30, 16, generator=g).half(), torch.zeros(30)
    return VectorSet(name, "fp16", "fp32", a, b, c, predict("wgmma.k16.sm90", a, b, c), device, "wgmma")


def test_list_names_every_model_and_its_evidence(cli):
    done = cli("models", "list")
    assert done.code == 0
    for name in MODELS:
        assert f"\n{name} " in done.out
    assert "replayed on third-party recordings" in done.out


def test_the_documentation_has_the_table():
    page = (ROOT / "docs" / "bit-models.md").read_text()
    rows = [f"| `{name}` | {' | '.join(row_of(name, how)[1:])} |" for name, how in MODELS.items()]
    start = page.index("| model | operands |")
    table = page[start : page.index("\n\n", start)].splitlines()[2:]
    assert table == rows


def test_replay(cli, folder):
    good = vectors()
    write_vectors(folder / "v", [good, replace(good, name="two")], {})
    done = cli("models", "replay", "v", "--json", "found.json")
    assert done.code == 0
    assert "60 of 60 results of 2 sets are predicted bit for bit (100 %)" in done.out
    assert json.loads((folder / "found.json").read_text())["sets"][1] == {
        "set": "two", "model": "wgmma.k16.sm90", "equal": 30, "total": 30, "first": "",
    }  # fmt: skip
    wrong = cli("models", "replay", "v", "--set", "two", "--model", "mma.m16n8k16.sm80")
    assert wrong.code == 1
    assert "of 1 sets" in wrong.out
    assert "two: row " in wrong.out
    assert "100 %" not in wrong.out


def test_one_wrong_bit_is_not_100_percent(cli, folder):
    good = vectors()
    d = good.d.clone()
    d.view(torch.int32)[29] ^= 1
    write_vectors(folder / "v", [replace(good, d=d)], {})
    done = cli("models", "replay", "v")
    assert done.code == 1
    assert "29 of 30 results of 1 sets are predicted bit for bit (96.67 %)" in done.out
    assert "one: row 29: recorded" in done.out


def test_a_set_of_no_model_is_said(cli, folder):
    write_vectors(folder / "v", [vectors(device="gfx1201"), vectors("two", "sm_60")], {})
    done = cli("models", "replay", "v")
    assert done.code == 3
    assert "set one: device: got 'gfx1201', must name an architecture" in done.out
    assert "set two: instruction: got wgmma of sm_60" in done.out
    assert cli("models", "replay", "v", "--model", "wgmma.k16.sm90").code == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["replay", "none"], "vectors: found no manifest.json in none"),
        (["replay", "v", "--model", "wgmma"], "--model: got 'wgmma', must be one of"),
        (["replay", "v", "--set", "tow"], "--set: got 'tow', must be one of one"),
        (["replay", "v", "--json", "/proc/x"], "/proc/x"),
    ],
)
def test_mistakes_are_one_line(cli, folder, argv, said):
    write_vectors(folder / "v", [vectors()], {})
    done = cli("models", *argv)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_fit_prints_the_unit_and_what_is_open(cli, folder):
    good = vectors()
    write_vectors(folder / "v", [good], {})
    done = cli("models", "fit", "v", "--json", "found.json")
    assert done.code == 0
    assert "[one]  16 products, fp16 into fp32" in done.out
    assert re.search(r"products a step +16   left open: more than 16", done.out)
    assert re.search(r"zeros +left open: no result is zero", done.out)
    assert "wgmma.k16.sm90" in done.out
    found = json.loads((folder / "found.json").read_text())["sets"][0]
    assert (found["set"], found["exact"], found["equal"]) == ("one", True, 30)
    d = good.d.clone()
    d.view(torch.int32)[3] ^= 9
    write_vectors(folder / "v", [replace(good, d=d)], {})
    wrong = cli("models", "fit", "v")
    assert wrong.code == 1
    assert "29 of 30 (96.67 %)" in wrong.out
    assert "first result that this unit does not predict: row 3" in wrong.out
    assert "left open" not in wrong.out


def test_a_probe_is_read_by_fit_and_replay_and_written_as_vectors(cli, folder):
    assert cli("models", "replay", str(PROBE)).code == 0
    done = cli("models", "fit", str(PROBE))
    assert done.code == 0
    assert done.out.count("products a step      16") == 2
    assert "mma.m16n8k16.sm90" in done.out
    assert cli("infer", "--probe-file", str(PROBE), "--vectors", "v").code == 0
    again = cli("models", "replay", "v")
    assert again.code == 0
    assert "10664 of 10664 results of 2 sets" in again.out
    mistake = cli("infer", "mine.py", "--vectors", "v")
    assert (mistake.code, mistake.err) == (2, "error: --vectors: goes with --probe-hardware or --probe-file\n")


@pytest.mark.skipif(not (SHARED / MANIFEST).is_file(), reason="no ../shared/hardware_vectors here")
def test_other_laboratories_vectors(cli):
    done = cli("models", "replay", str(SHARED))
    assert done.code == 0
    assert "120000 of 120000 results of 30 sets are predicted bit for bit (100 %)" in done.out
