"""A layer of a checkpoint as data of a hunt: routings and activations are drawn, weights come from the file.

A case then says the sizes of that layer, and is replayed with the same checkpoint, layer and experts beside it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from moeracle.properties.cases.case import TORCH_DTYPE, Case
from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.weights import PAD_WORD, WeightPlan, make_weight, weights_from
from moeracle.properties.hunt.hunt import CasesOfHunt
from moeracle.properties.hunt.must_run import weight_forms
from moeracle.ref.errors import require
from moeracle.ref.weights.weight import Int4Weight

from .checkpoint import Checkpoint, load_checkpoint
from .experts import Experts

# Recipes of activations that ask nothing of the weights: an exact one promises sums that real weights do not have.
DATA = ("normal", "outliers", "onehot")
TOKENS = (5, 1, 33, 2, 16, 64)
MOST_TOKENS = 64
MOST_EXPERTS = 8  # unless more are asked for: real layers are large
USUAL_SLOTS = 8


@dataclass
class LayerData:
    """Some experts of one layer, from which the weights of all cases of the layer's sizes are made.

    Args:
        checkpoint: which.
        layer: number.
        experts: read from the file.
        of: how many experts the layer has.
        hidden, intermediate: H and I.
        group_size: G, -1 for one group over each K.
        slots: the most experts of a token to draw.
    """

    checkpoint: Checkpoint
    layer: int
    experts: Experts
    of: int
    hidden: int
    intermediate: int
    group_size: int
    slots: int
    _made: dict[tuple[Any, ...], Int4Weight] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The options that say which weights are meant, for the command that replays a case."""
        ids = ",".join(map(str, self.experts.ids))
        return f" --checkpoint {shlex.quote(str(self.checkpoint.path))} --layer {self.layer} --experts {ids}"

    @property
    def line(self) -> str:
        """What is judged, in one line."""
        zero = "symmetric" if self.experts.w13.zero is None else "with zero points"
        dtype = str(self.experts.w13.scale.dtype).removeprefix("torch.")
        return (
            f"weights: {self.checkpoint.path} ({self.checkpoint.format}), layer {self.layer}, "
            f"{len(self.experts.ids)} of "
            f"{self.of} experts, H {self.hidden}, I {self.intermediate}, G {self.group_size}, {zero}, {dtype} scales"
        )

    def sizes(self, op: str) -> dict[str, int]:
        """Return the dimensions that the weights decide, of those that an op has."""
        sizes = {"H": self.hidden, "I": self.intermediate, "N": 2 * self.intermediate, "K": self.hidden}
        sizes |= {"G": self.group_size, "E": len(self.experts.ids)}
        fields = OPS[op]
        return {d: n for d, n in sizes.items() if d in fields.dims and d not in fields.optional}

    def why_not(self, case: Case) -> str | None:
        """Say why a case is not one of this layer's sizes, None if it is."""
        wanted, bits = self.sizes(case.op), self.experts.w13.bits
        if OPS[case.op].weight and case.bits != bits:
            return f"layer {self.layer} has codes of {bits} bits, not of {case.bits}"
        other = [f"{d} {case.sizes.get(d)}" for d, n in wanted.items() if case.sizes.get(d) != n]
        must = ", ".join(f"{d} {n}" for d, n in wanted.items())
        return f"layer {self.layer} has other sizes than {', '.join(other)}: {must}" if other else None

    def supply(self, case: Case, name: str, experts: int | None, plan: WeightPlan) -> Int4Weight:
        """Return the weight argument `name` of a case: the file's where the case has its sizes, or a made one.

        Laws ask for recipes of their own whose sums are exact, which takes the weights that these recipes make.
        """
        source = self.experts.w2 if name == "w2" else self.experts.w13
        fits = case.weight_shapes().get(name) == (source.N, source.K) and case.G in (self.group_size, source.G)
        symmetric = source.zero is None
        if (
            not fits
            or case.bits != source.bits
            or case.data not in DATA
            or (experts or 1) > len(self.experts.ids)
            or (case.zero_layout is None and not symmetric)
        ):
            return make_weight(case, name, experts, plan)
        key = (name, experts, case.layout, case.zero, case.dtype, case.pad)
        if key not in self._made:
            if len(self._made) >= 8:
                self._made.clear()
            self._made[key] = self._repacked(case, source, experts)
        return self._made[key]

    def _repacked(self, case: Case, source: Int4Weight, experts: int | None) -> Int4Weight:
        some = slice(0, experts or 1)
        part = type(source)(
            source.packed[some], source.scale[some], None if source.zero is None else source.zero[some], source.layout,
            source.group_size, source.zero_layout,
        )  # fmt: skip
        zero = part.zeros()
        if zero is None and case.zero_layout is not None:
            zero = torch.full(tuple(part.scale.shape), part.middle, dtype=torch.uint8)
        scale = part.scale.to(TORCH_DTYPE[case.dtype])
        made = type(source).from_codes(
            part.codes(), scale, zero, layout=case.layout, zero_layout=case.zero_layout or "unpacked"
        )
        packed = _padded(made.packed, case.pad) if case.pad else made.packed
        made = type(source)(packed, made.scale, made.zero, made.layout, case.G, made.zero_layout)
        return made if experts is not None else made.expert(0)

    @contextmanager
    def supplying(self) -> Iterator[None]:
        """Let this layer supply the weights of all problems that are built inside."""
        with weights_from(self.supply):
            yield

    def restricted(self, supports: Callable[[Case], bool | str] | None) -> Callable[[Case], bool | str]:
        """Return a kernel's `supports` that also refuses cases of other sizes: shrinking must keep the weights."""

        def of_this_layer(case: Case) -> bool | str:
            reason = self.why_not(case)
            return reason if reason is not None else True if supports is None else supports(case)

        return of_this_layer

    def objection(self, kernel: KernelLike) -> str | None:
        """Say why no case of this layer can be put to a kernel, None if one can."""
        if not OPS[kernel.op].weight:
            return "reads no int4 weight"
        if not self._forms(kernel):
            return f"reads {', '.join(kernel.zeros)}, but layer {self.layer} has zero points other than 8"
        return None

    def cases_of(self, kernel: KernelLike) -> CasesOfHunt:
        """Return the cases of a hunt with these weights: fixed ones, and a strategy that draws more.

        Args:
            kernel: of which `objection` says nothing.
        """
        forms, dtypes = self._forms(kernel), self._dtypes(kernel)
        return CasesOfHunt(self._fixed(kernel, forms, dtypes), self._drawn(kernel, forms, dtypes))

    def _forms(self, kernel: KernelLike) -> list[tuple[str, str]]:
        forms = weight_forms(kernel)
        if self.experts.w13.zero is None:
            return [form for form in forms if form[1] == "sym"] or forms
        return [form for form in forms if form[1] != "sym"]

    def _dtypes(self, kernel: KernelLike) -> list[str]:
        """Return the dtypes that hold the file's scales as they are, or all where the kernel takes none of these."""
        taken = [d for d in OPS[kernel.op].dtypes if d in kernel.dtypes]
        return [d for d in taken if TORCH_DTYPE[d] == self.experts.w13.scale.dtype] or taken

    def _fixed(self, kernel: KernelLike, forms: list[tuple[str, str]], dtypes: list[str]) -> tuple[Case, ...]:
        fields = OPS[kernel.op]
        data = [name for name in DATA if name in fields.data]
        routings = [r for r in fields.routings if r != "repeat"]
        count = max(len(routings), len(forms) * len(dtypes), len(TOKENS))
        turns = zip(cycle(TOKENS), cycle(routings), cycle(data), cycle(forms), cycle(dtypes), strict=False)
        found = []
        for seed, (T, routing, recipe, (layout, zero), dtype) in enumerate(islice(turns, count)):
            names = {"dtype": dtype, "layout": layout, "zero": zero, "routing": routing, "data": recipe, "seed": seed}
            found.append(self._case(kernel.op, T, self.slots, names))
        return tuple(dict.fromkeys(case for case in found if case is not None))

    def _case(self, op: str, T: int, k: int, names: dict[str, Any]) -> Case | None:
        fields = OPS[op]
        dims = {**self.sizes(op), **{d: n for d, n in (("T", T), ("k", k)) if d in fields.dims}}
        for letter in fields.dims:
            if letter not in dims and letter not in fields.optional:
                dims[letter] = (fields.sizes_of(letter, dims) or (16,))[0]
        try:
            return Case.of(op, **{**names, **dims})
        except ValueError:  # of an op whose names do not go together with these sizes
            return None

    def _drawn(self, kernel: KernelLike, forms: list[tuple[str, str]], dtypes: list[str]) -> Any:
        from hypothesis import strategies as st

        fields = OPS[kernel.op]
        rarely = st.sampled_from((False, False, False, True))
        flags = [f for f in fields.routing_flags + fields.data_flags if not f.startswith("ep")]
        names = st.fixed_dictionaries({
            "form": st.sampled_from(forms),
            "dtype": st.sampled_from(dtypes),
            "routing": st.sampled_from([r for r in fields.routings if r != "repeat"]),
            "data": st.sampled_from([name for name in DATA if name in fields.data]),
            "seed": st.integers(0, 2**31 - 1),
            "flags": st.tuples(*(rarely for _ in flags)),
            "T": st.integers(0, MOST_TOKENS),
            "k": st.integers(1, self.slots),
        })  # fmt: skip

        def case_of(drawn: dict[str, Any]) -> Case | None:
            layout, zero = drawn["form"]
            held = tuple(flag for flag, on in zip(flags, drawn["flags"], strict=True) if on)
            of = {name: drawn[name] for name in ("dtype", "routing", "data", "seed")}
            return self._case(kernel.op, drawn["T"], drawn["k"], {**of, "layout": layout, "zero": zero, "flags": held})

        return names.map(case_of).filter(lambda case: case is not None and kernel.why_not(case) is None)


