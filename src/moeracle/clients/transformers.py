"""transformers 5.24: the experts and the routers of five models, eager, as somebody else's reference.

Needs an installed transformers. The experts are called as `experts(hidden_states, top_k_index, top_k_weights)`, with
weights in the activations' dtype: contract `transformers@5.24:eager`, whose router weights are of that dtype, too. In
bf16 oneDNN multiplies by VDPBF16PS where the CPU has it, which takes subnormal operands for zero: ftz. The routers run
in fp32 on an identity gate.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch

from moeracle.target.load import kernel

from .packages import absent

EXPERTS = {
    "qwen3_moe": "Qwen3MoeExperts",
    "mixtral": "MixtralExperts",
    "qwen3_5_moe": "Qwen3_5MoeExperts",
    "deepseek_v3": "DeepseekV3Experts",
    "glm4_moe": "Glm4MoeExperts",
}
EAGER = "transformers@5.24:eager,ftz=true"
GROUPED_ROUTERS = {"deepseek_v3": "DeepseekV3TopkRouter", "glm4_moe": "Glm4MoeTopkRouter"}
ROUTERS = {"qwen3_moe": "Qwen3MoeTopKRouter", "mixtral": "MixtralTopKRouter", "qwen3_5_moe": "Qwen3_5MoeTopKRouter"}


def modelling(model: str) -> Any:
    """Import a model's file."""
    from importlib import import_module

    return import_module(f"transformers.models.{model}.modeling_{model}")


@functools.cache
def missing() -> str:
    """Return why transformers cannot be used, or ""."""
    try:
        modelling(next(iter(EXPERTS)))
    except Exception as error:  # whatever importing it raises
        return absent("transformers") or f"transformers does not import: {(str(error).splitlines() or [''])[0][:120]}"
    return ""


missing()  # a first import may take a minute: as long as loading may, and a case may not


def config(**sizes: Any) -> SimpleNamespace:
    """Return what the classes read of a config, under every name that one of the models has for it."""
    E, k, H, I = (sizes.get(letter, 1) for letter in ("E", "k", "H", "I"))
    return SimpleNamespace(
        num_experts=E, num_local_experts=E, n_routed_experts=E, num_experts_per_tok=k, hidden_size=H,
        moe_intermediate_size=I, intermediate_size=I, hidden_act="silu", norm_topk_prob=True, router_jitter_noise=0.0,
        n_group=sizes.get("groups", 1), topk_group=sizes.get("kept", 1), routed_scaling_factor=sizes.get("factor", 1.0),
        _experts_implementation="eager",
    )  # fmt: skip


def experts_supports(case: Any) -> bool | str:
    """Say whether the experts take a case."""
    if missing():
        return missing()
    if case.routing == "repeat":
        return "a router repeats no expert; of an expert that is repeated index_add_ adds the rows in fp32"
    return case.routing != "ignored" or "their ids are of experts, -1 is none"


def router_supports(case: Any) -> bool | str:
    """Say whether the routers take a case: they break ties by torch.topk, which leaves them open."""
    if missing():
        return missing()
    if case.data in ("ties", "nonfinite"):
        return "torch.topk breaks ties as it likes"
    return case.T > 0 or "an empty batch has no router"


def grouped_router_supports(case: Any) -> bool | str:
    """Say whether the routers with groups take a case: sigmoids, a bias, the two best of each group."""
    if not {"sigmoid", "bias", "renorm"} <= case.flags:
        return "it takes sigmoids, adds a bias and renormalizes, always"
    return router_supports(case) if 2 * case.g <= case.E else "it adds the two best of a group"


def _experts(model: str) -> Any:
    @kernel(
        "moe_w4a16", name=f"transformers.{model}.experts", contract=EAGER,
        zeros=("sym", "v2", "asym", "unpacked"), supports=experts_supports,
    )  # fmt: skip
    def experts(x: Any, w13: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Any:
        made = getattr(modelling(model), EXPERTS[model])(config(E=w13.E, H=w2.N, I=w2.K))
        made.gate_up_proj = torch.nn.Parameter(w13.dequantize().to(x.dtype), requires_grad=False)
        made.down_proj = torch.nn.Parameter(w2.dequantize().to(x.dtype), requires_grad=False)
        return made(x, topk_ids.long(), topk_weights.to(x.dtype))

    return experts


def _router(model: str) -> Any:
    @kernel(
        "topk_softmax", name=f"transformers.{model}.router", dtypes=("fp32",),
        supports=lambda case: router_supports(case) if "renorm" in case.flags else "it always renormalizes",
    )  # fmt: skip
    def router(logits: Any, top_k: int, renormalize: bool) -> Any:
        E = logits.shape[1]
        made = getattr(modelling(model), ROUTERS[model])(config(E=E, k=top_k, H=E))
        made.weight = torch.nn.Parameter(torch.eye(E), requires_grad=False)
        _, weights, ids = made(logits)
        return weights.float(), ids.int()

    return router


def _grouped_router(model: str) -> Any:
    @kernel("grouped_topk", name=f"transformers.{model}.router", dtypes=("fp32",), supports=grouped_router_supports)
    def router(logits: Any, correction_bias: Any, num_groups: int, topk_group: int, top_k: int, *rest: Any) -> Any:
        E = logits.shape[1]
        sizes = {"E": E, "k": top_k, "H": E, "groups": num_groups, "kept": topk_group, "factor": rest[-1]}
        made = getattr(modelling(model), GROUPED_ROUTERS[model])(config(**sizes))
        made.weight = torch.nn.Parameter(torch.eye(E), requires_grad=False)
        made.e_score_correction_bias = correction_bias
        _, weights, ids = made(logits)
        order = (
            (logits.sigmoid() + correction_bias).gather(1, ids).argsort(1, descending=True)
        )  # it leaves them unsorted
        return weights.gather(1, order).float(), ids.gather(1, order).int()

    return router


KERNELS = [*map(_experts, EXPERTS), *map(_router, ROUTERS), *map(_grouped_router, GROUPED_ROUTERS)]
