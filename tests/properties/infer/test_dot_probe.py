"""--probe-hardware: simulated instructions are recognised from their answers; files that do not fit are one line."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from moeracle.properties.infer import probe_file
from moeracle.properties.infer.dot_facts import models
from moeracle.ref.bitmodels.rdna import FAMILY, FrameAdder, frame_dot
from moeracle.ref.bitmodels.tensor_core import AMPERE, HOPPER

RECORDED = Path(__file__).parents[3] / "fixtures" / "hardware" / "h200" / "probe.json"


def read(ask, K=16, dtype="bf16"):
    return probe_file.read_out(probe_file.ask_all("simulated", K, dtype, ask))


def unit(core, step):
    return models(16)[f"{core.name}, {step} products a step"]


def test_a_hopper_unit():
    found = read(unit(HOPPER, 16))
    assert found["models"][0].startswith("hopper, 16")
    facts = found["facts"]
    assert (facts["terms_a_step"], facts["bits_product"], facts["bits_accumulator"]) == (17, 25, 25)
    assert (facts["align"], facts["rounding"]) == ("operand exponents", "toward zero")
    assert facts["zeros"] == ", ".join(["+0"] * 6)
    assert facts["mixedsign_exact"] == 1.0


def test_an_ampere_unit_in_fp16():
    found = read(unit(AMPERE, 8), dtype="fp16")
    assert "ampere, 8 products a step" in found["models"]
    assert "hopper, 16 products a step" not in found["models"]
    assert found["facts"]["bits_product"] == 24
    assert found["facts"]["order"] == "p0+p1+p2+p3+p4+p5+p6+p7+acc then p8+p9+p10+p11+p12+p13+p14+p15"


def test_a_cpu():
    found = read(probe_file.sequential)
    assert found["models"] == ["fma sequential", "mul_add sequential"]
    facts = found["facts"]
    assert (facts["terms_a_step"], facts["bits_product"], facts["rounding"]) == (2, 23, "to nearest, ties to even")


@pytest.mark.parametrize(("K", "adder"), [(2, FrameAdder(24)), (16, FrameAdder(25, "rtz"))])
def test_the_provisional_gfx11_adder(K, adder):
    found = read(partial(frame_dot, adder=adder), K)
    assert adder.name in found["models"]
    assert all("provisional" in name for name in found["models"])
    # What the issue reports: small integers of one sign add exactly, of mixed sign they do not.
    assert found["facts"]["samesign_exact"] == 1.0
    assert found["facts"]["mixedsign_exact"] < 0.9


def test_the_example_of_the_issue():
    a, w = torch.tensor([[3.0, 8.0]]).bfloat16(), torch.tensor([[8.0, 4.0]]).bfloat16()
    for adder in FAMILY:
        assert frame_dot(a, w, torch.tensor([1.0]), adder).item() == 57
        if adder.bits <= 23:  # where the grid is no finer than fp32: a coarser one shows, a finer one is rounded away
            assert frame_dot(a, w, torch.tensor([-1.0]), adder).item() > 55
    with pytest.raises(ValueError, match="bits: got 10"):
        FrameAdder(10)
    with pytest.raises(ValueError, match="rounding"):
        FrameAdder(24, "rnd")


def test_an_instruction_of_no_model_is_said_to_have_none():
    noisy = lambda a, w, acc: (probe_file.sequential(a, w, acc) * (1 + 2.0**-20)).float()
    found = read(noisy)
    assert found["models"] == []
    assert found["closest"][0]["share"] < 1


def test_the_recorded_h200():
    found = probe_file.read_probe(RECORDED)
    assert found["machine"]["architecture"] == "sm_90"
    assert "H200" in found["machine"]["gpu"]
    assert found["sections"]
    for section in found["sections"]:
        out = probe_file.read_out(section)
        assert "hopper, 16 products a step" in out["models"]
        assert not any(name.startswith(("ampere", "volta", "cdna3", "fma")) for name in out["models"])
        assert out["facts"]["align"] == "operand exponents"


@pytest.fixture
def written(tmp_path):
    section = probe_file.ask_all("simulated", 2, "bf16", probe_file.sequential)
    content = probe_file.content({"gpu": "none", "architecture": "none"}, [section])

    def write(edit=lambda c: None):
        copy = json.loads(json.dumps(content))
        edit(copy)
        path = tmp_path / "probe.json"
        path.write_text(json.dumps(copy))
        return path

    return write


def read_whole(path):
    return [probe_file.read_out(section) for section in probe_file.read_probe(path)["sections"]]


def test_a_file_is_read_as_it_was_written(written):
    assert read_whole(written())[0]["models"] == ["fma sequential", "mul_add sequential"]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c.update(format=7), "got format 7 in .*, must be 1; probe again"),
        (lambda c: c.update(kind="else"), "is not one that --probe-hardware wrote"),
        (lambda c: c.update(questions_version=0), "answers questions 0, must be 1"),
        (lambda c: c.pop("machine"), "has no machine"),
        (lambda c: c["sections"][0].update(dtype="bf17"), "did you mean 'bf16'"),
        (lambda c: c["sections"][0].update(K=999), "K=999, must be 2 to 64"),
        (lambda c: c["sections"][0].update(questions="0"), "answers other questions"),
        (lambda c: c["sections"][0]["answers"].pop("wide"), "no answers to wide"),
        (lambda c: c["sections"][0]["answers"].update(wide="!!"), "answers to wide are damaged"),
        (lambda c: c["sections"][0]["answers"].update(wide=c["sections"][0]["answers"]["zeros"]), "6 of 256 of wide"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(written, edit, said):
    with pytest.raises(ValueError, match=said) as error:
        read_whole(written(edit))
    assert "\n" not in str(error.value)


def test_an_instruction_that_returns_another_form_is_one_line():
    with pytest.raises(ValueError, match=r"simulated: returned torch.float64"):
        read(lambda a, w, acc: acc.double())


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="found no file"):
        probe_file.read_probe(tmp_path / "none.json")
