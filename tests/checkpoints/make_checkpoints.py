"""Make small checkpoints with the formats' own packages, and what these packages read out of them.

    python tests/checkpoints/make_checkpoints.py FOLDER

needs compressed-tensors 0.20, torchao 0.18 and transformers 5.24 (`make clients`). Each folder holds config.json,
model.safetensors and expected.json: dtype, shape and sha256 of every weight of an expert, as the package gives it.
Those in fixtures/checkpoints were made by it, with torch 2.13.0 and safetensors 0.8.0. It is run, not imported.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

# Tensors, config, what the package reads, and the file's metadata.
Made = tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, torch.Tensor], "dict[str, str] | None"]
SIZES = dict(
    hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=16, head_dim=32,
    max_position_embeddings=32, num_experts_per_tok=2,
)  # fmt: skip


def base(kind: str, **sizes: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors that transformers writes for a tiny random model, and its config."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **sizes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors"), json.loads((Path(folder) / "config.json").read_text())


def tree(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Return a tree of nn.Linear with the names of a state dict's expert weights."""
    root = torch.nn.Module()
    for name, w in weights.items():
        if ".experts." not in name or w.ndim != 2:
            continue
        *path, leaf = name.removesuffix(".weight").split(".")
        node = root
        for part in path:
            if not hasattr(node, part):
                node.add_module(part, torch.nn.Module())
            node = getattr(node, part)
        linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
        linear.weight = torch.nn.Parameter(w.clone(), requires_grad=False)
        node.add_module(leaf, linear)
    return root


def others(weights: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of the matrices that are left as they are."""
    return [name.removesuffix(".weight") for name, w in weights.items() if w.ndim == 2 and ".experts." not in name]


def linears(root: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the linears of a tree by name."""
    return {name: module for name, module in root.named_modules() if isinstance(module, torch.nn.Linear)}


def compressed(kind: str, *, bits: int, symmetric: bool, group: int | None, **sizes: Any) -> Made:
    """Quantize experts with compressed-tensors, scales by its own calculate_qparams from minima and maxima."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    weights, config = base(kind, **sizes)
    args = QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy="group" if group else "channel", group_size=group
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
    quantization = QuantizationConfig(
        config_groups={"group_0": scheme}, format="pack-quantized", ignore=others(weights)
    )
    root = tree(weights)
    apply_quantization_config(root, quantization)
    for module in linears(root).values():
        w = module.weight.float().unflatten(1, (-1, group or module.weight.shape[1]))
        scale, zero = calculate_qparams(w.amin(-1), w.amax(-1), args)
        module.weight_scale.data.copy_(scale.to(module.weight_scale.dtype))
        if not symmetric:
            module.weight_zero_point.data.copy_(zero.to(module.weight_zero_point.dtype))
        module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor(quantization_config=quantization)
    names = list(linears(root))
    compressor.compress_model(root)
    tensors = {name: t.clone() for name, t in root.state_dict().items()}
    compressor.decompress_model(root)
    expected = {f"{name}.weight": root.get_submodule(name).weight.data for name in names}
    written = json.loads(json.dumps(quantization.model_dump(mode="json"), default=str))
    rest = {name: w for name, w in weights.items() if name not in expected}
    return {**rest, **tensors}, {**config, "quantization_config": written}, expected, None


def torchao(kind: str, *, int8: bool = False, **sizes: Any) -> Made:
    """Quantize experts with torchao's IntxWeightOnlyConfig, asymmetric, or with its Int8WeightOnlyConfig."""
    from torchao.core.config import config_to_dict
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quant_primitives import MappingType

    weights, config = base(kind, **sizes)
    four = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32), mapping_type=MappingType.ASYMMETRIC)
    how = Int8WeightOnlyConfig() if int8 else four
    root = tree(weights)
    quantize_(root, how)
    expected = {f"{name}.weight": module.weight.dequantize() for name, module in linears(root).items()}
    tensors, metadata = flatten_tensor_state_dict(root.state_dict())
    rest = {name: w for name, w in weights.items() if name not in expected}
    said = {
        "quant_method": "torchao",
        "quant_type": {"default": config_to_dict(how)},
        "modules_to_not_convert": others(weights),
    }
    return {**rest, **tensors}, {**config, "quantization_config": said}, expected, metadata


def dense(kind: str, **sizes: Any) -> Made:
    """Return a model whose experts are in 3D, and the rows that its own forward takes for gate and up."""
    weights, config = base(kind, **sizes)
    expected = {}
    for name, w in weights.items():
        if name.endswith("experts.gate_up_proj"):
            for e in range(len(w)):
                stem = f"{name.removesuffix('gate_up_proj')}{e}"
                expected[f"{stem}.gate_proj.weight"], expected[f"{stem}.up_proj.weight"] = w[e].T[0::2], w[e].T[1::2]
        if name.endswith("experts.down_proj"):
            expected |= {f"{name.removesuffix('down_proj')}{e}.down_proj.weight": w[e].T for e in range(len(w))}
    return weights, config, expected, None


MAKERS: dict[str, Callable[[], Made]] = {
    "mixtral_compressed_8bit_asym": lambda: compressed(
        "Mixtral", bits=8, symmetric=False, group=32, intermediate_size=32, num_local_experts=2
    ),
    "glm4_compressed_4bit_channel": lambda: compressed(
        "Glm4Moe", bits=4, symmetric=True, group=None, moe_intermediate_size=32, n_routed_experts=2,
        first_k_dense_replace=0, intermediate_size=32,
    ),
    "deepseek_torchao_asym": lambda: torchao(
        "DeepseekV3", moe_intermediate_size=32, n_routed_experts=4, first_k_dense_replace=0, intermediate_size=32,
        q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=32, n_group=2,
        topk_group=1,
    ),
    "mixtral_torchao_int8": lambda: torchao("Mixtral", int8=True, intermediate_size=32, num_local_experts=2),
    "glm4_compressed_3bit_asym": lambda: compressed(
        "Glm4Moe", bits=3, symmetric=False, group=32, moe_intermediate_size=32, n_routed_experts=2,
        first_k_dense_replace=0, intermediate_size=32,
    ),
    "gpt_oss_bf16": lambda: dense("GptOss", intermediate_size=32, num_local_experts=2),
}  # fmt: skip


def main(folder: Path, names: list[str]) -> None:
    """Make every checkpoint, or those named."""
    for name in names or MAKERS:
        tensors, config, expected, metadata = MAKERS[name]()
        out = folder / name
        out.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: t.contiguous().clone() for k, t in tensors.items()},
            out / "model.safetensors",
            metadata=metadata or {"format": "pt"},
        )
        (out / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n")
        said = {}
        for key, w in expected.items():
            raw = w.contiguous().view(torch.uint8).numpy().tobytes()
            said[key] = {
                "dtype": str(w.dtype).removeprefix("torch."),
                "shape": list(w.shape),
                "sha256": hashlib.sha256(raw).hexdigest(),
            }
        (out / "expected.json").write_text(json.dumps(said, indent=1) + "\n")
        with safe_open(out / "model.safetensors", "pt") as file:
            print(f"{out}: {len(list(file.keys()))} tensors, {len(said)} expected weights")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
