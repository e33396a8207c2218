"""`moeracle checkpoint diff`: the same weights in other clothes, and every known wrong loader planted in a file."""

from __future__ import annotations

import json

import pytest
import torch

from moeracle.checkpoints import load_checkpoint
from moeracle.checkpoints.diff import diff
from moeracle.cli import main
from support.checkpoints import AWQ, COMPRESSED, GPTQ_V1, GPTQ_V2, SHARED, awq, compressed, gptq, layer_of, write

INTERLEAVE = [0, 2, 4, 6, 1, 3, 5, 7]
ORDER = torch.randperm(128, generator=torch.Generator().manual_seed(4)) // 32


def eights(t, order=INTERLEAVE):
    return t.unflatten(-1, (-1, 8))[..., order].flatten(-2)


def stretched(made, **changes):
    """Return a Made with some of its fields changed."""
    return made._replace(**{name: change(getattr(made, name)) for name, change in changes.items()})


def next_group(scale):
    return scale[:, [*range(1, scale.shape[1]), 0]]


def with_last_wrong(scale):
    return torch.cat([scale[:, :-1], scale[:, -2:-1]], 1)


def carried(zero):
    """Add 1 to whole words of eight nibbles that hold z - 1, as a loader that carries does."""
    stored = ((zero.long() - 1) & 15).mT.unflatten(-1, (-1, 8))
    total = (sum(stored[..., i] << 4 * i for i in range(8)) + 0x11111111) & 0xFFFFFFFF
    return torch.stack([(total >> 4 * i) & 15 for i in range(8)], -1).flatten(-2).mT.to(torch.uint8)


# What a wrong loader makes of one matrix, and what it must be called.
PLANTED = {
    "F06 low": (lambda m: stretched(m, zero=lambda z: z - 1), "F06"),
    "F06 high": (lambda m: stretched(m, zero=lambda z: z + 1), "F06"),
    "F07": (lambda m: stretched(m, zero=carried), "F07"),
    "F08 along K": (lambda m: stretched(m, codes=eights), "F08"),
    "F08 along N": (lambda m: stretched(m, codes=lambda c: eights(c.mT).mT), "F08"),
    "F08b": (lambda m: stretched(m, codes=lambda c: eights(c, [1, 0, 3, 2, 5, 4, 7, 6])), "F08b"),
    "F09": (lambda m: stretched(m, zero=lambda z: eights(z.mT).mT), "F09"),
    "F29": (lambda m: stretched(m, scale=next_group), "F29"),
    "F30": (lambda m: stretched(m, scale=with_last_wrong), "F30"),
    "F54": (lambda m: stretched(m, scale=lambda s: s.mT.contiguous().view(s.shape)), "F54"),
    "F56": (lambda m: stretched(m, codes=lambda c: c ^ 8), "F56"),
    "F80": (lambda m: stretched(m, zero=lambda z: z[:, :1].expand_as(z).contiguous()), "F80"),
    "scale cast": (lambda m: stretched(m, scale=lambda s: s.bfloat16().half()), "scales rounded to bfloat16 first"),
    "zero points left out": (lambda m: stretched(m, zero=lambda z: torch.full_like(z, 8)), "zero points left out"),
}  # fmt: skip


def made_layer(**options):
    return layer_of(gptq, hidden=128, wide=64, experts=2, **options)["made"]


def written(folder, layer, *, pack=compressed, config=COMPRESSED):
    return write(folder, {f"{m}.{part}": t for m, made in layer.items() for part, t in pack(made).items()}, config)


def dense(folder, layer, dtype=torch.float16):
    """Write what a loader holds in memory: weights in the model's dtype."""
    return write(folder, {f"{module}.weight": made.weight().to(dtype) for module, made in layer.items()}, None)


def names(found):
    return [id or words for id, words, count, of in found.suspects() if count == of]


