"""Files that are missing, cut short, pickled or lie: each is refused in one line, and nothing large is allocated."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from moeracle.checkpoints import load_checkpoint
from support.checkpoints import (
    AWQ,
    BARE_AUTO_ROUND,
    COMPRESSED,
    GPTQ_V1,
    compressed,
    gptq,
    layer_of,
    quantized,
    raw_file,
    sparse_file,
    write,
)

A = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def refused(path, message, **options):
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(path, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


HEADERS = {
    "cut short": (A, b"\0" * 4, "describes 8 bytes of tensors, the file holds 4: cut short"),
    "too long": (A, b"\0" * 12, "bytes follow that no tensor owns"),
    "wrong size": ({"a": {**A["a"], "shape": [3]}}, b"\0" * 8, "invalid shape, data type, or offset"),
    "overflow": ({"a": {**A["a"], "shape": [1 << 62, 4]}}, b"\0" * 8, "overflow"),
    "overlap": ({**A, "b": {**A["a"], "data_offsets": [4, 12]}}, b"\0" * 12, "invalid offset for tensor `b`"),
    "negative": ({"a": {**A["a"], "shape": [-2]}}, b"\0" * 8, "invalid value: integer `-2`"),
    "dtype": ({"a": {**A["a"], "dtype": "F33"}}, b"\0" * 8, "unknown variant `F33`"),
    "array": (b"[" * 100_000, b"", "invalid type: sequence"),
    "nested": (b'{"a":' * 100_000, b"", "recursion limit"),
    "no JSON": (b"{", b"", "invalid JSON"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies(tmp_path, name):
    header, data, message = HEADERS[name]
    refused(raw_file(tmp_path / "model.safetensors", header, data), message)


@pytest.mark.parametrize("length", [1 << 63, 10**11, 50])
def test_a_header_longer_than_the_file(tmp_path, length):
    refused(raw_file(tmp_path / "model.safetensors", {}, length=length), "cut short, or no safetensors file")


@pytest.mark.parametrize("content", [b"", b"abc"])
def test_a_file_without_a_header(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(tmp_path, f"holds {len(content)} bytes, too few")


def test_pickled_files_are_refused_unread(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    refused(tmp_path, "is pickled: opening it would run whatever code")
    refused(tmp_path / "pytorch_model.bin", "is pickled")
    with zipfile.ZipFile(tmp_path / "model.safetensors", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Trap()))
    refused(tmp_path, "is pickled")
    assert not (tmp_path / "ran").exists()


def shards(folder, weight_map=None):
    """Write two shards of one tensor each, and an index."""
    for i in (1, 2):
        save_file({f"t{i}.weight": torch.ones(2, 2)}, folder / f"model-0000{i}-of-00002.safetensors")
    names = {f"t{i}.weight": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    index = {"weight_map": names if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_with_and_without_an_index(tmp_path):
    shards(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert sorted(load_checkpoint(path).linears) == ["t1", "t2"]
    refused(tmp_path / "model-00001-of-00002.safetensors", "is one shard of 00002")
    (tmp_path / "model.safetensors.index.json").unlink()
    assert sorted(load_checkpoint(tmp_path).linears) == ["t1", "t2"]
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    save_file({"x": torch.ones(1)}, tmp_path / "model-00003-of-00003.safetensors")
    refused(tmp_path, "and no index; name the file")


def test_a_missing_shard(tmp_path):
    (shards(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    refused(tmp_path, "model-00002-of-00002.safetensors: shard is missing; 1 tensors should be in it")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../x.safetensors", "must be a plain name in the same folder"),
        ("/etc/passwd", "must be a plain name in the same folder"),
        ("a/../b.safetensors", "must be a plain name"),
        ("..", "must be a plain name"),
        ("..\\x.safetensors", "must be a plain name"),
        ("pytorch_model.bin", "is pickled"),
        ("notes.txt", "must be a .safetensors file"),
    ],
)
def test_an_index_that_points_elsewhere(tmp_path, name, message):
    refused(shards(tmp_path, {"t1.weight": name}), message)


def test_one_tensor_in_two_shards(tmp_path):
    shards(tmp_path)
    save_file({"t1.weight": torch.ones(2, 2)}, tmp_path / "model-00002-of-00002.safetensors")
    refused(tmp_path, "tensor t1.weight is in")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is not JSON"),
        ("[]", "has wrong fields"),
        ('{"quantization_config": {"quant_method": "gptqq"}}', "quant_method: got 'gptqq'.*did you mean 'gptq'"),
        ('{"quantization_config": {"quant_method": "awq", "version": "gemv"}}', "AWQ version: got 'gemv'"),
        ('{"quantization_config": {"quant_method": "gptq", "checkpoint_format": "gptq_v3"}}', "did you mean 'gptq_v2'"),
        ('{"quantization_config": {"quant_method": "gptq", "bits": "four"}}', "bits is four, must be a whole number"),
        (
            '{"quantization_config": {"quant_method": "auto-round", "packing_format": "auto_round:gptq"}}',
            "packing_format",
        ),
    ],
)
def test_a_config_that_is_wrong(tmp_path, text, message):
    save_file({"t.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({**COMPRESSED, "ignore": 5}, "ignore"),
        ({**AWQ, "modules_to_not_convert": [1]}, "modules_to_not_convert"),
        ({**BARE_AUTO_ROUND, "block_name_to_quantize": 1.5}, "block_name_to_quantize"),
    ],
)
def test_a_list_of_the_config_that_is_none(tmp_path, config, key):
    parts = compressed(quantized(8, 32, 32, 0))
    linear = load_checkpoint(write(tmp_path, {f"a.{p}": t for p, t in parts.items()}, config)).linear("a")
    with pytest.raises(ValueError, match=f"{key} is .*, must be a list of names"):
        linear.stored()


def test_a_pattern_that_would_take_for_ever(tmp_path):
    config = {**GPTQ_V1, "dynamic": {"-:(a+)+$": {}}}
    parts = gptq(quantized(8, 32, 32, 0))
    folder = write(tmp_path, {f"{'a' * 60}!.{p}": t for p, t in parts.items()}, config)
    linear = load_checkpoint(folder).linear("a" * 60 + "!")
    with pytest.raises(ValueError, match="repeats a repeat"):
        linear.stored()


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "g_idx"])
def test_a_tensor_of_the_wrong_shape(tmp_path, part):
    parts = gptq(quantized(16, 64, 32, 0))
    parts[part] = torch.cat([parts[part], parts[part]])
    linear = load_checkpoint(write(tmp_path, {f"a.{p}": t for p, t in parts.items()}, GPTQ_V1)).linear("a")
    with pytest.raises(ValueError, match=r"shape|groups"):
        linear.stored()


def test_a_g_idx_out_of_range(tmp_path):
    parts = gptq(quantized(16, 64, 32, 0), order=torch.full((64,), 7))
    with pytest.raises(ValueError, match=r"g_idx: holds 7..7, must be 0..1"):
        load_checkpoint(write(tmp_path, {f"a.{p}": t for p, t in parts.items()}, GPTQ_V1)).linear("a").stored()


def test_a_weight_shape_that_lies(tmp_path):
    parts = {**compressed(quantized(8, 64, 32, 0)), "weight_shape": torch.tensor([8, 1 << 40])}
    with pytest.raises(ValueError, match=r"weight_shape: says \[8, 1099511627776\]"):
        load_checkpoint(write(tmp_path, {f"a.{p}": t for p, t in parts.items()}, COMPRESSED)).linear("a").stored()


def test_layers_and_experts_that_are_not_there(tmp_path):
    checkpoint = load_checkpoint(write(tmp_path, layer_of(gptq)["tensors"], GPTQ_V1))
    for call, message in (
        (lambda: checkpoint.layer(1), r"layer: got 1, must be one of 0..0"),
        (lambda: checkpoint.layer(0).experts(2), r"experts: got 2, layer 0 has 0..1"),
        (lambda: checkpoint.layer(0).experts(-1), r"experts: got -1"),
        (lambda: checkpoint.layer(0).experts(0, layout="gtpq"), "did you mean 'gptq'"),
        (lambda: checkpoint.linear("model.layers.0.mlp.experts.0.gate"), "did you mean"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_mixed_group_sizes_in_one_layer(tmp_path):
    tensors = layer_of(compressed)["tensors"]
    other = compressed(quantized(32, 64, 16, 9))
    tensors |= {
        f"model.layers.0.mlp.experts.1.{name}.{p}": t for name in ("gate_proj", "up_proj") for p, t in other.items()
    }
    with pytest.raises(
        ValueError, match=r"layer 0, expert 1, gate and up: is .* with groups of 16, must be .* groups of 32"
    ):
        load_checkpoint(write(tmp_path, tensors, COMPRESSED)).layer(0).experts()


LARGEST_MB = 600  # beside what torch alone takes: 300 on a CPU, far more with the libraries of a GPU
OPEN = """
import resource, sys
import torch
torch_alone = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from moeracle import load_checkpoint
layer = load_checkpoint(sys.argv[1]).layer(0)
experts = layer.experts(*range(8))
print(layer.num_experts, list(experts.w13.shape), list(experts.w2.shape))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - torch_alone) // 1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_twenty_gigabytes_open_in_less_than_one(tmp_path):
    """48 layers of 64 experts in four sparse shards."""
    H, I, total, weight_map = 4096, 1152, 0, {}
    for shard in range(4):
        name, shapes = f"model-0000{shard + 1}-of-00004.safetensors", {}
        for n in range(12 * shard, 12 * shard + 12):
            for e in range(64):
                for proj, N, K in (("gate_proj", I, H), ("up_proj", I, H), ("down_proj", H, I)):
                    module = f"model.layers.{n}.mlp.experts.{e}.{proj}"
                    shapes[f"{module}.qweight"] = ("I32", (K // 8, N))
                    shapes[f"{module}.qzeros"] = ("I32", (K // 128, N // 8))
                    shapes[f"{module}.scales"] = ("F16", (K // 128, N))
        total += sparse_file(tmp_path / name, shapes)
        weight_map |= dict.fromkeys(shapes, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {**GPTQ_V1, "group_size": 128}}))
    used = sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir())
    if used > 1 << 30:
        pytest.skip("this file system has no sparse files")
    assert total > 20e9
    done = subprocess.run([sys.executable, "-c", OPEN, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sizes, peak = done.stdout.splitlines()
    assert sizes == "64 [8, 2304, 4096] [8, 4096, 1152]"
    assert int(peak) < LARGEST_MB
