"""Names of modules: which layer, which expert and what kind, in the models that have experts.

Qwen2/3-MoE, Qwen3.5-MoE, DeepSeek-V3, GLM-4.5  layers.N.mlp.experts.E.{gate,up,down}_proj
Mixtral                                         layers.N.block_sparse_moe.experts.E.{w1,w3,w2}  (gate, up, down)
gpt-oss, and modules' own names                 layers.N.mlp.experts.{gate_up_proj,down_proj}   (all experts in 3D)
executorch                                      layers.N.mlp.experts.{w1,w2}                    (gate and up, down)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PROJECTIONS = {
    "gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down",
}  # fmt: skip
FUSED = {"gate_up_proj": "gate_up", "w13": "gate_up", "w1": "gate_up", "down_proj": "down", "w2": "down"}
_LAYER = re.compile(r"(?:^|(?P<stem>.*?)\.)(?:layers|h|blocks)\.(?P<layer>\d+)\.(?P<rest>.+)")
_EXPERT = re.compile(r"(?P<block>.*?)\.?experts\.(?P<expert>\d+)\.(?P<projection>\w+)")
_ALL_EXPERTS = re.compile(r"(?P<block>.*?)\.?experts\.(?P<projection>gate_up_proj|down_proj|w13|w1|w2)")
_SHARED = re.compile(r".*\.?shared_experts?\.(?P<projection>\w+)")


@dataclass(frozen=True)
class Place:
    """Where a module stands in a model.

    Args:
        stem: what stands before "layers": "model", or "mtp" of a second stack; "" outside a layer.
        layer: number, or None outside a layer.
        kind: "expert gate", "expert up", "expert down", "expert gate_up" (both in one), "shared gate", …, "router",
            "shared gate weight", "attention", "dense", "norm", "lm_head", "embedding" or "other".
        expert: number; None where a tensor holds all experts, and for other kinds.
    """

    stem: str
    layer: int | None
    kind: str
    expert: int | None = None


def place_of(module: str) -> Place:
    """Return where a module stands, by its name."""
    found = _LAYER.fullmatch(module)
    if not found:
        last = module.rpartition(".")[2]
        kind = {"lm_head": "lm_head", "embed_tokens": "embedding", "wte": "embedding"}.get(last)
        return Place("", None, kind or ("norm" if "norm" in last else "other"))
    stem, layer, rest = found["stem"] or "", int(found["layer"]), found["rest"]
    one = _EXPERT.fullmatch(rest)
    if one and one["projection"] in PROJECTIONS:
        return Place(stem, layer, f"expert {PROJECTIONS[one['projection']]}", int(one["expert"]))
    every = _ALL_EXPERTS.fullmatch(rest)
    if every:
        return Place(stem, layer, f"expert {FUSED[every['projection']]}")
    shared = _SHARED.fullmatch(rest)
    if shared and shared["projection"] in PROJECTIONS:
        return Place(stem, layer, f"shared {PROJECTIONS[shared['projection']]}")
    return Place(stem, layer, _other_kind(rest))


def _other_kind(rest: str) -> str:
    block, _, last = rest.rpartition(".")
    if last == "shared_expert_gate":
        return "shared expert's gate"
    if last == "router" or (last == "gate" and block.rpartition(".")[2] in ("mlp", "block_sparse_moe", "feed_forward")):
        return "router"
    if "attn" in rest or "attention" in rest.split("_"):
        return "norm" if "norm" in last else "attention"
    if "norm" in last:
        return "norm"
    return "dense" if last in PROJECTIONS or last == "gate_up_proj" else "other"
