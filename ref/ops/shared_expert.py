"""The shared expert: the dense gated MLP that every token passes through, times a sigmoid gate of one dot product.

    a = silu(x·Wg) * (x·Wu);  y = a·Wd;  out = y * sigmoid(x·g)

`shared_expert` computes that. Kernels round on the way, and where they do is part of their contract, so each known way
has its own function, taking and returning values of the activation dtype D:

    fused_silu_mul     D(D(silu(gate)) * up)                  an fp32 product here once changed generated text
    fused_gate_mul     D(D(sum + bias) * D(sigmoid(dot)))     dot never stored
    unfused_gate_mul   D(D(shared) * D(sigmoid(D(dot))))      dot stored between two kernels
    add_shared         D(routed + shared)

A product of two D values is exact in fp32 (16 bits for bf16, 22 for fp16), so .to(D) of it is the one rounding meant.
"""

from __future__ import annotations

import torch

from ..activation import Activation
from ..errors import require, unknown
from ..rounding import round_to
from ..weights.weight import Int4Weight
from .silu_and_mul import activation_of, silu_and_mul
from .tiny_dot import tiny_dot

ROUNDINGS = ("none", "fused", "unfused")
HALF = (torch.bfloat16, torch.float16)


def sigmoid_gate(x: torch.Tensor, gate_weight: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the shared expert's gate of each token, sigmoid(x·g), in 0..1: `tiny_dot` with its sigmoid.

    Args:
        x: [T, H], bf16, fp16, fp32 or fp64.
        gate_weight: [H] or [1, H].
        dtype: torch.float32 or torch.float64.
    Returns:
        [T, 1] `dtype`.
    Raises:
        ValueError: shapes that do not fit.
    Source: docs/formats.md section 7.
    """
    return tiny_dot(x, gate_weight, sigmoid=True, dtype=dtype)


def shared_expert(
    x: torch.Tensor,
    w_gate_up: torch.Tensor | Int4Weight,
    w_down: torch.Tensor | Int4Weight,
    gate_weight: torch.Tensor | None = None,
    *,
    rounding: str = "none",
    activation: Activation | str = "silu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Run the dense gated MLP, and gate its output if there is a gate.

        h = x·Wguᵀ;  a = silu(h[:, :I]) * h[:, I:];  y = a·Wdᵀ;  out = y * sigmoid(x·g), or y without a gate

    Args:
        x: [T, H]; bf16 or fp16 (D) where rounding is not "none"; T may be 0.
        w_gate_up: [2I, H], gate rows first: a dense tensor, or an Int4Weight without an expert dimension, whose values
            are taken unrounded. (For a kernel that casts weights to D, pass them dequantized and cast.)
        w_down: [H, I], likewise.
        gate_weight: [H] or [1, H], or None for a shared expert without a gate.
        rounding: "none": nothing is rounded to D. "fused": D(h), fused_silu_mul, then fused_gate_mul on y. "unfused":
            D(h), fused_silu_mul (what the separate kernels compute too), then unfused_gate_mul on y. Without a gate
            both end with D(y).
        activation: as silu_and_mul's.
        dtype: of the GEMMs, torch.float32 or torch.float64.
    Returns:
        [T, H]: `dtype` for "none", else D. Each GEMM within its K * 2^-24 * (|x|·|W|) in fp32; after rounding, a value
        near a midpoint may therefore be its neighbour.
    Raises:
        ValueError: shapes that do not fit, another rounding, or rounding asked of an x that is not bf16 or fp16.
    Source: docs/formats.md section 7.
    """
    require(x.ndim == 2, f"x: got shape {tuple(x.shape)}, must be [T, H]")
    H = x.shape[1]
    if rounding not in ROUNDINGS:
        raise unknown("rounding", rounding, ROUNDINGS)
    gate_up, down = _dense(w_gate_up, dtype), _dense(w_down, dtype)
    require(
        gate_up.ndim == 2 and gate_up.shape[0] % 2 == 0 and gate_up.shape[1] == H,
        f"w_gate_up: got shape {tuple(gate_up.shape)}, must be [2I, {H}]",
    )
    I = gate_up.shape[0] // 2
    require(down.shape == (H, I), f"w_down: got shape {tuple(down.shape)}, must be ({H}, {I})")
    h = x.to(dtype) @ gate_up.T
    if rounding == "none":
        y = silu_and_mul(h, activation=activation, dtype=dtype) @ down.T
        return y if gate_weight is None else y * sigmoid_gate(x, gate_weight, dtype=dtype)

    require(x.dtype in HALF, f"x: got {x.dtype}, must be bf16 or fp16 for rounding {rounding!r}")
    D = x.dtype
    gate, up = _round(h, D).chunk(2, dim=1)
    y = fused_silu_mul(gate, up, activation).to(dtype) @ down.T
    if gate_weight is None:
        return _round(y, D)
    dot = tiny_dot(x, gate_weight, dtype=dtype)
    return fused_gate_mul(y, dot, D) if rounding == "fused" else unfused_gate_mul(y, dot, D)


def fused_silu_mul(gate: torch.Tensor, up: torch.Tensor, activation: Activation | str = "silu") -> torch.Tensor:
    """Multiply silu by up as kernels with FUSED_SILU_MUL do: silu rounded to D first, then the product in D.

        D(D(silu(gate)) * up)

    Args:
        gate, up: same shape, both bf16 or both fp16 (D).
        activation: as silu_and_mul's, in silu's place.
    Returns:
        Tensor of D, that shape: both roundings correct (a kernel's own exp may move D(silu) by one ulp near midpoints).
    Raises:
        ValueError: other dtypes, or shapes that differ.
    """
    require(gate.dtype in HALF and up.dtype == gate.dtype, f"gate, up: got {gate.dtype}, {up.dtype}, must be one of D")
    require(gate.shape == up.shape, f"up: got shape {tuple(up.shape)}, must be gate's {tuple(gate.shape)}")
    D, how = gate.dtype, activation_of(activation)
    activated = how.capped(how.of_gate(how.limited(gate.to(torch.float64))))
    return (round_to(activated, D).to(torch.float32) * how.of_up(up.to(torch.float32))).to(D)


def fused_gate_mul(
    total: torch.Tensor, dot: torch.Tensor, D: torch.dtype, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Gate a GEMM's sums as kernels with FUSED_GATE_MUL do, in the epilogue.

        D(D(total + bias) * D(sigmoid(dot)))

    Args:
        total: [T, N] fp32 or fp64, the accumulated sums, not yet rounded.
        dot: [T, 1] fp32 or fp64, x·g, never stored.
        D: torch.bfloat16 or torch.float16.
        bias: [N], or None.
    Returns:
        [T, N] of D; each of the three roundings correct.
    Raises:
        ValueError: another D.
    """
    require(D in HALF, f"D: got {D}, must be torch.bfloat16 or torch.float16")
    stored = _round(total if bias is None else total + bias.to(total.dtype), D)
    return (stored.to(torch.float32) * _sigmoid(dot, D).to(torch.float32)).to(D)


def unfused_gate_mul(shared: torch.Tensor, dot: torch.Tensor, D: torch.dtype) -> torch.Tensor:
    """Gate the shared expert's output as three separate kernels do: dot, sigmoid and product each stored in D.

        D(D(shared) * D(sigmoid(D(dot))))

    Args:
        shared: [T, N] fp32 or fp64 sums, or values of D.
        dot: [T, 1], x·g, likewise.
        D: torch.bfloat16 or torch.float16.
    Returns:
        [T, N] of D; each rounding correct.
    Raises:
        ValueError: another D.
    """
    require(D in HALF, f"D: got {D}, must be torch.bfloat16 or torch.float16")
    return (_round(shared, D).to(torch.float32) * _sigmoid(_round(dot, D), D).to(torch.float32)).to(D)


def add_shared(routed: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Add the gated shared expert to the routed experts' sum in D: D(routed + shared).

    Args:
        routed, shared: same shape, both bf16 or both fp16 (D).
    Returns:
        Tensor of D, correctly rounded.
    Raises:
        ValueError: other dtypes, or shapes that differ.
    """
    require(
        routed.dtype in HALF and shared.dtype == routed.dtype and shared.shape == routed.shape,
        f"shared: got {shared.dtype} {tuple(shared.shape)}, must be bf16 or fp16 like routed, "
        f"which is {routed.dtype} {tuple(routed.shape)}",
    )
    # fp32's 24 bits are at least 2*11 + 2, so rounding the sum to fp32 on the way to D changes nothing
    return (routed.to(torch.float32) + shared.to(torch.float32)).to(routed.dtype)


def _dense(w: torch.Tensor | Int4Weight, dtype: torch.dtype) -> torch.Tensor:
    return w.to(dtype) if isinstance(w, torch.Tensor) else w.dequantize(dtype)


def _round(x: torch.Tensor, D: torch.dtype) -> torch.Tensor:
    """One rounding to D from whatever x is: torch's own fp64 -> bf16 would round twice."""
    return round_to(x, D) if x.dtype == torch.float64 else x.to(D)


def _sigmoid(x: torch.Tensor, D: torch.dtype) -> torch.Tensor:
    return round_to(torch.sigmoid(x.to(torch.float64)), D)