def open_layer(path: Path, layer: int | None, experts: str | None) -> LayerData:
    """Read experts of a layer for a hunt.

    Args:
        path: a checkpoint.
        layer: number; None: the first that has experts.
        experts: "0,3,8-11", "all", or None: MOST_EXPERTS of them, evenly spread.
    Raises:
        ValueError: no such layer or expert, or weights that an Int4Weight does not hold.
    """
    checkpoint = load_checkpoint(path)
    held = checkpoint.layers
    require(bool(held), f"checkpoint: {path} has no layer with experts")
    chosen = checkpoint.layer(held[0] if layer is None else layer)
    ids = expert_ids(experts, chosen.num_experts)
    read = chosen.experts(*ids, layout="compressed_tensors", zero_layout="unpacked", sort=True)
    w13, w2 = read.w13, read.w2
    require(
        w13.scale.dtype == w2.scale.dtype, f"layer {chosen.n}: w13 has {w13.scale.dtype} scales, w2 {w2.scale.dtype}"
    )
    same = w13.G == w2.G
    whole = w13.G == w13.K and w2.G == w2.K
    require(same or whole, f"layer {chosen.n}: w13 has groups of {w13.G}, w2 of {w2.G}; must be one group size")
    symmetric = (w13.zero is None) == (w2.zero is None)
    if not symmetric:
        read = read._replace(w13=_with_zeros(w13), w2=_with_zeros(w2))
    text = checkpoint.declared.top_k or USUAL_SLOTS
    return LayerData(
        checkpoint, chosen.n, read, chosen.num_experts, w13.K, w2.K, w13.G if same else -1, min(text, len(ids))
    )


