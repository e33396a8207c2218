"""What every process that compiles would import and look up again: a fork server has it once, for all its scripts.

It lies beside fork_server.py, which finds it by this name. Nothing is compiled here, so no fork lacks the threads of a
compiler that its parent has.
"""

import pydantic  # noqa: F401
from triton.runtime.cache import triton_key

from moeracle.kernels.compile.dry_run import pretending  # noqa: F401
from moeracle.kernels.registry import REGISTRY

for entry in REGISTRY:
    if not entry.fn.startswith("moeracle.kernels.hip."):
        entry.load()
triton_key()  # a digest of the whole compiler, half a second
