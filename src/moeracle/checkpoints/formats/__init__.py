"""The formats, each one file: what its tensors are called, which shapes they have, and what their bits mean."""

from ..linear import Linear
from .awq import AwqLinear
from .compressed import CompressedLinear
from .dense import DenseLinear, ForeignLinear
from .gptq import GptqLinear
from .int8_bytes import Int8Linear
from .nibble_bytes import NibbleLinear
from .torchao import Int4TensorLinear, IntxLinear

# In the order in which they are asked; the last takes whatever is left.
FORMATS: tuple[type[Linear], ...] = (
    GptqLinear,
    AwqLinear,
    CompressedLinear,
    Int4TensorLinear,
    IntxLinear,
    NibbleLinear,
    Int8Linear,
    DenseLinear,
    ForeignLinear,
)