@pytest.fixture
def right(tmp_path):
    """Zero points of 0 and 15 among them, as real asymmetric files have."""
    layer = made_layer()
    for made in layer.values():
        made.zero[0, :2] = 15
        made.zero[1:9:3, 0] = 0
    return layer


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("kind", ["packed", "in memory"])
def test_a_wrong_loader_is_named(tmp_path, right, name, kind):
    change, expected = PLANTED[name]
    if kind == "packed" and expected == "F06":  # a file has no code for -1 and 16
        right = {module: made._replace(zero=made.zero.clamp(1, 14)) for module, made in right.items()}
    a = written(tmp_path / "a", right)
    wrong = {module: change(made) for module, made in right.items()}
    if kind == "packed":
        b = written(tmp_path / "b", wrong)
    else:
        # uint8 arithmetic wraps: 0 - 1 is 255, where a loader holds -1
        signed = {m: made._replace(zero=made.zero.to(torch.int8).long()) for m, made in wrong.items()}
        b = dense(tmp_path / "b", signed)
    found = diff(load_checkpoint(a), load_checkpoint(b))
    assert len(found.differences) == found.compared == 6
    assert any(expected == said or expected in said for said in names(found)), found.suspects()
    assert main(["checkpoint", "diff", str(a), str(b)]) == 1


SWAPS = {"gate_proj": "up_proj", "up_proj": "gate_proj"}


def swapped(layer):
    """Give each gate the up projection's weights, and the reverse."""
    return {m: layer[f"{m.rpartition('.')[0]}.{SWAPS.get(m.rpartition('.')[2], m.rpartition('.')[2])}"] for m in layer}


def test_gate_and_up_swapped(tmp_path):
    layer = made_layer()
    a, b = written(tmp_path / "a", layer), written(tmp_path / "b", swapped(layer))
    found = diff(load_checkpoint(a), load_checkpoint(b))
    assert len(found.differences) == 4
    assert names(found) == ["F31"]


def test_gate_and_up_in_turn(tmp_path):
    layer = made_layer()
    weights = {}
    for e in range(2):
        gate, up, down = (
            layer[f"model.layers.0.mlp.experts.{e}.{n}_proj"].weight().half() for n in ("gate", "up", "down")
        )
        both = torch.stack((gate, up), 1).flatten(0, 1)
        for name, w in (("gate", both[:64]), ("up", both[64:]), ("down", down)):
            weights[f"model.layers.0.mlp.experts.{e}.{name}_proj.weight"] = w
    found = diff(load_checkpoint(written(tmp_path / "a", layer)), load_checkpoint(write(tmp_path / "b", weights, None)))
    assert names(found) == ["F74"]


def test_another_experts_weights(tmp_path):
    layer = made_layer()
    other = {
        m: layer[
            m.replace("experts.0", "experts.x").replace("experts.1", "experts.0").replace("experts.x", "experts.1")
        ]
        for m in layer
    }
    found = diff(load_checkpoint(written(tmp_path / "a", layer)), load_checkpoint(dense(tmp_path / "b", other)))
    assert names(found) == ["another expert's weights"]


def test_act_order_left_out(tmp_path):
    layer = made_layer()

    def shuffled(made):
        return gptq(made, order=ORDER[: made.codes.shape[1]] % made.scale.shape[1])

    a = written(tmp_path / "a", layer, pack=shuffled, config={**GPTQ_V1, "desc_act": True})
    found = diff(load_checkpoint(a), load_checkpoint(dense(tmp_path / "b", layer)))
    assert any("act-order left out" in said for said in names(found)), found.suspects()


def test_transposed_and_missing(tmp_path, capsys):
    layer = made_layer()
    weights = {f"{m}.weight": made.weight().half().mT for m, made in layer.items() if "experts.1.up" not in m}
    a, b = written(tmp_path / "a", layer), write(tmp_path / "b", weights, None)
    assert main(["checkpoint", "diff", str(a), str(b)]) == 1
    out = capsys.readouterr().out
    assert "looks like: transposed; gives 5 of 5" in out
    assert "1 weights are missing in B, first layer 0 expert 1 up" in out
    assert "layer 0 expert 0 gate: is [64, 128] in A, [128, 64] in B" in out


