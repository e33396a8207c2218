"""8-bit experts in each format's files: read into Int8Weights and judged beside bytes that are taken apart here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import moeracle
from moeracle.ref.weights.layouts import LAYOUTS8
from moeracle.ref.weights.weight import Int8Weight
from support.checkpoints import FIXTURES, write

T = torch.Tensor
GROUP = 32
SHAPES = {"gate_proj": (32, 64), "up_proj": (32, 64), "down_proj": (64, 32)}
REAL = FIXTURES / "mixtral_compressed_8bit_asym"  # written by compressed-tensors itself (make_checkpoints.py)


def bytes_of(words: T) -> T:
    """Take int32 words apart into their bytes, lowest first, along the last dimension."""
    return torch.from_numpy(np.ascontiguousarray(words.numpy()).view(np.uint8).copy()).double()


def in_words(codes: T) -> T:
    """Put four bytes into each int32 word, the first one lowest, along the last dimension."""
    return torch.from_numpy(np.ascontiguousarray(codes.to(torch.uint8).numpy()).view(np.int32).copy())


def of_gptq(parts: dict[str, T]) -> T:
    """w = (u - (stored + 1)) * s, u along K and zero points along N, group g_idx[k]."""
    u, zero, group = bytes_of(parts["qweight"].mT), bytes_of(parts["qzeros"]).T + 1, parts["g_idx"].long()
    return (u - zero[:, group]) * parts["scales"].double().T[:, group]


def of_packed(parts: dict[str, T]) -> T:
    """w = (q - z) * s, q and z stored plus 128: q along K, z along N."""
    N, K = parts["weight_shape"].tolist()
    q, scale = bytes_of(parts["weight_packed"])[:, :K] - 128, parts["weight_scale"].double()
    zero = torch.zeros_like(scale)
    if "weight_zero_point" in parts:
        zero = bytes_of(parts["weight_zero_point"].mT)[:, :N].T - 128
    group = torch.arange(K) * scale.shape[1] // K
    return (q - zero[:, group]) * scale[:, group]


def of_bytes(parts: dict[str, T]) -> T:
    """w = q * s."""
    q, scale = parts["weight"].double(), parts["weight_scale"].double()
    return q * scale.repeat_interleave(q.shape[1] // scale.shape[1], 1)


def drawn(N: int, K: int, seed: int, group: int) -> tuple[T, T, T]:
    """Draw codes 0..255 [N, K], zero points 1..255 and scales [N, groups]: every byte occurs, and both ends."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (N, K), generator=draw)
    codes[0, :2] = torch.tensor([0, 255])
    zero = torch.randint(1, 256, (N, K // group), generator=draw)
    zero[:2, 0] = torch.tensor([1, 255])
    return codes, zero, torch.rand(N, K // group, generator=draw) * 2e-3 + 1e-4


def gptq(N: int, K: int, seed: int, *, order: bool = False) -> dict[str, T]:
    codes, zero, scale = drawn(N, K, seed, GROUP)
    g_idx = torch.arange(K) // GROUP
    if order:  # gate and up share theirs
        g_idx = g_idx[torch.randperm(K, generator=torch.Generator().manual_seed(K))]
    return {
        "qweight": in_words(codes.mT.contiguous().mT).mT.contiguous(),
        "qzeros": in_words((zero - 1).mT),
        "scales": scale.half().mT,
        "g_idx": g_idx.int(),
    }


def packed(N: int, K: int, seed: int, *, channel: bool = False, asym: bool = False) -> dict[str, T]:
    codes, zero, scale = drawn(N, K, seed, K if channel else GROUP)
    parts = {
        "weight_packed": in_words(codes),
        "weight_scale": scale.bfloat16(),
        "weight_shape": torch.tensor([N, K]),
    }
    return parts | ({"weight_zero_point": in_words(zero.mT).mT} if asym else {})


def signed(N: int, K: int, seed: int, *, channel: bool = False) -> dict[str, T]:
    codes, _, scale = drawn(N, K, seed, K if channel else GROUP)
    return {"weight": (codes - 128).to(torch.int8), "weight_scale": scale.bfloat16()}


def config_of_gptq(act: bool) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 8, "group_size": GROUP, "sym": False, "desc_act": act}


def config_of_compressed(form: str, channel: bool, asym: bool = False) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "int", "symmetric": not asym, "group_size": None if channel else GROUP,
               "strategy": "channel" if channel else "group"}  # fmt: skip
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "format": form}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": ["lm_head"]}


