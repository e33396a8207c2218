"""Infinite gates and ups: NaN or one number is legal, as each form of the activation has it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from moeracle.properties.simulate.simulation import Simulation
from moeracle.ref.bounds.activation import silu_mul_band
from moeracle.ref.bounds.band import Band, to_go_on_with
from moeracle.ref.contracts.contract import contract
from moeracle.tensors.judge import judge_tensors

T = torch.Tensor
NORMAL = 2.0**-126


def flushed(x: T) -> T:
    return torch.where(x.abs() < NORMAL, 0.0, x)


FORMS = {
    "division": lambda g: g / (1 + torch.exp(-g)),
    "division that is 0 past 2^126": lambda g: torch.where(1 + torch.exp(-g) > 2.0**126, -0.0, g / (1 + torch.exp(-g))),
    "reciprocal": lambda g: g * (1 / (1 + torch.exp(-g))),
    "reciprocal that flushes": lambda g: g * flushed(1 / (1 + torch.exp(-g))),
    "exp(g)": lambda g: g * torch.exp(g) / (1 + torch.exp(g)),
    "exp(g) that flushes": lambda g: g * flushed(torch.exp(g)) / (1 + torch.exp(g)),
    "sigmoid": lambda g: g * torch.sigmoid(g),
}
CONTRACTS = [
    f"grouped,silu={silu},ftz={ftz}"
    for silu, ftz in itertools.product(("fp32", "rounded", "rne", "rtz"), ("false", "true"))
]


def gates(dtype: torch.dtype) -> T:
    """Return finite gates from -80 down, some nearer, and some above zero."""
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    low = x[x.isfinite() & (x <= -80)]
    near = low[low >= -110]
    more = torch.tensor([-20.0, -12.0, -1.0, -1e-7, 0.0, 1e-7, 1.0, 20.0], dtype=dtype)
    return torch.cat([near, low[:: max(1, len(low) // 200)], more])


def judged(h: T, out: T, rules: str) -> Any:
    return judge_tensors("silu_and_mul", out, h, contract=rules, explain=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_legal_with_an_infinite_up(form: str, dtype: torch.dtype) -> None:
    gate, seen = gates(dtype), set[str]()
    up = torch.full_like(gate, math.inf)
    h = torch.stack([torch.cat([gate, up]), torch.cat([gate, -up])])
    for rules in CONTRACTS:
        simulation = Simulation(rules).replace_step("silu", lambda simulation, correct, g: FORMS[form](g))
        out = simulation.silu_and_mul(h)
        verdict = judged(h, out, rules)
        assert verdict.ok, verdict.text()
        below = out[:, gate < -87.4]
        seen |= {"NaN"} if bool(below.isnan().any()) else set()
        seen |= {"infinite"} if bool(below.isinf().any()) else set()
    assert seen == ({"NaN", "infinite"} if form in ("division", "reciprocal", "exp(g)", "sigmoid") else {"NaN"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rules", CONTRACTS)
def test_no_other_value_is(rules: str, dtype: torch.dtype) -> None:
    gate = gates(dtype)
    h = torch.cat([gate, torch.full_like(gate, math.inf)])[None]
    right = Simulation(rules).silu_and_mul(h)
    for value in (math.inf, 0.0, -1.0, torch.finfo(dtype).min):  # below zero nothing is +inf, nothing finite
        wrong = torch.where(gate < 0, value, right[0])[None].to(dtype)
        assert int(judged(h, wrong, rules).illegal.sum()) == int((gate < 0).sum())
    surely = (gate <= -1) & (gate >= -12)  # silu is none of those that vanish, in any D
    nan = torch.where(surely, math.nan, right[0])[None].to(dtype)
    assert int(judged(h, nan, rules).illegal.sum()) == int(surely.sum()) == 2
    vanished = gate < -110
    infinite = torch.where(vanished, -math.inf, right[0])[None].to(dtype)
    assert int(judged(h, infinite, rules).illegal.sum()) == int(vanished.sum()) > 50


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "swigluoai"])
def test_a_gate_of_minus_infinity_gives_nan_or_the_limit(activation: str, dtype: torch.dtype) -> None:
    """-inf times a sigmoid of 0 is NaN; a kernel that clamps the gate has -0."""
    ups = [0.0, 2.0, -3.0, torch.finfo(dtype).max]
    h = torch.tensor([[-math.inf] * len(ups) + ups], dtype=dtype)
    for silu in ("fp32", "rounded"):
        rules = f"grouped,activation={activation},silu={silu}"
        for value in (math.nan, 0.0, -0.0):
            verdict = judged(h, torch.full((1, len(ups)), value, dtype=dtype), rules)
            assert verdict.ok, verdict.text()
        for value in (math.inf, -math.inf, -1.0, torch.finfo(dtype).tiny):
            assert int(judged(h, torch.full((1, len(ups)), value, dtype=dtype), rules).illegal.sum()) == len(ups)
    squared = "grouped,activation=relu2"
    assert judged(h, torch.zeros(1, len(ups), dtype=dtype), squared).ok
    assert not judged(h, torch.full((1, len(ups)), math.nan, dtype=dtype), squared).ok


def test_a_gate_of_either_sign_makes_either_infinity() -> None:
    """Of an h that is not stored: the gate is known to an interval around 0, or from below -100 up."""
    inf, f64 = math.inf, torch.float64
    h = Band(torch.tensor([[-1e-3, -100.0, inf, inf]], dtype=f64), torch.tensor([[1e-3, 5.0, inf, inf]], dtype=f64))
    band = silu_mul_band(h, contract("grouped"), torch.float16)
    assert (band.lo.tolist(), band.hi.tolist()) == ([[-inf, -inf]], [[inf, inf]])


def test_a_layer_goes_on_with_the_limit_where_nothing_is_stored() -> None:
    nan, inf = math.nan, math.inf
    band = Band(
        *(torch.tensor(ends, dtype=torch.float64) for ends in ([nan, 1, nan, inf, nan], [0, 2, -inf, nan, nan]))
    )
    kept = to_go_on_with(band)
    assert torch.equal(kept.lo[:2], torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.equal(kept.hi[:2], torch.tensor([0.0, 2.0], dtype=torch.float64))
    assert bool((kept.lo[2:].isnan() & kept.hi[2:].isnan()).all())


def test_what_is_legal_is_said() -> None:
    h = torch.tensor([[-88.0, -120.0, math.inf, math.inf]], dtype=torch.bfloat16)
    said = [
        judged(h, torch.tensor([out], dtype=torch.bfloat16), "grouped").text()
        for out in ([1.0, math.nan], [math.nan, 1.0])
    ]
    assert "got 1, legal NaN or -inf (not finite)" in said[0]
    assert "got 1, legal NaN (not finite)" in said[1]
