"""A layer's experts as Int4Weights: exactly the file's codes, scales and zero points, in any layout."""

from __future__ import annotations

import pytest
import torch

import moeracle
from moeracle.ref.weights.layouts import LAYOUTS
from support.checkpoints import AWQ, COMPRESSED, GPTQ_V1, GPTQ_V2, SHARED, Made, awq, compressed, gptq, layer_of, write


@pytest.mark.parametrize("layout", [None, *LAYOUTS])
@pytest.mark.parametrize(("pack", "config"), [(gptq, GPTQ_V1), (awq, AWQ), (compressed, COMPRESSED)])
def test_experts_in_every_layout(tmp_path, pack, config, layout):
    layer = layer_of(pack, experts=3)
    got = moeracle.load_checkpoint(write(tmp_path, layer["tensors"], config)).layer(0).experts(2, 0, layout=layout)
    made = layer["made"]
    for i, e in enumerate((2, 0)):
        gate, up, down = (
            made[f"model.layers.0.mlp.experts.{e}.{name}_proj"].weight() for name in ("gate", "up", "down")
        )
        assert torch.equal(got.w13.expert(i).dequantize(torch.float64), torch.cat([gate, up]))
        assert torch.equal(got.w2.expert(i).dequantize(torch.float64), down)
    assert got.ids == (2, 0)
    assert layout in (None, got.w13.layout)


def test_symmetric_zero_points_are_left_out(tmp_path):
    layer = layer_of(gptq, asym=False)
    got = moeracle.load_checkpoint(write(tmp_path, layer["tensors"], GPTQ_V1)).layer(0).experts()
    assert got.w13.zero is None
    assert got.w2.zero is None


def test_act_order_sorts_the_columns_and_says_which(tmp_path):
    orders = {
        64: torch.randperm(64, generator=torch.Generator().manual_seed(1)) // 32,
        32: torch.zeros(32, dtype=torch.int64),
    }
    layer = layer_of(lambda made: gptq(made, order=orders[made.codes.shape[1]]))
    config = {**GPTQ_V1, "desc_act": True}
    held = moeracle.load_checkpoint(write(tmp_path, layer["tensors"], config)).layer(0)
    got, kept = held.experts(1, sort=True), held.experts(1)
    gate = layer["made"]["model.layers.0.mlp.experts.1.gate_proj"].weight(orders[64])
    assert got.w13.group_of is None
    assert kept.columns13 is None
    assert kept.w13.group_of is not None
    assert torch.equal(kept.w13.group_of[0].long(), orders[64])
    assert torch.equal(kept.w13.dequantize(torch.float64)[0, :32], gate)
    assert kept.w2.group_of is None
    assert got.columns13 is not None
    assert torch.equal(got.w13.dequantize(torch.float64)[0, :32], gate[:, got.columns13[0]])
    assert got.columns2 is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_packed": (8, 4)}, "2-bit codes, must be 4 or 8"),
        ({}, "have different g_idx"),
    ],
)
def test_what_an_int4_weight_cannot_hold(tmp_path, change, message):
    if change:
        layer = layer_of(compressed)
        tensors = layer["tensors"]
        for name in list(tensors):
            if name.endswith("weight_packed"):
                tensors[name] = tensors[name][:, ::2].contiguous()
            if name.endswith("weight_zero_point"):
                tensors[name] = tensors[name][::2].contiguous()
        groups = {"g": {"targets": ["Linear"], "weights": {"num_bits": 2, "group_size": 32, "strategy": "group"}}}
        config = {**COMPRESSED, "config_groups": groups}
    else:
        layer, config = layer_of(gptq), GPTQ_V1
        tensors = layer["tensors"]
        name = "model.layers.0.mlp.experts.0.gate_proj.g_idx"
        tensors[name] = tensors[name].flip(0)
    with pytest.raises(ValueError, match=message):
        moeracle.load_checkpoint(write(tmp_path, tensors, config)).layer(0).experts()


