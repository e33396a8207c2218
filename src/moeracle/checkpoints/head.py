"""What int8 does to an lm_head: error of weights and logits, arg-maxes that change, and how near they were to changing.

No model runs: activations are drawn, or given. Of a token whose two best logits lie `margin` apart, the arg-max can
only change where the errors of two logits differ by that much; so margins beside errors say how much there is to lose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from moeracle.ref.errors import require
from moeracle.ref.weights.quantize import (
    check_lm_head_shape,
    parse_lm_head_option,
    quantize_int8,
    quantize_int8_weight_dtype,
)

from .checkpoint import Checkpoint
from .files import open_safetensors, shown
from .formats.dense import DenseLinear

GROUPS = (-1, 128, 64, 32)
ROWS = 1 << 14  # of the vocabulary at once
QUANTIZERS = {"fp32": quantize_int8, "weight dtype": quantize_int8_weight_dtype}


@dataclass(frozen=True)
class HeadError:
    """What one way of quantizing does.

    Args:
        group_size: columns a scale, -1 for one a row.
        quantizer: "fp32", or "weight dtype": as known loaders run it.
        weight_rms: root mean square of the weights' error, in their own root mean square.
        weight_max: the largest, in the same.
        logit_rms, logit_max: of the logits' error, in the logits' standard deviation.
        tokens: activations asked.
        changed: of them, whose arg-max is another one.
        at_risk: of them, whose margin is below twice their largest logit error.
        margin: median of the margin between the two best logits, in the logits' standard deviation.
        divergence: mean Kullback-Leibler divergence of the softmax from that of the exact logits, in nats.
        bytes: of codes and scales, over those of the weights.
    """

    group_size: int
    quantizer: str
    weight_rms: float
    weight_max: float
    logit_rms: float
    logit_max: float
    tokens: int
    changed: int
    at_risk: int
    margin: float
    divergence: float
    bytes: float


def head_of(checkpoint: Checkpoint) -> tuple[str, torch.Tensor]:
    """Return the name and the weight [V, K] of the lm_head, or of the embedding where the two are tied.

    Raises:
        ValueError: there is none, or it is quantized already.
    """
    for kind in ("lm_head", "embedding"):
        for module, linear in checkpoint.linears.items():
            if linear.place.kind == kind:
                require(
                    isinstance(linear, DenseLinear), f"{shown(module)}: is {linear.label}, must be bf16, fp16 or fp32"
                )
                weight = linear.weight()
                require(bool(torch.isfinite(weight).all()), f"{shown(module)}: holds weights that are not finite")
                return module, weight.float() if weight.dtype == torch.float64 else weight
    raise ValueError(f"{checkpoint.path}: has no lm_head and no embed_tokens")


def activations_of(path: Path | None, K: int, tokens: int, seed: int) -> torch.Tensor:
    """Return activations [T, K] in fp32: from a safetensors file, or normal with a root mean square of 1.

    Raises:
        ValueError: the file holds no floating [T, K] of this K, or several.
    """
    if path is None:
        return torch.randn(tokens, K, generator=torch.Generator().manual_seed(seed))
    opened = open_safetensors(path)
    fitting = [name for name in list(opened.keys()) if tuple(opened.get_slice(name).get_shape())[1:] == (K,)]
    require(len(fitting) == 1, f"{path}: holds {len(fitting)} tensors of [T, {K}], must hold one")
    x = opened.get_tensor(fitting[0])
    right = x.is_floating_point() and len(x) > 0 and bool(torch.isfinite(x).all())
    require(right, f"{path}: {shown(fitting[0])} must be floating, finite, and of at least one token")
    return x.float()


def group_size_of(option: str, K: int) -> int:
    """Return the group size that an option means.

    Raises:
        ValueError: it is off, no such option, or the kernel cannot take this K.
    """
    group = parse_lm_head_option(option)
    if group is None:
        raise ValueError(f"as: got {option!r}, must be int8 or int8:gN")
    reason = check_lm_head_shape(group, K)
    require(reason is None, f"as: {option}: {reason}")
    return group


def head_errors(weight: torch.Tensor, x: torch.Tensor, groups: tuple[int, ...]) -> Iterator[HeadError]:
    """Yield the errors of every group size that divides K, under both quantizers.

    Args:
        weight: [V, K], finite.
        x: fp32 [T, K].
        groups: group sizes, -1 for one a row.
    """
    exact = _logits(weight, x)
    for group in groups:
        if group > 0 and weight.shape[1] % group:
            continue
        for name in QUANTIZERS if weight.dtype != torch.float32 else ("fp32",):
            yield _error(weight, x, exact, group, name)


def _logits(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x @ part.float().mT for part in weight.split(ROWS)], 1)


def _error(weight: torch.Tensor, x: torch.Tensor, exact: torch.Tensor, group: int, quantizer: str) -> HeadError:
    squares = largest = total = 0.0
    scales, logits = 0, []
    for part in weight.split(ROWS):
        codes, scale = QUANTIZERS[quantizer](part, group)
        back = codes.float().unflatten(1, (scale.numel() // len(codes), -1)) * scale.view(len(codes), -1, 1)
        back, true = back.flatten(1), part.float()
        squares += float((back - true).double().square().sum())
        total += float(true.double().square().sum())
        largest = max(largest, float((back - true).abs().max()))
        scales += scale.numel()
        logits.append(x @ back.mT)
    got = torch.cat(logits, 1)
    size, spread = math.sqrt(total / weight.numel()) or 1.0, float(exact.std()) or 1.0
    apart = (got - exact).abs()
    best = exact.topk(min(2, exact.shape[1]), 1).values
    margin = best[:, 0] - best[:, -1]
    chance = torch.log_softmax(exact.double(), 1)
    divergence = (chance.exp() * (chance - torch.log_softmax(got.double(), 1))).sum(1)
    return HeadError(
        group, quantizer, math.sqrt(squares / weight.numel()) / size, largest / size,
        float(apart.double().square().mean().sqrt()) / spread, float(apart.max()) / spread, len(x),
        int((got.argmax(1) != exact.argmax(1)).sum()), int((margin < 2 * apart.amax(1)).sum()),
        float(margin.median()) / spread, float(divergence.mean()),
        (weight.numel() + 4 * scales) / (weight.numel() * weight.element_size()),
    )  # fmt: skip


def save_head(path: Path, module: str, weight: torch.Tensor, group: int) -> None:
    """Write the quantized head, codes int8 and scales fp32, by the fp32 quantizer; whole or not at all."""
    from safetensors.torch import save

    from moeracle.files import write_atomically

    parts = [quantize_int8(part, group) for part in weight.split(ROWS)]
    tensors = {f"{module}.codes": torch.cat([c for c, _ in parts]), f"{module}.scale": torch.cat([s for _, s in parts])}
    write_atomically(path, save(tensors, metadata={"group_size": str(group)}))
