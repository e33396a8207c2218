"""A simulated router with groups, step by step."""

from __future__ import annotations

import torch

from .simulation import Simulation

T = torch.Tensor


class Steps(Simulation):
    """grouped_topk; each other method is a step."""

    def grouped_topk(
        self,
        logits: T,
        correction_bias: T | None,
        num_groups: int,
        topk_group: int,
        top_k: int,
        scoring: str,
        renormalize: bool,
        routed_scaling_factor: float,
    ) -> tuple[T, T]:
        scores = self.scores(logits) if scoring == "softmax" else self.sigmoid_scores(logits)
        choice = scores if correction_bias is None else self.biased(scores, correction_bias)
        grouped = choice.unflatten(1, (num_groups, -1))
        kept = self.choose(self.group_scores(grouped, correction_bias is not None), topk_group)
        ids = self.choose(self.only_kept(grouped, kept), top_k)
        weights = self.chosen(scores, choice, ids)
        weights = self.renormalized(weights) if renormalize else weights
        return self.scaled(weights, routed_scaling_factor), ids.to(torch.int32)

    def sigmoid_scores(self, logits: T) -> T:
        """Compute the sigmoid of each logit in fp32; NaN becomes 0."""
        scores = (1 / (1 + torch.exp(-logits.double()))).float()
        return torch.where(scores.isfinite(), scores, 0.0)

    def biased(self, scores: T, bias: T) -> T:
        """Add the bias that only the choice sees."""
        return scores + bias

    def group_scores(self, grouped: T, biased: bool) -> T:
        """Score groups [T, G, E/G]: the sum of the two best under a bias, else the best."""
        best = grouped.sort(2, descending=True).values[..., : 2 if biased else 1]
        return best[..., 0] if best.shape[2] == 1 else best[..., 0] + best[..., 1]

    def only_kept(self, grouped: T, kept: T) -> T:
        """Leave the kept groups' choice scores: [T, E], -inf elsewhere."""
        keep = torch.zeros(grouped.shape[:2], dtype=torch.bool).scatter_(1, kept, True)
        return torch.where(keep[..., None], grouped, -torch.inf).flatten(1)

    def chosen(self, scores: T, choice: T, ids: T) -> T:
        """Take the weights of the chosen experts: scores without bias."""
        return scores.gather(1, ids)

    def scaled(self, weights: T, factor: float) -> T:
        """Multiply by the routed scaling factor, once."""
        return weights * factor
