"""How literal cases are written down: tensors from nested lists, weights from packed words, one record a case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from moeracle.ref.weights.weight import Int4Weight

from ..cases.case import Case, Problem


def bf16(values: Sequence[Any]) -> torch.Tensor:
    """A bfloat16 tensor; every literal is a value that bfloat16 holds."""
    return torch.tensor(values, dtype=torch.bfloat16)


def fp16(values: Sequence[Any]) -> torch.Tensor:
    """A float16 tensor; every literal is a value that float16 holds."""
    return torch.tensor(values, dtype=torch.float16)


def fp32(values: Sequence[Any]) -> torch.Tensor:
    """A float32 tensor."""
    return torch.tensor(values, dtype=torch.float32)


def int32(values: Sequence[Any]) -> torch.Tensor:
    """An int32 tensor."""
    return torch.tensor(values, dtype=torch.int32)


def words(values: Sequence[Any]) -> torch.Tensor:
    """Packed words, written as unsigned hex, as the int32 that containers hold."""
    return torch.tensor(values, dtype=torch.int64).to(torch.int32)


def octets(values: Sequence[Any]) -> torch.Tensor:
    """Bytes: uint8."""
    return torch.tensor(values, dtype=torch.uint8)


def weight(
    layout: str, packed: torch.Tensor, scale: torch.Tensor, group_size: int, zero: torch.Tensor | None = None
) -> Int4Weight:
    """An Int4Weight from its stored parts; zero points are unpacked ones."""
    return Int4Weight(packed, scale, zero, layout, group_size)


@dataclass(frozen=True)
class Literal:
    """A case worked by hand.

    Args:
        name: unique; the fixture's file is called so.
        case: what it would be called as a case: op, dimensions, dtype, layout. Its recipe and seed build other data.
        args: makes the op's arguments.
        expected: makes what is correctly rounded, by result name; where sums are exact, all that is legal.
        why: what a kernel that gets it wrong has done.
        contract: under which it holds.
        truth: what the judge is given besides.
    """

    name: str
    case: str
    args: Callable[[], dict[str, Any]]
    expected: Callable[[], dict[str, torch.Tensor]]
    why: str
    contract: str = "grouped"
    truth: dict[str, Any] = field(default_factory=dict)

    def problem(self) -> Problem:
        """Return the literal inputs as a Problem."""
        return Problem(Case.parse(self.case), self.args(), dict(self.truth))
