"""One record an op: everything that the harness knows of it. This list is the only place that names all of them."""

from __future__ import annotations

from ..cases.optable import register
from .dequantize_int4 import DequantizeInt4
from .grouped_gemm import GroupedGemm
from .grouped_topk import GroupedTopk
from .int4_linear import Int4Linear
from .int8_lm_head import Int8LmHead
from .moe_align_block_size import MoeAlignBlockSize
from .moe_permute import MoePermute
from .moe_unpermute import MoeUnpermute
from .moe_w4a16 import MoeW4A16
from .padded_gemm import PaddedGemm
from .quantize_int8 import QuantizeInt8
from .shared_expert import SharedExpert
from .silu_and_mul import SiluAndMul
from .tiny_dot import TinyDot
from .topk_softmax import TopkSoftmax
from .unpack_int4 import UnpackInt4

RECORDS = (
    UnpackInt4(),
    DequantizeInt4(),
    TopkSoftmax(),
    MoeAlignBlockSize(),
    MoePermute(),
    MoeUnpermute(),
    Int4Linear(),
    GroupedGemm(),
    PaddedGemm(),
    SiluAndMul(),
    MoeW4A16(),
    SharedExpert(),
    TinyDot(),
    QuantizeInt8(),
    Int8LmHead(),
    GroupedTopk(),
)

for record in RECORDS:
    register(record)
