"""Activations: their text, their values by hand, and one line for each mistake."""

from __future__ import annotations

import json
import math

import pytest
import torch

from moeracle.isolate.wire import contract_from, plain_contract
from moeracle.ref import moe_w4a16, silu_and_mul
from moeracle.ref.activation import ACTIVATIONS, SILU, Activation
from moeracle.ref.contracts.contract import contract
from moeracle.tensors import saved

TEXTS = (*ACTIVATIONS, "silu/alpha1.5", "gelu/limit8", "silu/alpha1.702/limit10/up1", "gelu_tanh/limit0.5/after")


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_reads_back(text: str) -> None:
    assert str(Activation.parse(text)) == text
    assert contract(f"grouped,activation={text}").activation == Activation.parse(text)
    assert contract("grouped").activation == SILU


@pytest.mark.parametrize("text", TEXTS)
def test_a_contract_travels_and_is_saved_with_it(text: str) -> None:
    rules = contract(f"grouped,activation={text},parts=8/dtype,schedule=fma")
    assert contract_from(json.loads(json.dumps(plain_contract(rules)))) == rules
    assert saved._contract(json.loads(json.dumps(saved._fields(rules)))) == rules


def value(text: str, gate: float, up: float) -> float:
    return silu_and_mul(torch.tensor([[gate, up]]), activation=text, dtype=torch.float64).item()


def test_values_by_hand() -> None:
    phi = 0.5 * (1 + math.erf(1.5 / math.sqrt(2)))
    assert value("gelu", 1.5, 2.0) == pytest.approx(3 * phi, rel=1e-15)
    inner = math.sqrt(2 / math.pi) * (1.5 + 0.044715 * 1.5**3)
    assert value("gelu_tanh", 1.5, 2.0) == pytest.approx(1.5 * (1 + math.tanh(inner)), rel=1e-15)
    assert (value("relu2", 3.0, 0.5), value("relu2", -3.0, 0.5)) == (4.5, 0.0)
    sigma = 1 / (1 + math.exp(-1.702 * 7))
    assert value("swigluoai", 9.0, -20.0) == pytest.approx(7 * sigma * (-7 + 1), rel=1e-15)
    assert value("swigluoai", -2.0, 0.5) == pytest.approx(-2 / (1 + math.exp(3.404)) * 1.5, rel=1e-15)
    assert value("swiglustep", 9.0, 20.0) == 49.0
    assert value("silu/limit7", 9.0, 20.0) == pytest.approx(49 / (1 + math.exp(-7)), rel=1e-15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_infinities_have_their_limits(name: str) -> None:
    how = Activation.parse(name)
    gates = how.capped(how.of_gate(how.limited(torch.tensor([-math.inf, -1e30, 1e30, math.inf, math.nan]))))
    assert gates[:2].tolist() == [0.0, 0.0]
    assert gates[3] == (math.inf if how.limit is None else pytest.approx(7, abs=1e-4))
    assert gates[4].isnan()


def test_a_layer_takes_its_activation() -> None:
    from moeracle.properties.cases.case import Case

    args = Case.parse("moe_w4a16/T3-E2-k1-H16-I16-G16/bf16/exllama-sym/uniform/normal/s1").build().args
    stages: dict[str, torch.Tensor] = {}
    moe_w4a16(**args, activation="gelu", stages=stages)
    gate, up = stages["h"].chunk(2, 1)
    assert torch.allclose(stages["a"], torch.nn.functional.gelu(gate) * up, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "gelu_fast",
            "activation: got 'gelu_fast', must be one of silu, gelu, gelu_tanh, relu2, swigluoai, swiglustep",
        ),
        ("silu/beta2", "activation's part: got 'beta2', must be one of alphaN, limitN, after, up1"),
        ("silu/limit7/limit8", "activation: got limit twice in 'silu/limit7/limit8', must be given once"),
        ("gelu/alpha2", "activation: got alpha 2.0 with gelu, must go with silu alone"),
        ("silu/alpha100", "activation: got alpha 100.0, must be between 0.125 and 8"),
        ("silu/limit7.01", "activation: got limit 7.01, must be a value of bf16 between 0.125 and 1024"),
        ("silu/after", "activation: got after without a limit, must go with one"),
    ],
)
def test_a_mistake_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^activation") as refused:
        contract(f"grouped,activation={text}")
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