Pack, Read = Callable[[int, int, int], dict[str, T]], Callable[[dict[str, T]], T]
FORMATS: dict[str, tuple[Pack, Read, dict[str, Any], str]] = {
    "gptq": (gptq, of_gptq, config_of_gptq(False), "gptq"),
    "gptq act-order": (lambda *s: gptq(*s, order=True), of_gptq, config_of_gptq(True), "gptq"),
    "packed group": (packed, of_packed, config_of_compressed("pack-quantized", False), "compressed_tensors"),
    "packed group asym": (lambda *s: packed(*s, asym=True), of_packed,
                          config_of_compressed("pack-quantized", False, True), "compressed_tensors"),
    "packed channel": (lambda *s: packed(*s, channel=True), of_packed,
                       config_of_compressed("pack-quantized", True), "compressed_tensors"),
    "int8 group": (signed, of_bytes, config_of_compressed("int-quantized", False), "int8"),
    "int8 channel": (lambda *s: signed(*s, channel=True), of_bytes,
                     config_of_compressed("int-quantized", True), "int8"),
}  # fmt: skip


def written(folder: Path, name: str) -> dict[str, T]:
    """Write a layer of three experts; return its tensors."""
    pack, _, config, _ = FORMATS[name]
    tensors = {}
    for e in range(3):
        for i, (module, (N, K)) in enumerate(SHAPES.items()):
            stem = f"model.layers.0.mlp.experts.{e}.{module}"
            tensors |= {f"{stem}.{part}": t for part, t in pack(N, K, 10 * e + i).items()}
    write(folder, tensors, config)
    return tensors


def parts_of(tensors: dict[str, T], stem: str) -> dict[str, T]:
    return {name.removeprefix(f"{stem}."): t for name, t in tensors.items() if name.startswith(f"{stem}.")}


def judged(w: Int8Weight, d: T) -> None:
    """Judge D(x D(w)^T) of weights taken apart here, and the same of weights that are one zero point off."""
    x = torch.randn(5, w.K, generator=torch.Generator().manual_seed(7)).bfloat16()
    verdict = {}
    for name, weights in (("right", d), ("one step off", d + w.spread(w.scale).double())):
        out = (x.double() @ weights.bfloat16().double().T).bfloat16()
        verdict[name] = moeracle.judge_tensors("int4_linear", out, x, w, None, contract="grouped", explain=False)
    assert verdict["right"].ok, verdict["right"].text()
    assert verdict["one step off"].status == "illegal"


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_what_its_bytes_say(tmp_path: Path, name: str) -> None:
    tensors, (_, read, _, own) = written(tmp_path, name), FORMATS[name]
    layer = moeracle.load_checkpoint(tmp_path).layer(0)
    right = {stem.rpartition(".")[0] for stem in tensors}
    gate, up, down = (
        [read(parts_of(tensors, f"model.layers.0.mlp.experts.{e}.{module}")) for e in range(3)] for module in SHAPES
    )
    assert len(right) == 9
    for layout in (None, *LAYOUTS8):
        got = layer.experts(2, 0, layout=layout)
        assert isinstance(got.w13, Int8Weight)
        assert (got.w13.layout, got.w2.layout) == ((layout or own),) * 2
        for i, e in enumerate((2, 0)):
            assert torch.equal(got.w13.expert(i).dequantize(torch.float64), torch.cat([gate[e], up[e]]))
            assert torch.equal(got.w2.expert(i).dequantize(torch.float64), down[e])
    judged(got.w13.expert(0), torch.cat([gate[2], up[2]]))
    judged(layer.experts(1).w2.expert(0), down[1])


def test_a_file_of_compressed_tensors_itself() -> None:
    tensors = load_file(REAL / "model.safetensors")
    got = moeracle.load_checkpoint(REAL).layer(0).experts()
    assert isinstance(got.w13, Int8Weight)
    assert got.w13.shape == (2, 64, 64)
    linear = moeracle.load_checkpoint(REAL).linear("model.layers.0.block_sparse_moe.experts.0.w1")
    assert linear.zero_form == "z + 128, along N"
    for e in got.ids:
        gate, up, down = (
            of_packed(parts_of(tensors, f"model.layers.0.block_sparse_moe.experts.{e}.{w}")) for w in ("w1", "w3", "w2")
        )
        assert torch.equal(got.w13.expert(e).dequantize(torch.float64), torch.cat([gate, up]))
        judged(got.w13.expert(e), torch.cat([gate, up]))
        judged(got.w2.expert(e), down)
