"""The experts of one layer, out of whatever tensors hold them, as the two weights of a layer kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch

from moeracle.ref.errors import require, unknown
from moeracle.ref.weights.layouts import PACKINGS_OF, ZERO_PACKINGS_OF
from moeracle.ref.weights.stored import StoredWeight
from moeracle.ref.weights.weight import OF_BITS, Int4Weight

from .config import Declared
from .files import shown
from .linear import Linear

# The layout and the zero points that a format's own kernels read.
OWN_LAYOUT = {
    "gptq": ("gptq", "gptq_v2"),
    "awq": ("awq", "awq"),
    "executorch nibble pairs": ("nibble_pairs", "nibble_pairs"),
    "int8 bytes": ("int8", "unpacked"),
}
# The zero points that a layout's kernels read, where they are not named as it is.
ZEROS_OF = {"gptq": "gptq_v2", "exllama": "rdna", "exllama_k": "gptq_v2", "sequential_n": "gptq_v2",
            "twos_complement": "unpacked", "int8": "unpacked", "bytes": "unpacked"}  # fmt: skip
FALLBACK = ("compressed_tensors", "compressed_tensors")
GATE_UP, DOWN = ("gate", "up"), ("down",)


class Experts(NamedTuple):
    """Experts of a layer as a kernel takes them.

    Args:
        w13: Int4Weight or Int8Weight [E, 2I, H], gate rows first.
        w2: Int4Weight or Int8Weight [E, H, I].
        ids: the experts' numbers in the file, in order.
        columns13, columns2: int64 [E, K], the model's column that each packed column is, where act-order's were asked
            to be sorted; None: they are in order. Activations must be sorted alike.
    """

    w13: Int4Weight
    w2: Int4Weight
    ids: tuple[int, ...]
    columns13: torch.Tensor | None = None
    columns2: torch.Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """Where one projection of one expert is: a linear, which expert of it, and which of its rows or columns.

    Args:
        linear: that holds it.
        expert: index in a 3D tensor, or None.
        part: "all", "first" or "second" half of the rows, "even" or "odd" rows.
        transposed: whether it is stored [K, N]: then groups, if any, lie along N.
    """

    linear: Linear
    expert: int | None = None
    part: str = "all"
    transposed: bool = False

    def _cut(self, rows: torch.Tensor) -> torch.Tensor:
        half = len(rows) // 2
        cuts = {
            "first": slice(0, half),
            "second": slice(half, None),
            "even": slice(0, None, 2),
            "odd": slice(1, None, 2),
        }
        return rows[cuts[self.part]] if self.part in cuts else rows

    def stored(self) -> StoredWeight:
        """Read codes, scales and zero points."""
        said = "is stored [K, N] with groups along N; what kernels read has them along K"
        require(not self.transposed, f"{shown(self.linear.module)}: {said}")
        whole = self.linear.stored(self.expert)
        zero, offset = (None if t is None else self._cut(t) for t in (whole.zero, whole.offset))
        return StoredWeight(
            self._cut(whole.codes), self._cut(whole.scale), zero, offset, whole.group_of, whole.bits, whole.group_size
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the weights [N, K], exact."""
        w = self.linear.dequantize(dtype, self.expert)
        return self._cut(w.mT if self.transposed else w)

    def weight(self) -> torch.Tensor:
        """Return the weights [N, K] as the format's own code gives them, rounded once to its dtype."""
        w = self.linear.weight(self.expert)
        return self._cut(w.mT if self.transposed else w)


