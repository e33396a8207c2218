"""A small layer with its legal output, as a test of somebody else has it."""

from __future__ import annotations

import functools
from typing import Any

import torch

from moeracle.properties.cases.case import Case, Problem
from moeracle.properties.simulate import simulation_of
from moeracle.ref.contracts.contract import contract

LAYER = "moe_w4a16/T17-E4-k2-H128-I64-G32/bf16/exllama-sym/uniform/normal/s3"
LINEAR = "int4_linear/T9-N64-K128-G32/bf16/gptq-v1/-/normal/s7"


@functools.cache
def layer(text: str = LAYER, rules: str = "grouped") -> tuple[Problem, dict[str, torch.Tensor]]:
    """Return a layer's problem and the stages that a legal kernel stores."""
    problem = Case.parse(text).build()
    stages = simulation_of("moe_w4a16", contract(rules)).moe_w4a16(*problem.args.values())
    return problem, stages


@functools.cache
def linear(text: str = LINEAR) -> tuple[Problem, torch.Tensor]:
    """Return a linear layer's problem and a legal output."""
    problem = Case.parse(text).build()
    return problem, simulation_of("int4_linear", contract("grouped")).int4_linear(*problem.args.values())


def arguments(**changed: Any) -> dict[str, Any]:
    """Return the layer's arguments by name, some of them changed."""
    return {**layer()[0].args, **changed}