def test_the_place_and_the_size_of_one_wrong_scale(tmp_path):
    layer = made_layer()
    module = "model.layers.0.mlp.experts.1.down_proj"
    scale = layer[module].scale.clone()
    scale[5, 1] *= 2
    b = written(tmp_path / "b", {**layer, module: layer[module]._replace(scale=scale)})
    found = diff(load_checkpoint(written(tmp_path / "a", layer)), load_checkpoint(b))
    (only,) = found.differences
    assert (only.unit.name, only.row, only.group) == ("layer 0 expert 1 down", 5, 1)
    assert only.column >= 32
    assert 0 < only.elements <= 32
    assert 1 <= only.scales <= 15
    assert found.suspects() == []


@pytest.mark.parametrize(("pack", "config"), [(gptq, GPTQ_V1), (lambda m: gptq(m, v1=False), GPTQ_V2), (awq, AWQ)])
def test_the_same_weights_in_other_clothes(tmp_path, capsys, pack, config):
    layer = made_layer()
    a, b = written(tmp_path / "a", layer), written(tmp_path / "b", layer, pack=pack, config=config)
    json_file, page = tmp_path / "d.json", tmp_path / "d.html"
    assert main(["checkpoint", "diff", str(a), str(b), "--json", str(json_file), "--html", str(page)]) == 0
    assert "the same weights in other clothes: all 6 are equal" in capsys.readouterr().out
    assert json.loads(json_file.read_text())["differences"] == []
    assert "nothing contradicts" in page.read_text()


@pytest.mark.parametrize(
    ("dtype", "how"), [(torch.float16, "rounded once to float16"), (torch.bfloat16, "rounded once to bfloat16")]
)
def test_a_dequantized_copy_is_equal_after_one_rounding(tmp_path, dtype, how):
    layer = made_layer()
    found = diff(load_checkpoint(written(tmp_path / "a", layer)), load_checkpoint(dense(tmp_path / "b", layer, dtype)))
    assert found.differences == []
    assert sum(found.rounded.values()) <= 6
    assert set(found.rounded) <= {how}


def test_nothing_in_common(tmp_path, capsys):
    a = written(tmp_path / "a", made_layer())
    b = write(tmp_path / "b", {"x.weight": torch.ones(2, 2)}, None)
    assert main(["checkpoint", "diff", str(a), str(b)]) == 3
    assert "nothing could be compared" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not on this machine")
def test_two_real_files_of_other_quantizers_differ_and_are_not_blamed():
    found = diff(load_checkpoint(SHARED / "gptq_v2_asym"), load_checkpoint(SHARED / "compressed_tensors_sym"), (0,))
    assert len(found.differences) == 16
    assert found.suspects() == []


def test_norms_biases_and_convolutions_are_compared_too(tmp_path):
    """A convolution of a linear attention has three dimensions, and is no matrix of experts."""
    layer = "model.layers.0"
    tensors = {
        "model.norm.weight": torch.ones(64), f"{layer}.linear_attn.conv1d.weight": torch.randn(8, 1, 4),
        f"{layer}.self_attn.q_proj.weight": torch.randn(8, 64), f"{layer}.self_attn.q_proj.bias": torch.randn(8),
    }  # fmt: skip
    a = write(tmp_path / "a", tensors, None)
    assert diff(load_checkpoint(a), load_checkpoint(a)).differences == []
    for name in tensors:
        found = diff(
            load_checkpoint(a), load_checkpoint(write(tmp_path / "b", {**tensors, name: tensors[name] + 1}, None))
        )
        assert found.compared == 4
        assert [d.unit.name in name for d in found.differences] == [True], name
    found = diff(
        load_checkpoint(a), load_checkpoint(write(tmp_path / "c", {"model.norm.weight": torch.ones(64)}, None))
    )
    assert len(found.only_a) == 3
