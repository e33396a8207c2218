"""Activations over every finite gate of D: legal forms pass, neighbours fail, and integers agree with the Band."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from moeracle.properties.golden.transcendental import activated_fp32
from moeracle.ref.activation import Activation
from moeracle.ref.bounds.activation import activation_band, silu_mul_band
from moeracle.ref.bounds.band import Band, exactly, store
from moeracle.ref.contracts.contract import contract

BF16, FP16 = torch.bfloat16, torch.float16
T = torch.Tensor
Form = Callable[[T], T]
F = torch.nn.functional
ROOT = math.sqrt(2 / math.pi)


def by_sigmoid(g: T) -> T:
    return g * torch.sigmoid(2 * ROOT * g * (1 + 0.044715 * g * g))


def by_exp2(g: T) -> T:
    return g / (1 + torch.exp2(-1.702 * 1.4426950408889634 * g))


RIGHT: dict[str, tuple[Form, ...]] = {
    "silu/alpha1.702": (lambda g: g * torch.sigmoid(1.702 * g), by_exp2),
    "gelu": (F.gelu, lambda g: 0.5 * g * torch.special.erfc(-g * math.sqrt(0.5)),
             lambda g: g * (0.5 * (1 + torch.erf(g / math.sqrt(2))))),
    "gelu_tanh": (lambda g: F.gelu(g, approximate="tanh"), by_sigmoid,
                  lambda g: 0.5 * g * (1 + torch.tanh(ROOT * (g + 0.044715 * g**3)))),
    "relu2": (lambda g: g.relu() ** 2, lambda g: g.relu() * g),
    "swigluoai": (lambda g: g.clamp(max=7) * torch.sigmoid(1.702 * g.clamp(max=7)),),
    "swiglustep": (lambda g: F.silu(g).clamp(max=7),),
}  # fmt: skip
WRONG: dict[str, tuple[Form, ...]] = {
    "silu/alpha1.702": (F.silu, lambda g: g * torch.sigmoid(1.7 * g), F.gelu),
    "gelu": (lambda g: F.gelu(g, approximate="tanh"), lambda g: g * torch.sigmoid(1.702 * g), F.silu),
    "gelu_tanh": (F.gelu, lambda g: 0.5 * g * (1 + torch.tanh(ROOT * (g + 0.04 * g**3))), F.silu),
    "relu2": (torch.relu, torch.square, F.gelu),
    "swigluoai": (lambda g: g * torch.sigmoid(1.702 * g), lambda g: F.silu(g.clamp(max=7)),
                  lambda g: g.clamp(-7, 7) * torch.sigmoid(1.702 * g.clamp(-7, 7))),
    "swiglustep": (F.silu, lambda g: F.silu(g.clamp(-7, 7)), lambda g: F.silu(g).clamp(max=6)),
}  # fmt: skip
FORMS = [(name, i) for name, forms in RIGHT.items() for i in range(len(forms))]


def every_finite(dtype: torch.dtype) -> T:
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.isfinite()]


def illegal(values: T, band: Band) -> int:
    return int((~((band.lo <= values) & (values <= band.hi))).sum())


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_every_form_passes_on_every_gate(name: str, form: int, dtype: torch.dtype) -> None:
    gate, rules = every_finite(dtype), contract(f"grouped,activation={name}")
    legal = store(activation_band(exactly(gate), rules), rules, dtype)
    assert len(gate) > 63_000
    assert illegal(RIGHT[name][form](gate.float()).to(dtype).double(), legal) == 0
    assert float((legal.lo != legal.hi).double().mean()) < (0.01 if dtype == BF16 else 0.03)


@pytest.mark.parametrize("name", WRONG)
def test_its_neighbours_fail(name: str) -> None:
    gate, rules = every_finite(BF16), contract(f"grouped,activation={name}")
    legal = store(activation_band(exactly(gate), rules), rules, BF16)
    # 0.01 % of all gates are seven: most are tiny, where every gelu is half of its gate
    assert [i for i, form in enumerate(WRONG[name]) if illegal(form(gate.float()).to(BF16).double(), legal) < 40] == []


@pytest.mark.parametrize("name", RIGHT)
def test_the_correctly_rounded_value_is_legal(name: str) -> None:
    """In integers, with proven bounds (golden/transcendental.py): no math library has a say."""
    rules, how = contract(f"grouped,activation={name}"), Activation.parse(name)
    for dtype in (BF16, FP16):
        gate = every_finite(dtype)[7::97]
        exact = torch.tensor([activated_fp32(float(g), how) for g in how.limited(gate)], dtype=torch.float64)
        band = activation_band(exactly(gate), rules)
        assert len(gate) > 600
        assert illegal(how.capped(exact), band) == 0
        near = how.capped(how.of_gate(how.limited(gate.double()))).float().double()
        assert float((near == how.capped(exact)).double().mean()) > 0.999  # fp64 rounds once to fp32 alike


def test_gelu_by_hand() -> None:
    """Φ(1) = 0.84134474606854294859 and, with tanh, 1·σ(2·√(2/π)·1.044715)."""
    assert activated_fp32(1.0, Activation("gelu")) == torch.tensor(0.8413447460685429).item()
    assert activated_fp32(-1.0, Activation("gelu")) == torch.tensor(-0.15865525393145705).item()
    assert activated_fp32(1.0, Activation("gelu_tanh")) == torch.tensor(0.8411919906082768).item()
    assert activated_fp32(-14.0, Activation("gelu")) == torch.tensor(-1.0909e-43).item()
    assert [activated_fp32(g, Activation("gelu")) for g in (-20.0, 20.0, -math.inf)] == [-0.0, 20.0, -0.0]


@pytest.mark.parametrize(
    ("name", "lowest"),
    [("gelu", -0.16997120747990369), ("gelu_tanh", -0.1700407505), ("swigluoai", -0.27846454 / 1.702)],
)
def test_a_wide_gate_covers_the_minimum(name: str, lowest: float) -> None:
    rules = contract(f"grouped,activation={name}")
    wide = Band(torch.tensor([-1.2], dtype=torch.float64), torch.tensor([-0.3], dtype=torch.float64))
    assert float(activation_band(wide, rules).lo) == pytest.approx(lowest, rel=3e-6)
    ends = [float(activation_band(exactly(torch.tensor([g])), rules).lo) for g in (-1.2, -0.3)]
    assert min(ends) > lowest * 0.99


def test_up_is_limited_and_shifted_in_a_wide_band() -> None:
    rules = contract("grouped,activation=swigluoai,silu=fp32")
    lo, hi = (torch.tensor([[40.0, *up]], dtype=torch.float64) for up in ((-9.0,), (-1.5,)))
    band = silu_mul_band(Band(lo, hi), rules, BF16)
    assert band.lo.item() == pytest.approx(7 * -6, rel=1e-4)
    assert band.hi.item() == pytest.approx(7 * -0.5, rel=1e-4)
    tiny = silu_mul_band(exactly(torch.tensor([[40.0, 2.0**-26]], dtype=torch.float64)), rules, BF16)
    assert tiny.lo.item() <= 7.0 * (1 / (1 + math.exp(-11.914))) <= tiny.hi.item()