class Layer:
    """A layer with experts.

    Args:
        n: its number.
        linears: those of its experts.
        declared: the config.
    """

    def __init__(self, n: int, linears: Sequence[Linear], declared: Declared) -> None:
        self.n, self.linears, self.declared = n, linears, declared

    @cached_property
    def _held(self) -> dict[tuple[int | None, str], Linear]:
        return {(linear.place.expert, linear.place.kind.removeprefix("expert ")): linear for linear in self.linears}

    @cached_property
    def num_experts(self) -> int:
        """How many experts the layer has in the file."""
        numbered = [linear.place.expert + 1 for linear in self.linears if linear.place.expert is not None]
        whole = [linear.sizes.experts or 0 for linear in self.linears if linear.place.expert is None]
        return max([*numbered, *whole])

    @property
    def hidden(self) -> int:
        """H, the layer's width."""
        rows = self.rows(self._first, "down")
        return rows.linear.sizes.K if rows.transposed else rows.linear.sizes.N

    @property
    def intermediate(self) -> int:
        """I, the experts' width."""
        rows = self.rows(self._first, "down")
        return rows.linear.sizes.N if rows.transposed else rows.linear.sizes.K

    @property
    def _first(self) -> int:
        return min((linear.place.expert for linear in self.linears if linear.place.expert is not None), default=0)

    def rows(self, expert: int, projection: str) -> Rows:
        """Return where a projection of an expert is.

        Args:
            expert: 0..num_experts-1.
            projection: "gate", "up" or "down".
        Raises:
            ValueError: the file does not have it.
        """
        held = self._held
        single = held.get((expert, projection))
        if single is not None:
            return Rows(single)
        name = "down" if projection == "down" else "gate_up"
        for key, index in (((expert, name), None), ((None, name), expert), ((None, projection), expert)):
            linear = held.get(key)
            if linear is None:
                continue
            experts = linear.sizes.experts
            require(
                index is None or (experts is not None and index < experts),
                f"experts: got {expert}, layer {self.n} has {self.num_experts}",
            )
            return Rows(linear, index, self._part(projection, name), self._is_transposed(linear, name))
        raise ValueError(f"layer {self.n}: has no {projection} projection of expert {expert}")

    def _part(self, projection: str, name: str) -> str:
        if name != "gate_up" or (None, projection) in self._held:
            return "all"
        if self.declared.model_type == "gpt_oss":
            return "even" if projection == "gate" else "odd"
        return "first" if projection == "gate" else "second"

    def _is_transposed(self, linear: Linear, name: str) -> bool:
        """Say whether a 3D tensor is [E, K, N]: by the hidden size, or by the model where that fits both ways."""
        if linear.place.expert is not None:
            return False
        sizes, hidden = linear.sizes, self.declared.hidden
        by_shape = (
            (hidden == sizes.N, hidden == sizes.K) if name == "gate_up" else (hidden == sizes.K, hidden == sizes.N)
        )
        if by_shape[0] != by_shape[1]:
            return by_shape[0]
        return self.declared.model_type in ("gpt_oss", "llama4", "llama4_text")

    def experts(
        self, *ids: int, layout: str | None = None, zero_layout: str | None = None, sort: bool = False
    ) -> Experts:
        """Read experts as Int4Weights, or Int8Weights where their codes are of 8 bits; without ids all of them.

        Args:
            ids: numbers of experts, in the order wanted.
            layout: one of LAYOUTS, for 8 bits one of LAYOUTS8; None: the format's own.
            zero_layout: one of ZERO_LAYOUTS; None: the layout's own. Symmetric weights have no zero points.
            sort: put the columns of act-order into the order of their groups, for kernels that do not read
                `w.group_of`; else the columns stay and `w.group_of` says each one's group.
        Returns:
            Experts. Exact: codes, scales and zero points are the file's.
        Raises:
            ValueError: no such expert or layout, experts that are not of 4 or 8 bits with whole zero points, sizes that
                differ between the experts, or a size that the layout cannot hold.
        """
        wanted = ids or tuple(range(self.num_experts))
        for e in wanted:
            require(0 <= e < self.num_experts, f"experts: got {e}, layer {self.n} has 0..{self.num_experts - 1}")
        bits = self.rows(wanted[0], "down").linear.sizes.bits
        layouts, zero_layouts = PACKINGS_OF.get(bits, PACKINGS_OF[4]), ("unpacked", *ZERO_PACKINGS_OF.get(bits, ()))
        for name, got, allowed in (("layout", layout, layouts), ("zero_layout", zero_layout, zero_layouts)):
            if got is not None and got not in allowed:
                raise unknown(name if bits == 4 else f"{name} of {bits}-bit codes", got, allowed)
        own = OWN_LAYOUT.get(self.rows(wanted[0], "down").linear.format, FALLBACK)
        chosen = layout or own[0]
        zeros = zero_layout or (own[1] if chosen == own[0] else ZEROS_OF.get(chosen, chosen))
        w13, columns13 = self._stack(wanted, GATE_UP, chosen, zeros, sort)
        w2, columns2 = self._stack(wanted, DOWN, chosen, zeros, sort)
        return Experts(w13, w2, tuple(wanted), columns13, columns2)

    def _stack(
        self, ids: tuple[int, ...], projections: tuple[str, ...], layout: str, zero_layout: str, sort: bool
    ) -> tuple[Int4Weight, torch.Tensor | None]:
        """Return one weight of all experts: expert by expert, so that only one at a time is unpacked."""
        symmetric = all(self._is_symmetric(e, p) for e in ids for p in projections)
        singles: list[Int4Weight] = []
        columns: list[torch.Tensor] = []
        groups: list[torch.Tensor] = []
        for e in ids:
            stored = [self.rows(e, p).stored() for p in projections]
            where = f"layer {self.n}, expert {e}, {' and '.join(projections)}"
            codes, scale, zero = joined(stored, where)
            of, K = stored[0].group_of, codes.shape[1]
            if of is not None and sort:
                columns.append(sorted_columns(stored[0], where))
                codes = codes[:, columns[-1]]
            else:
                columns.append(torch.arange(K))
            groups.append((stored[0].columns() if not sort else torch.arange(K) // stored[0].group_size).int())
            single = OF_BITS[stored[0].bits].from_codes(
                codes,
                scale,
                None if symmetric else zero,
                layout=layout,
                zero_layout="unpacked" if symmetric else zero_layout,
                group_size=min(stored[0].group_size, K),
            )
            if singles:
                first, same = (
                    singles[0],
                    f"must be {list(singles[0].shape)} with groups of {singles[0].G} as expert {ids[0]}'s",
                )
                alike = (single.shape, single.G, single.scale.dtype) == (first.shape, first.G, first.scale.dtype)
                require(alike, f"{where}: is {list(single.shape)} with groups of {single.G}, {same}")
            singles.append(single)
        sorted_ones = any(not torch.equal(order, torch.arange(len(order))) for order in columns)
        plain = torch.arange(len(groups[0])) // singles[0].G
        ordered = any(not torch.equal(of, plain) for of in groups)
        whole = stacked(singles)
        whole = replace(whole, group_of=torch.stack(groups)) if ordered else whole
        return whole, torch.stack(columns) if sorted_ones else None

    def _is_symmetric(self, expert: int, projection: str) -> bool:
        """Say whether all zero points are the middle: from the zero points alone."""
        rows = self.rows(expert, projection)
        zero = rows.linear.zeros(rows.expert)
        return zero is None or bool((zero == 1 << (rows.linear.sizes.bits - 1)).all())


def sorted_columns(part: StoredWeight, where: str) -> torch.Tensor:
    """Return the columns of act-order in the order of their groups, each of which must then be whole."""
    assert part.group_of is not None
    counts = torch.bincount(part.group_of, minlength=part.groups)
    least, most = int(counts.min()), int(counts.max())
    whole = least == most == part.group_size
    require(whole, f"{where}: g_idx gives groups of {least} to {most} columns, must be {part.group_size} to be sorted")
    return torch.sort(part.group_of, stable=True).indices


def joined(parts: list[StoredWeight], where: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes, scale and zero uint8 of matrices one above the other.

    Args:
        parts: gate and up, or down.
        where: for errors.
    Raises:
        ValueError: they cannot be one Int4Weight, or one Int8Weight.
    """
    first = parts[0]
    for part in parts:
        require(part.bits in OF_BITS, f"{where}: has {part.bits}-bit codes, must be {' or '.join(map(str, OF_BITS))}")
        require(part.bits == first.bits, f"{where}: has {part.bits}-bit codes, must be of {first.bits} as gate's")
        require(part.offset is None, f"{where}: has float offsets, must have whole zero points")
        sizes = (part.K, part.groups, part.scale.dtype)
        same = f"must be as gate's: K {first.K}, {first.groups} groups, {first.scale.dtype}"
        require(
            sizes == (first.K, first.groups, first.scale.dtype),
            f"{where}: has K {part.K}, {part.groups} groups, {part.scale.dtype}, {same}",
        )
        require(torch.equal(part.columns(), first.columns()), f"{where}: have different g_idx, must share one")
    codes = torch.cat([part.codes for part in parts])
    scale = torch.cat([part.scale for part in parts])
    zero = torch.cat(
        [torch.full_like(p.scale, p.middle, dtype=torch.int16) if p.zero is None else p.zero for p in parts]
    )
    top = (1 << first.bits) - 1
    require(
        int(zero.max()) <= top,
        f"{where}: {int((zero > top).sum()):,} zero points are {top + 1}, read from a stored {top}; must be 0..{top} "
        "(load_checkpoint's zeros)",
    )
    return codes, scale, zero.to(torch.uint8)


def stacked(singles: list[Int4Weight]) -> Int4Weight:
    """Return matrices as one weight with experts; scales of gptq and awq keep their transposed storage."""
    first = singles[0]
    transposed = not first.scale.is_contiguous() and first.scale.mT.is_contiguous()
    scale = torch.stack([s.scale.mT for s in singles]).mT if transposed else torch.stack([s.scale for s in singles])
    zero = None if first.zero is None else torch.stack([s.zero for s in singles if s.zero is not None])
    return type(first)(
        torch.stack([s.packed for s in singles]), scale, zero, first.layout, first.group_size, first.zero_layout
    )
