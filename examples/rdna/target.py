"""A gfx11 kernel judged with no AMD GPU: moeracle check examples/rdna/target.py"""

from pathlib import Path

import torch

import moeracle
from moeracle.gfx11 import load

TYPES = {torch.float16: "__half", torch.bfloat16: "__hip_bfloat16"}


@moeracle.kernel("int4_linear", layout="compressed_tensors", contract="grouped,weight=exact,accumulator=fp32",
                 supports=lambda case: case.K % 8 == 0 and case.G % 8 == 0 and "+bias" not in str(case))  # fmt: skip
def gemv(x, w, bias):
    (T, K), N, out = x.shape, w.N, x.new_zeros(len(x), w.N)
    kernel = load(Path(__file__).with_name("gemv.hip"), instantiate=f"gemv<{TYPES[x.dtype]}>")
    kernel.launch((N, T), 32, x.contiguous(), w.packed.contiguous(), w.scale.contiguous(), out, N, K, w.G)
    return out
