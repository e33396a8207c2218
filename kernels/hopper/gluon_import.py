"""The one place where kernels get Gluon from, Triton's dialect with explicit layouts; `triton_import` comes first.

A Gluon kernel cannot be interpreted: it runs on the architecture it is written for, and there is a portable kernel of
the same contract beside it.
"""

from __future__ import annotations

from moeracle.kernels.triton.triton_import import triton  # noqa: F401  chooses the interpreter before Gluon imports triton

try:
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia import hopper
except ImportError as error:
    raise ImportError("this triton has no Gluon; the Hopper kernels need triton 3.6 or newer") from error

# Names that changed after triton 3.6: cp.async of a tensor of pointers, and the barrier of a program's threads.
copy_async = getattr(hopper.async_copy, "async_load", None) or hopper.async_copy.async_copy_global_to_shared
barrier = getattr(gl, "barrier", None) or gl.thread_barrier

__all__ = ["barrier", "copy_async", "gl", "gluon", "hopper"]
