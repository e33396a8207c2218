"""What an exact case leaves unread: a column that no nonzero x meets could hold anything, and nobody would see it."""

from __future__ import annotations

import torch

from moeracle.properties.cases.case import Problem
from moeracle.properties.cases.record import record_of
from moeracle.ref.weights.weight import Int4Weight


def columns_read(problem: Problem, a: torch.Tensor | None = None) -> torch.Tensor:
    """Say which columns of each expert's weight some row of x reaches with a value that is not zero.

    Every weight row is multiplied by the same x, so a column that is reached is reached in every weight row, and all
    of its codes that differ from their zero points enter a result.

    Args:
        problem: of int4_linear, grouped_gemm, padded_gemm, moe_w4a16 or int8_lm_head.
        a: for moe_w4a16's second GEMM, its input [T*k, I] in slot order; None asks about w13, which reads x.
    Returns:
        bool [E, K]; E is 1 where there are no experts.
    """
    rows, experts = record_of(problem.case.op).operand_rows(problem)
    rows = rows if a is None else a
    weight = next((value for value in problem.args.values() if isinstance(value, Int4Weight)), None)
    read = torch.zeros((weight and weight.E) or 1, rows.shape[1], dtype=torch.bool)
    for e in range(len(read)):
        read[e] = (rows[experts == e] != 0).any(0)
    return read


def codes_by_position(w: Int4Weight) -> torch.Tensor:
    """Say which codes occur at each column k mod 8 and at each row n mod 8: bool [2, 8, 16].

    The nibble's place in its word is k mod 8 (k mod 2 of nibble_pairs), or n mod 8 in layouts that pack along N.
    """
    codes = w.codes().long().reshape(-1, w.N, w.K)
    seen = torch.zeros(2, 8, 16, dtype=torch.bool)
    for position in range(8):
        seen[0, position, codes[:, :, position::8].flatten()] = True
        seen[1, position, codes[:, position::8].flatten()] = True
    return seen
