"""A test that had `assert_close` in it: pytest examples/tensors_pytest.py"""

import torch

from moeracle import assert_legal, ref

T, E, k, H, I, G = 7, 4, 2, 128, 64, 32
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def quantized(*shape):
    """Return int4 codes as your loader packs them, and their scales."""
    codes, scale, _ = ref.quantize_int4(
        torch.randn(shape, device=DEVICE), G, symmetric=True, scale_dtype=torch.bfloat16
    )
    return ref.pack_int4(codes, "exllama"), scale


def your_kernel(x, w13, w2, topk_weights, topk_ids):
    """Stands for a kernel: weights rounded to bf16 before the dot, every stage stored, the sum over slots in fp32."""
    out = torch.zeros(T, H, device=x.device)
    for t in range(T):
        for weight, e in zip(topk_weights[t], topk_ids[t].tolist(), strict=True):
            gate, up = (x[t].float() @ w13[e].float().T).bfloat16().float().chunk(2)
            a = (torch.nn.functional.silu(gate).bfloat16() * up).bfloat16()
            out[t] += weight * (a.float() @ w2[e].float().T).bfloat16().float()
    return out.bfloat16()


def test_your_layer():
    torch.manual_seed(0)
    x = torch.randn(T, H, device=DEVICE).bfloat16()
    w13, w2 = quantized(E, 2 * I, H), quantized(E, H, I)
    topk_weights, topk_ids = torch.randn(T, E, device=DEVICE).softmax(-1).topk(k)
    dense = [ref.dequantize_int4(ref.unpack_int4(packed, "exllama"), scale).bfloat16() for packed, scale in (w13, w2)]

    out = your_kernel(x, *dense, topk_weights, topk_ids)

    # torch.testing.assert_close(out, expected, atol=2e-2, rtol=0)
    assert_legal("moe_w4a16", out, x, w13, w2, topk_weights, topk_ids, contract="grouped", layout="exllama")
