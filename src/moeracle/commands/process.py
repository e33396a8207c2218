"""How a process that judges kernels is set up: its threads, and the warnings that it leaves out."""

from __future__ import annotations

import os
import warnings


def ignore_expected_warnings() -> None:
    """Ignore what NumPy and triton's interpreter say of NaN and infinities: cases are meant to make them."""
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"triton\.runtime\.interpreter|numpy\b")


def prepare_to_judge() -> None:
    """Use one thread, and leave expected warnings out."""
    use_one_thread()
    ignore_expected_warnings()


def use_one_thread() -> None:
    """Let torch compute on one thread, unless OMP_NUM_THREADS is set."""
    import torch

    # A small MoE takes 4 ms on one thread and 174 ms on two that share the cores; and the bits of an fp32 matmul may
    # depend on the number of threads, so a replay should not.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
