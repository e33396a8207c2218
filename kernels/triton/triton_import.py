"""The one place where kernels get triton from: `from moeracle.kernels.triton.triton_import import tl, triton`.

Without a GPU the corrected interpreter must be on before triton is imported; doing it here, once, means that no kernel
file can forget it.
"""

from __future__ import annotations

from moeracle.kernels.triton.interpreter import enable as interpreter

interpreter.enable_if_no_gpu()

try:
    import triton
    import triton.language as tl
except ImportError as error:  # an extra of the package, so say which
    raise ImportError("triton is not installed; the Triton kernels need it: pip install 'moeracle[triton]'") from error

__all__ = ["tl", "triton"]