def expert_ids(text: str | None, count: int) -> tuple[int, ...]:
    """Return the experts that a text names.

    Args:
        text: "0,3,8-11", "all" or None.
        count: how many the layer has.
    Raises:
        ValueError: no number, one that the layer does not have, or one twice.
    """
    if text is None:
        some = min(count, MOST_EXPERTS)
        return tuple(i * count // some for i in range(some))
    if text == "all":
        return tuple(range(count))
    ids: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        right = first.isdecimal() and (not dash or last.isdecimal()) and len(first) < 6 and len(last) < 6
        require(right, f"experts: got {text!r}, must be like 0,3,8-11 or all")
        ids += range(int(first), int(last or first) + 1)
    right = bool(ids) and len(set(ids)) == len(ids) and max(ids) < count
    require(right, f"experts: got {text!r}, must be each once, of 0..{count - 1}")
    return tuple(ids)


def _with_zeros(w: Int4Weight) -> Int4Weight:
    if w.zero is not None:
        return w
    zero = torch.full(tuple(w.scale.shape), w.middle, dtype=torch.uint8)
    return type(w)(w.packed, w.scale, zero, w.layout, w.group_size, "unpacked")


def _padded(packed: torch.Tensor, pad: int) -> torch.Tensor:
    """Return the words with `pad` plausible ones between the rows, as made weights have them."""
    filler = PAD_WORD & 0xFF if packed.dtype == torch.uint8 else PAD_WORD
    wide = torch.full((*packed.shape[:-1], packed.shape[-1] + pad), filler, dtype=packed.dtype)
    wide[..., : packed.shape[-1]] = packed
    return wide[..., : packed.shape[-1]]
