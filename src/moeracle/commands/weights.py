"""Where the weights of a command's cases come from: made by the case's recipe, or a checkpoint's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moeracle.properties.cases.case import Case
from moeracle.properties.hunt.effort import profile_named
from moeracle.properties.hunt.hunt import CasesOfHunt
from moeracle.ref.errors import require
from moeracle.target.declaration import Kernel

from .console import say

if TYPE_CHECKING:
    from moeracle.checkpoints.layer_data import LayerData

FEWER = 5  # times: a case of a real layer is large


class Weights:
    """Weights that are made as a case's recipe says.

    Args:
        layer: of a checkpoint, whose weights are taken instead; None: none.
    """

    def __init__(self, layer: LayerData | None = None) -> None:
        self.layer = layer

    @property
    def words(self) -> str:
        """The options that a replay needs, or ""."""
        return "" if self.layer is None else self.layer.words

    def supplying(self) -> AbstractContextManager[None]:
        """Return the context in which problems are built."""
        return nullcontext() if self.layer is None else self.layer.supplying()

    def able(self, kernels: list[Kernel]) -> list[Kernel]:
        """Return the kernels that read such weights, and say why others are left out.

        Raises:
            ValueError: there is none.
        """
        if self.layer is None:
            return kernels
        objections = {id(kernel): self.layer.objection(kernel) for kernel in kernels}
        held = [kernel for kernel in kernels if objections[id(kernel)] is None]
        for kernel in kernels:
            reason = objections[id(kernel)]
            require(bool(held) or len(kernels) > 1, f"--checkpoint: kernel {kernel.name} {reason}")
            if reason is not None:
                say(f"not judged: [{kernel.op}] {kernel.name} {reason}")
        require(bool(held), "--checkpoint: TARGET has no kernel that reads such weights")
        return held

    def restricted(self, kernel: Kernel) -> Kernel:
        """Return a kernel that takes only cases of the layer's sizes, where its weights come from a file."""
        return kernel if self.layer is None else replace(kernel, supports=self.layer.restricted(kernel.supports))

    def cases_of(self, kernel: Kernel) -> CasesOfHunt | None:
        """Return the cases of a hunt with these weights, None for the kernel's own."""
        return None if self.layer is None else self.layer.cases_of(kernel)

    def examples(self, profile: str, given: int | None) -> int | None:
        """Return how many cases to draw: fewer where they are as large as a real layer, unless a number was given."""
        if given is not None or self.layer is None:
            return given
        return profile_named(profile).examples // FEWER


def weights_of(checkpoint: Path | None, layer: int | None, experts: str | None, cases: list[Case]) -> Weights:
    """Return the weights that a command's options ask for, and say which a file gives.

    Args:
        checkpoint, layer, experts: the options.
        cases: that are given, which must be of the layer's sizes.
    Raises:
        ValueError: --layer or --experts without --checkpoint, a checkpoint that cannot be read, no such layer or
            expert, or a case of other sizes.
    """
    if checkpoint is None:
        for option, value in (("--layer", layer), ("--experts", experts)):
            require(value is None, f"{option}: got {value}, but no --checkpoint that it could be of")
        return Weights()
    from moeracle.checkpoints.layer_data import open_layer

    data = open_layer(checkpoint, layer, experts)
    for case in cases:
        reason = data.why_not(case)
        require(reason is None, f"--case: {reason}")
    say(data.line)
    return Weights(data)
