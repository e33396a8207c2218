"""Steps of a simulated layer over ranks: who counts which slot, each rank's partial sum, and the sum of all."""

from __future__ import annotations

import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.contracts.ranks import Ranks

from .orders import joined
from .weights import rounded


class RankSteps:
    """What ranks do after the GEMMs, one rank after another; each method is a step that a fault may replace."""

    contract: Contract

    @property
    def ranks(self) -> Ranks | None:
        """The contract's ranks where they make partial sums, else None."""
        ranks = self.contract.ranks
        return ranks if ranks is not None and ranks.partial else None

    def counted(self, experts: torch.Tensor, num_experts: int) -> torch.Tensor:
        """Say which slots each rank counts: bool [ranks, T, k]."""
        assert self.ranks is not None
        owner = self.ranks.rank_of(experts, num_experts)
        return torch.stack([owner == rank for rank in range(self.ranks.count)])

    def keep_partial(self, total: torch.Tensor, rank: int, dtype: torch.dtype) -> torch.Tensor:
        """Round a rank's partial sum [T, H] as it is handed on: D or fp32."""
        assert self.ranks is not None
        return rounded(total, dtype, self.contract.rounding("out", dtype)) if self.ranks.kept == "dtype" else total

    def collected(self, partials: torch.Tensor) -> torch.Tensor:
        """Read the ranks' partial sums [ranks, T, H] that are added, in rank order."""
        return partials

    def joined_ranks(self, partials: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Add the ranks' partial sums in the contract's order, in fp32 or in D: [T, H] fp32."""
        ranks, way = self.ranks, self.contract.rounding("out", dtype)
        assert ranks is not None
        in_d = ranks.add == "dtype"
        terms = partials.float()
        terms = rounded(terms, dtype, way).float() if in_d else terms
        add = lambda x, y: rounded(x + y, dtype, way).float() if in_d else x + y
        if ranks.join not in ("any", "ring"):
            return joined(list(terms), ranks.join, add)
        # A ring cuts the buffer into as many pieces as there are ranks; piece c begins at rank c + 1.
        pieces = terms.flatten(1).tensor_split(ranks.count, 1)
        turned = [joined(list(piece.roll(-(c + 1), 0)), "sequential", add) for c, piece in enumerate(pieces)]
        return torch.cat(turned).reshape(terms.shape[1:])

    def gathered(self, out: torch.Tensor) -> torch.Tensor:
        """Read the result [T, H] of all ranks, each rank's own tokens in its place."""
        return out
