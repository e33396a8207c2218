"""The smallest kernel file: one dense W4A16 linear in plain PyTorch. Judge it: moeracle check examples/my_kernel.py"""

import moeracle


@moeracle.kernel("int4_linear", layout="exllama", contract="grouped", device="cpu")
def my_linear(x, w, bias):
    weight = w.dequantize().to(x.dtype).float()  # (u-8)*s rounded to the activation dtype, as contract "grouped" says
    y = x.float() @ weight.T
    return (y if bias is None else y + bias.float()).to(x.dtype)
