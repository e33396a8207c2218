"""Families of ops: what the ops of one kind have in common, so that each record says only what is its own."""

from __future__ import annotations

from ..cases.record import OpRecord


class TupleOp(OpRecord):
    """An op that returns a tuple of tensors, most of them exact: routing, dispatch, the quantizer."""


class WeightReader(OpRecord):
    """An op that reads packed weights out."""


class FloatOp(OpRecord):
    """An op that returns one tensor of floats."""


class OneGemm(FloatOp):
    """An op that is one matrix product."""


class RoutedGemm(OneGemm):
    """A matrix product whose rows belong to experts."""


class Layer(FloatOp):
    """An op of two matrix products with an activation between them, whose stages a kernel may store."""

    layer = True

    def implied_size(self, letter: str, sizes: dict[str, int]) -> int | None:
        return {"K": sizes["H"], "N": 2 * sizes["I"]}.get(letter)
