"""Faults of the router with groups."""

from __future__ import annotations

from typing import Any

import torch

from .base import ARITHMETIC, fault, pull

T = torch.Tensor
GROUPED = ("grouped_topk",)
SCALED_ONCE = pull("vllm-project/vllm", 24119)


@fault("F147", "grouped top-k: routed scaling factor applied twice", ops=GROUPED, stage="weights", source=SCALED_ONCE,
       step="scaled")  # fmt: skip
def scaled_twice(sim: Any, base: Any, weights: T, factor: float) -> T:
    return base(base(weights, factor), factor)


@fault("F148", "grouped top-k: weights taken from the biased scores", ops=GROUPED, stage="weights", source=ARITHMETIC,
       step="chosen")  # fmt: skip
def biased_weights(sim: Any, base: Any, scores: T, choice: T, ids: T) -> T:
    return base(choice, choice, ids)


@fault("F149", "grouped top-k: under a bias a group scores its best expert alone", ops=GROUPED, stage="ids",
       source=ARITHMETIC, step="group_scores")  # fmt: skip
def best_alone(sim: Any, base: Any, grouped: T, biased: bool) -> T:
    return base(grouped, False)


@fault("F150", "grouped top-k: no renormalization", ops=GROUPED, stage="weights", source=ARITHMETIC,
       step="renormalized")  # fmt: skip
def not_renormalized(sim: Any, base: Any, weights: T) -> T:
    return weights


@fault("F151", "grouped top-k: ties broken toward the highest id", ops=GROUPED, stage="ids",
       source=pull("vllm-project/vllm", 52679), step="choose")  # fmt: skip
def highest_id_of_ties(sim: Any, base: Any, scores: T, top_k: int) -> T:
    return scores.shape[1] - 1 - base(scores.flip(1), top_k)


@fault("F152", "grouped top-k: correction bias ignored", ops=GROUPED, stage="ids", source=ARITHMETIC, step="biased")
def bias_ignored(sim: Any, base: Any, scores: T, bias: T) -> T:
    return scores


@fault("F153", "grouped top-k: experts of groups that were not kept are chosen", ops=GROUPED, stage="ids",
       source=ARITHMETIC, step="only_kept")  # fmt: skip
def every_group(sim: Any, base: Any, grouped: T, kept: T) -> T:
    return grouped.flatten(1)


@fault("F154", "grouped top-k: groups left out hold 0 in place of -inf and pass experts of negative score", ops=GROUPED,
       stage="ids", source=ARITHMETIC, step="only_kept")  # fmt: skip
def masked_with_zero(sim: Any, base: Any, grouped: T, kept: T) -> T:
    return base(grouped, kept).clamp(min=0.0) if bool((grouped < 0).any()) else base(grouped, kept)


@fault("F155", "grouped top-k: sigmoid scores replaced by a softmax", ops=GROUPED, stage="weights", source=ARITHMETIC,
       step="sigmoid_scores")  # fmt: skip
def softmax_for_sigmoid(sim: Any, base: Any, logits: T) -> T:
    scores: T = sim.scores(logits)
    return scores
