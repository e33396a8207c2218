"""Every format, weight by weight: against the formats' own code, and against plain packing written here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from moeracle.checkpoints import load_checkpoint
from moeracle.ref.weights.stored import V1_READINGS
from support.checkpoints import (
    AWQ,
    BARE_AUTO_ROUND,
    COMPRESSED,
    FIXTURES,
    GPTQ_V1,
    GPTQ_V2,
    SHARED,
    awq,
    compressed,
    differing,
    gptq,
    layer_of,
    quantized,
    write,
)

MADE = os.environ.get("MOERACLE_CHECKPOINTS", "")  # where `make clients` has made some
FOLDERS = [
    *sorted(folder for folder in FIXTURES.glob("*") if folder.is_dir()),
    *(sorted(folder for folder in SHARED.glob("*") if folder.is_dir()) or [SHARED]),
    *(sorted(Path(MADE).iterdir()) if MADE else ()),
]


def gptq_v2(made):
    return gptq(made, v1=False)


PACKERS = {
    "v1": (gptq, GPTQ_V1),
    "v2": (gptq_v2, GPTQ_V2),
    "bare": (gptq_v2, BARE_AUTO_ROUND),
    "awq": (awq, AWQ),
    "ct": (compressed, COMPRESSED),
}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_weight_is_what_the_formats_own_code_gives(folder):
    if not (folder / "expected.json").exists():
        pytest.skip(f"{folder} is not on this machine")
    count, wrong = differing(folder)
    assert count >= 6
    assert wrong == []


def test_a_weight_of_another_checkpoint_is_seen(tmp_path):
    folder = FOLDERS[0]
    (tmp_path / "expected.json").write_text((folder / "expected.json").read_text())
    made = load_checkpoint(folder)
    weights = {
        f"{module}.weight": made.linears[module].dequantize().bfloat16() * 1.01
        for module in made.linears
        if made.linears[module].sizes.experts is None
    }
    write(tmp_path, weights, None)
    count, wrong = differing(tmp_path)
    assert len(wrong) == count


@pytest.mark.parametrize("name", PACKERS)
def test_codes_packed_by_the_definition_come_back(tmp_path, name):
    pack, config = PACKERS[name]
    layer = layer_of(pack)
    checkpoint = load_checkpoint(write(tmp_path, layer["tensors"], config))
    assert len(checkpoint.linears) == 6
    for module, made in layer["made"].items():
        stored = checkpoint.linear(module).stored()
        assert torch.equal(stored.codes, made.codes)
        assert torch.equal(stored.scale, made.scale)
        assert torch.equal(stored.zero, made.zero.to(torch.int16))
        assert torch.equal(stored.dequantize(torch.float64), made.weight())


def test_v1_zero_points_are_the_stored_ones_plus_one(tmp_path):
    """Worked by hand: nibbles 1, 0, 1, … hold 2, 1, 2, …"""
    made = quantized(8, 32, 32, 0)
    parts = {**gptq(made), "qzeros": torch.tensor([[0x11111101]], dtype=torch.int32)}
    checkpoint = load_checkpoint(write(tmp_path, {f"a.{p}": t for p, t in parts.items()}, GPTQ_V1))
    assert checkpoint.linear("a").zeros().flatten().tolist() == [2, 1, 2, 2, 2, 2, 2, 2]


def test_act_order_uses_the_group_that_g_idx_names(tmp_path):
    made = quantized(16, 64, 32, 3)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)) // 32
    checkpoint = load_checkpoint(
        write(tmp_path, {f"a.{p}": t for p, t in gptq(made, order=order).items()}, {**GPTQ_V1, "desc_act": True})
    )
    w = checkpoint.linear("a").dequantize(torch.float64)
    assert torch.equal(w, made.weight(order))
    assert not torch.equal(w, made.weight())


@pytest.mark.parametrize("reading", V1_READINGS)
def test_the_four_readings_of_a_stored_15(tmp_path, reading):
    """Stored nibbles 15, 3, 7, 0, 14, 15, 15, 1, as four loaders were seen to read them."""
    made = quantized(8, 32, 32, 0)
    word = sum(nibble << 4 * i for i, nibble in enumerate((15, 3, 7, 0, 14, 15, 15, 1)))
    parts = {**gptq(made), "qzeros": torch.tensor([[word]], dtype=torch.int32)}
    checkpoint = load_checkpoint(write(tmp_path, {f"a.{p}": t for p, t in parts.items()}, GPTQ_V1), zeros=reading)
    expected = {
        "modulo": [0, 4, 8, 1, 15, 0, 0, 2],
        "plain": [16, 4, 8, 1, 15, 16, 16, 2],
        "word_carry": [0, 5, 8, 1, 15, 0, 1, 3],
        "byte_carry": [0, 5, 8, 1, 15, 0, 0, 3],
    }
    assert checkpoint.linear("a").zeros().flatten().tolist() == expected[reading]


@pytest.mark.parametrize(
    ("writer", "reading"), [("gptqmodel:7.7.0", "word_carry"), ("auto-round", "plain"), ("", "modulo")]
)
def test_a_stored_15_is_read_as_its_writer_does(tmp_path, writer, reading):
    made = quantized(8, 32, 32, 0)
    config = {**GPTQ_V1, "meta": {"quantizer": [writer]}} if "gptqmodel" in writer else {**GPTQ_V1, "provider": writer}
    checkpoint = load_checkpoint(write(tmp_path, {f"a.{p}": t for p, t in gptq(made).items()}, config))
    assert checkpoint.reading == reading


def test_the_last_group_may_be_short(tmp_path):
    made = quantized(8, 64, 32, 0)
    codes, K = made.codes[:, :40], 40
    parts = compressed(made._replace(codes=codes))
    checkpoint = load_checkpoint(write(tmp_path, {f"a.{p}": t for p, t in parts.items()}, COMPRESSED))
    assert checkpoint.linear("a").sizes.K == K
    assert torch.equal(checkpoint.linear("a").dequantize(torch.float64), made.weight()[:, :40])


def test_torchao_int4_tensor_adds_a_float(tmp_path):
    generator = torch.Generator().manual_seed(1)
    q = torch.randint(-8, 8, (8, 64), generator=generator)
    scale, zero = torch.rand(2, 8, generator=generator).bfloat16(), torch.randn(2, 8, generator=generator).bfloat16()
    qdata = ((q[:, ::2] & 15) | (q[:, 1::2] & 15) << 4).to(torch.uint8).view(torch.int8)
    tensors = {"a._weight_qdata": qdata, "a._weight_scale": scale, "a._weight_zero_point": zero}
    config = {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 32}}},
    }
    linear = load_checkpoint(write(tmp_path, tensors, config)).linear("a")
    column = torch.arange(64) // 32
    assert torch.equal(linear.dequantize(torch.float64), q * scale.double().mT[:, column] + zero.double().mT[:, column])


def test_executorch_experts_are_nibble_pairs(tmp_path):
    generator = torch.Generator().manual_seed(2)
    q = torch.randint(-8, 8, (3, 64, 64), generator=generator)
    scale = torch.rand(3, 64, 2, generator=generator).bfloat16()
    u = (q + 8).to(torch.uint8)
    packed = (u[..., ::2] | u[..., 1::2] << 4).view(torch.int8)
    down = packed[:, :, :16].contiguous()
    tensors = {
        "layers.0.mlp.experts.w1": packed, "layers.0.mlp.experts.w1_scale": scale,
        "layers.0.mlp.experts.w2": down, "layers.0.mlp.experts.w2_scale": scale[..., :1].contiguous(),
    }  # fmt: skip
    experts = load_checkpoint(write(tmp_path, tensors, None)).layer(0).experts(2, 0)
    w = q.double() * scale.double().repeat_interleave(32, 2)
    assert torch.equal(experts.w13.dequantize(torch.float64), w[[2, 0]])
    assert (experts.w13.layout, experts.w13.zero, experts.w2.shape) == ("nibble_pairs", None, (2, 64, 32))
    assert torch.equal(load_checkpoint(tmp_path).weight("layers.0.mlp.experts.w1"), w.bfloat16())


@pytest.mark.parametrize("model", ["gpt_oss", "llama4_text"])
def test_transposed_experts_in_3d(tmp_path, model):
    """gpt-oss has gate and up in turn, Llama 4 one after the other; both store [E, K, N]."""
    gate_up, down = torch.randn(2, 64, 96).bfloat16(), torch.randn(2, 48, 64).bfloat16()
    tensors = {
        "model.layers.1.mlp.experts.gate_up_proj": gate_up, "model.layers.1.mlp.experts.down_proj": down,
        "model.layers.1.mlp.experts.gate_up_proj_bias": torch.randn(2, 96).bfloat16(),
    }  # fmt: skip
    layer = load_checkpoint(write(tmp_path, tensors, None, model_type=model, dtype="bfloat16")).layer(1)
    columns = {"gpt_oss": (slice(0, None, 2), slice(1, None, 2)), "llama4_text": (slice(0, 48), slice(48, None))}[model]
    assert torch.equal(layer.rows(1, "gate").weight(), gate_up[1].mT[columns[0]])
    assert torch.equal(layer.rows(1, "up").weight(), gate_up[1].mT[columns[1]])
    assert torch.equal(layer.rows(0, "down").weight(), down[0].mT)
    assert (layer.hidden, layer.intermediate, layer.num_experts) == (64, 48, 2)
    for name, tensor in tensors.items():  # whole, as the file has them
        assert torch.equal(load_checkpoint(tmp_path).weight(name), tensor)


def test_experts_in_3d_packed_slice_by_slice(tmp_path):
    """compressed-tensors packs each expert's matrix on its own; of gpt-oss it is [K, N], with groups along N."""
    gate_up = [quantized(64, 96, 32, seed) for seed in (0, 1)]
    down = [quantized(48, 64, 32, seed) for seed in (2, 3)]
    tensors = {}
    for name, made in (("gate_up_proj", gate_up), ("down_proj", down)):
        parts = [compressed(m) for m in made]
        for part in ("weight_packed", "weight_scale", "weight_zero_point"):
            tensors[f"model.layers.0.mlp.experts.{name}.{part}"] = torch.stack([p[part] for p in parts])
        tensors[f"model.layers.0.mlp.experts.{name}.weight_shape"] = parts[0]["weight_shape"]
    checkpoint = load_checkpoint(write(tmp_path, tensors, COMPRESSED, model_type="gpt_oss"))
    w = torch.stack([made.weight().half() for made in gate_up])
    assert torch.equal(checkpoint.weight("model.layers.0.mlp.experts.gate_up_proj"), w)
    layer = checkpoint.layer(0)
    assert torch.equal(layer.rows(1, "up").dequantize(torch.float64), gate_up[1].weight().mT[1::2])
    with pytest.raises(ValueError, match="with groups along N"):
        layer.experts()
    other = load_checkpoint(write(tmp_path / "other", tensors, COMPRESSED, model_type="qwen3_moe", hidden_size=96))
    assert torch.equal(other.layer(0).rows(1, "up").dequantize(torch.float64), gate_up[1].weight()[32:])


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_other_widths_of_codes(tmp_path, bits):
    from moeracle.ref.weights.dense_bits import pack_bits

    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (8, 64), generator=generator, dtype=torch.uint8)
    scale = torch.rand(8, 2, generator=generator).half()
    tensors = {
        "a.weight_packed": pack_bits(codes, bits),
        "a.weight_scale": scale,
        "a.weight_shape": torch.tensor([8, 64]),
    }
    config = {
        **COMPRESSED,
        "config_groups": {
            "g": {
                "targets": ["Linear"],
                "weights": {"num_bits": bits, "group_size": 32, "strategy": "group", "symmetric": True},
            }
        },
    }
    linear = load_checkpoint(write(tmp_path, tensors, config)).linear("a")
    w = (codes.double() - (1 << (bits - 1))) * scale.double().repeat_interleave(32, 1)
    assert torch.equal(linear.dequantize(torch.float64), w)
    assert linear.sizes.bits == bits
