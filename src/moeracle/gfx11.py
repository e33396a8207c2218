"""gfx11 kernels judged with no AMD GPU: `load` one, `launch` it on CPU tensors, hold its bits against each order."""

from __future__ import annotations

from moeracle.kernels.gfx11.faults import MachineFault as MachineFault
from moeracle.kernels.gfx11.load import Gfx11Kernel as Gfx11Kernel
from moeracle.kernels.gfx11.load import load as load
from moeracle.kernels.gfx11.machine import in_order as in_order

__all__ = ["Gfx11Kernel", "MachineFault", "in_order", "load"]
