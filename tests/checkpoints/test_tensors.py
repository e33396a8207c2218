"""The experts of a file as the weights of `assert_legal`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moeracle
from moeracle.properties.simulate import simulation_of
from moeracle.ref.contracts.contract import contract

FILE = Path(__file__).resolve().parents[2] / "fixtures" / "checkpoints" / "deepseek_torchao_asym"


def test_a_layer_on_the_experts_of_a_file(tmp_path: Path) -> None:
    checkpoint = moeracle.load_checkpoint(FILE)
    experts = checkpoint.layer(min(checkpoint.layers)).experts()
    E, H = experts.w13.packed.shape[0], experts.w2.scale.shape[-2]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, H, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(E, generator=generator)[:2] for _ in range(5)]).int()
    weights = torch.rand(5, 2, generator=generator)
    arguments = (x, experts.w13, experts.w2, weights, ids)
    out = simulation_of("moe_w4a16", contract("grouped")).moe_w4a16(*arguments)["out"]
    moeracle.assert_legal("moe_w4a16", out, *arguments, contract="grouped")
    wrong = out.clone()
    wrong[3, 7] *= 1.5
    with pytest.raises(AssertionError, match=r"worst out\[token 3, n 7\]"):
        moeracle.assert_legal("moe_w4a16", wrong, *arguments, contract="grouped", save=tmp_path)
