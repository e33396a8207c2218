"""What the registry says of grouped_topk's kernel."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.kernels.common.size import DTYPES, Size
from moeracle.kernels.entry import Entry


def dry_arguments(size: Size) -> tuple[Any, ...]:
    """Return DeepSeek-V3's routing: 8 groups of which 4 are kept, sigmoid scores under a bias."""
    logits = torch.zeros(size.T, size.E, dtype=DTYPES[size.dtype], device="cuda")
    bias = torch.zeros(size.E, dtype=torch.float32, device="cuda")
    return logits, bias, 8, 4, size.k, "sigmoid", True, 2.5


ENTRIES = [
    Entry(
        "grouped_topk",
        "grouped_topk",
        "moeracle.kernels.triton.grouped_topk:grouped_topk",
        dtypes=("bf16", "fp16", "fp32"),
        dry_arguments=dry_arguments,
        expected={"grouped_topk_kernel": []},
    )
]
