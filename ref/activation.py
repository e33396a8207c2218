"""Activations between a layer's two GEMMs, by name and with their numbers.

    silu  g·σ(αg)    gelu  g·Φ(g)    gelu_tanh  g·σ(2w), w = √(2/π)·(g + 0.044715·g³)    relu2  max(g, 0)²

Text: the kind, then what differs, joined by "/", or a NAME of one that models use:

    silu/alpha1.702/limit7/up1   gate at most 7 and up within ±7, then gate·σ(1.702·gate)·(up + 1): swigluoai
    silu/limit7/after            silu at most 7, times up within ±7: swiglustep
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

from .errors import require, unknown

__all__ = ["Activation"]

KINDS = ("silu", "gelu", "gelu_tanh", "relu2")
FORMS = ("alphaN", "limitN", "after", "up1")
CUBIC = 0.044715
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"


@dataclass(frozen=True)
class Activation:
    """What becomes of gate and up.

    Args:
        kind: one of KINDS.
        alpha: of silu alone: what multiplies the gate inside of the sigmoid.
        limit: the gate is at most this, up within plus and minus this; None: neither is limited. A value of bf16, so
            that it is the same number in every D.
        after: the limit holds for the activated gate and not for the gate.
        up: what is added to up, 0 or 1.
    Raises:
        ValueError: a field holds none of its legal values, or two contradict each other.
    """

    kind: str = "silu"
    alpha: float = 1.0
    limit: float | None = None
    after: bool = False
    up: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("activation", self.kind, ACTIVATIONS)
        must = "must be between 0.125 and 8"
        require(0.125 <= self.alpha <= 8, f"activation: got alpha {self.alpha}, {must}")
        plain = self.alpha == 1 or self.kind == "silu"
        require(plain, f"activation: got alpha {self.alpha} with {self.kind}, must go with silu alone")
        require(self.up in (0, 1), f"activation: got up{self.up}, must be up1 or nothing")
        require(self.limit is not None or not self.after, "activation: got after without a limit, must go with one")
        if self.limit is not None:
            kept = float(torch.tensor(self.limit, dtype=torch.float64).to(torch.bfloat16))
            legal = kept == self.limit and 0.125 <= self.limit <= 1024
            require(legal, f"activation: got limit {self.limit:g}, must be a value of bf16 between 0.125 and 1024")

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return the activated product in the operands' dtype, nothing rounded on purpose."""
        return self.alone(gate) * self.of_up(up)

    def alone(self, gate: torch.Tensor) -> torch.Tensor:
        """Return the activated gate, limits kept, of a layer that has no up rows."""
        return self.capped(self.of_gate(self.limited(gate)))

    def limited(self, gate: torch.Tensor) -> torch.Tensor:
        """Return the gate, at most the limit where that holds for the gate."""
        return gate if self.limit is None or self.after else gate.clamp(max=self.limit)

    def capped(self, activated: torch.Tensor) -> torch.Tensor:
        """Return an activated gate, at most the limit where that holds for it."""
        return activated.clamp(max=self.limit) if self.after else activated

    def within(self, up: torch.Tensor) -> torch.Tensor:
        """Return up within the limit."""
        return up if self.limit is None else up.clamp(-self.limit, self.limit)

    def of_up(self, up: torch.Tensor) -> torch.Tensor:
        """Return the factor that up becomes: limited, plus 1 where the activation adds it."""
        return self.within(up) + self.up if self.up else self.within(up)

    @property
    def exact_on_whole_gates(self) -> bool:
        """Whether gates that are multiples of 128 give themselves or 0, as silu's do."""
        return self.limit is None and self.kind != "relu2"

    @property
    def linear_in_up(self) -> bool:
        """Whether twice the up gives twice the product."""
        return self.limit is None and not self.up

    def of_gate(self, gate: torch.Tensor) -> torch.Tensor:
        """Return the activated gate without any limit, in its dtype; the limit -0 at -inf."""
        g = gate.clamp(min=-800)  # all but relu2 are -0 there, in fp64 too; at -inf they would be inf * 0
        if self.kind == "silu":
            t = g if self.alpha == 1 else g * self.alpha
            return torch.where(t < -700, torch.full_like(g, -0.0), g * torch.sigmoid(t))
        if self.kind == "gelu":
            return g * (torch.special.erfc(g * -math.sqrt(0.5)) * 0.5)
        if self.kind == "gelu_tanh":
            return g * torch.sigmoid(2 * self.inner(g))
        positive = gate.relu()
        return positive * positive

    @staticmethod
    def inner(gate: torch.Tensor) -> torch.Tensor:
        """Return w = √(2/π)·(g + 0.044715·g³), whose tanh gelu_tanh takes."""
        return math.sqrt(2 / math.pi) * gate * (1 + CUBIC * gate * gate)

    @classmethod
    def parse(cls, text: str) -> Activation:
        """Read the text; `Activation.parse(str(activation)) == activation`.

        Raises:
            ValueError: one line naming what is wrong, with the activations or the parts that there are.
        """
        if text in NAMES:
            return NAMES[text]
        kind, *parts = text.split("/")
        found: dict[str, float | int | bool] = {}
        for part in parts:
            match = re.fullmatch(rf"(alpha|limit){_NUMBER}|(after)|(up)1", part)
            if match is None:
                raise unknown("activation's part", part, FORMS)
            name = match[1] or match[3] or match[4]
            require(name not in found, f"activation: got {name} twice in {text!r}, must be given once")
            found[name] = float(match[2]) if match[2] else True if match[3] else 1
        return cls(kind, **found)  # type: ignore[arg-type]

    def __str__(self) -> str:
        for name, known in NAMES.items():
            if known == self:
                return name
        parts = [self.kind] + [f"alpha{self.alpha:g}"] * (self.alpha != 1)
        parts += [] if self.limit is None else [f"limit{self.limit:g}"]
        return "/".join(parts + ["after"] * self.after + ["up1"] * bool(self.up))


NAMES: dict[str, Activation] = {}  # the class asks for it, so it is filled after
SILU = Activation()
NAMES["swigluoai"] = Activation(alpha=1.702, limit=7.0, up=1)
NAMES["swiglustep"] = Activation(limit=7.0, after=True)
ACTIVATIONS = (*KINDS, *NAMES)  # those that a word names
