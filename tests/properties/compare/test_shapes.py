"""Results of the wrong form, and exceptions: one line each, before any element is looked at."""

import sys

import pytest
import torch

from support.planted import LAYER, raises, trial

RETURNS = {
    "None": (lambda r, a, c: None, "returned None, must return a tensor"),
    "tuple": (lambda r, a, c: (r,), "returned tuple, must return a tensor"),
    "number": (lambda r, a, c: 1.0, "returned float, must return a tensor"),
    "broadcast": (lambda r, a, c: r[:1, :1], "out: got shape [1, 1], must be [6, 16]"),
    "(1,)": (lambda r, a, c: r[0, :1], "out: got shape [1], must be [6, 16]"),
    "transposed": (lambda r, a, c: r.T, "out: got shape [16, 6], must be [6, 16]"),
    "fp32": (lambda r, a, c: r.float(), "out: got dtype torch.float32, must be torch.bfloat16"),
    "meta": (lambda r, a, c: r.to("meta"), "out: got device meta, must be cpu"),
    "sparse": (lambda r, a, c: r.to_sparse(), "out: got layout torch.sparse_coo, must be torch.strided"),
    "empty": (lambda r, a, c: r[:0], "out: got shape [0, 16], must be [6, 16]"),
}


@pytest.mark.parametrize("what", RETURNS)
def test_results_of_the_wrong_form(what):
    broken, line = RETURNS[what]
    verdict = trial(broken)
    assert (verdict.status, verdict.tier, verdict.summary) == ("illegal", "shape", [line])


LAYER_RETURNS = {
    "no out": (lambda r, a, c: {"h": r["h"]}, "returned stages h, must include 'out'"),
    "unknown": (
        lambda r, a, c: {**r, "z": r["h"]},
        "returned stage 'z' as Tensor, must be a tensor named h, a, y or out",
    ),
    "None": (lambda r, a, c: {**r, "y": None}, "returned stage 'y' as NoneType, must be a tensor named h, a, y or out"),
    "rows": (lambda r, a, c: {**r, "y": r["y"][:6]}, "y: got shape [6, 32], must be [12, 32]"),
}


@pytest.mark.parametrize("what", LAYER_RETURNS)
def test_stages_of_the_wrong_form(what):
    broken, line = LAYER_RETURNS[what]
    verdict = trial(broken, LAYER, stages="hay")
    assert (verdict.tier, verdict.summary) == ("shape", [line])


def test_a_stage_that_the_contract_does_not_store():
    broken = lambda r, a, c: {**r, "y": torch.zeros(12, 32, dtype=torch.bfloat16)}
    verdict = trial(broken, LAYER, rules="megakernel", stages="ha")
    assert verdict.summary == ["y: got a stored stage, but contract 'megakernel' stores h, a, out only"]


def test_exceptions_are_one_line_with_the_kernels_own_place():
    verdict = trial(raises)
    assert verdict.tier == "call"
    assert verdict.summary[0].startswith("raised ValueError: K must be a multiple of 64 (")
    inside_torch = trial(lambda r, a, c: torch.zeros(2, 3) @ torch.zeros(2, 3))
    for v, file in ((verdict, "planted.py:"), (inside_torch, "test_shapes.py:")):
        assert file in v.summary[0]
        assert len(v.text().splitlines()) == 3
    assert trial(lambda r, a, c: sys.exit(3)).summary[0].startswith("raised SystemExit: 3")
    later = trial(lambda r, a, c: r if c == 1 else raises(r, a, c))
    assert later.tier == "call"