def test_a_zero_point_of_16_is_refused_with_the_way_out(tmp_path):
    layer = layer_of(gptq)
    name = "model.layers.0.mlp.experts.0.down_proj.qzeros"
    layer["tensors"][name] = torch.full_like(layer["tensors"][name], -1)
    folder = write(tmp_path, layer["tensors"], GPTQ_V1)
    with pytest.raises(ValueError, match="64 zero points are 16, read from a stored 15"):
        moeracle.load_checkpoint(folder, zeros="plain").layer(0).experts()
    assert moeracle.load_checkpoint(folder, zeros="modulo").layer(0).experts().w2.zeros()[0].max() == 0


def test_what_is_not_quantized_is_said_so(tmp_path):
    made = layer_of(gptq)["made"]
    folder = write(tmp_path, {f"{module}.weight": q.weight().half() for module, q in made.items()}, None)
    with pytest.raises(ValueError, match="is fp16, not quantized; quantize it first"):
        moeracle.load_checkpoint(folder).layer(0).experts()


@pytest.mark.parametrize("name", ["mtp", "model.language_model"])
def test_a_second_stack_does_not_hide_the_first(tmp_path, name):
    tensors = layer_of(gptq)["tensors"]
    one = {k.replace("model.layers.0", f"{name}.layers.0"): v for k, v in tensors.items()}
    two = {k.replace("layers.0", "layers.1"): v for k, v in tensors.items()}
    checkpoint = moeracle.load_checkpoint(write(tmp_path, {**tensors, **two, **one}, GPTQ_V2))
    assert checkpoint.layers == [0, 1]
    assert checkpoint.layer(0).linears[0].module.startswith("model.layers")


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("model.layers.0.block_sparse_moe.experts.{e}.{p}", ("w1", "w3", "w2")),
        ("model.language_model.layers.0.mlp.experts.{e}.{p}", ("gate_proj", "up_proj", "down_proj")),
    ],
)
def test_names_of_other_models(tmp_path, template, names):
    layer = layer_of(gptq)
    renamed = {}
    for key, tensor in layer["tensors"].items():
        e, projection, part = key.split(".")[5:]
        name = names[("gate_proj", "up_proj", "down_proj").index(projection)]
        renamed[f"{template.format(e=e, p=name)}.{part}"] = tensor
    got = moeracle.load_checkpoint(write(tmp_path, renamed, GPTQ_V1)).layer(0).experts(1)
    gate = layer["made"]["model.layers.0.mlp.experts.1.gate_proj"].weight()
    assert torch.equal(got.w13.dequantize(torch.float64)[0, :32], gate)


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not on this machine")
def test_experts_of_real_files_are_their_projections():
    folders = [f for f in sorted(SHARED.iterdir()) if f.name != "bf16_unquantized"]
    assert len(folders) >= 8
    for folder in folders:
        layer = moeracle.load_checkpoint(folder).layer(1)
        got = layer.experts(2)
        halves = torch.cat([layer.rows(2, name).dequantize() for name in ("gate", "up")])
        assert torch.equal(got.w13.dequantize()[0], halves), folder.name


def test_a_short_last_group_is_read(tmp_path):
    """K = 64 in groups of 24: the last 16 columns have a scale of their own."""

    def short(made):
        scale, zero = (t[:, :1].repeat(1, -(-made.codes.shape[1] // 24)) for t in (made.scale, made.zero))
        scale[:, -1] *= 2
        return compressed(Made(made.codes, scale, zero, 24))

    layer = layer_of(short)
    weights = {"num_bits": 4, "group_size": 24, "strategy": "group", "symmetric": False}
    config = {**COMPRESSED, "config_groups": {"g": {"targets": ["Linear"], "weights": weights}}}
    got = moeracle.load_checkpoint(write(tmp_path, layer["tensors"], config)).layer(0).experts(0)
    made = layer["made"]["model.layers.0.mlp.experts.0.gate_proj"]
    scale = torch.cat([made.scale[:, :1].expand(-1, 48), 2 * made.scale[:, :1].expand(-1, 16)], 1).double()
    expected = (made.codes.double() - made.zero[:, :1].double()) * scale
    assert got.w13.G == got.w2.G == 24
    assert torch.equal(got.w13.dequantize(torch.float64)[0, : len(expected)], expected)
