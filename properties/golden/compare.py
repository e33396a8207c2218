"""Two sets of stored bits: how many elements differ, and by how many ulp."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..common.guard import different_bits

INTEGER = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


@dataclass(frozen=True)
class Change:
    """How one result differs.

    Args:
        stage: its name.
        differing, total: elements whose bits differ, and all.
        ulp: the largest distance in representable values; 1 from -0 to +0; inf to or from NaN; 0 for integers.
        first: the first place, with both values.
        form: "" or how shape or dtype differ; then nothing else was compared.
    """

    stage: str
    differing: int
    total: int
    ulp: float = 0.0
    first: str = ""
    form: str = ""

    def __bool__(self) -> bool:
        return bool(self.differing or self.form)

    def text(self) -> str:
        """Return "stage: 3 of 64 elements, up to 2 ulp, first …"."""
        if self.form:
            return f"{self.stage}: {self.form}"
        far = f", up to {self.ulp:,.0f} ulp" if self.ulp else ""
        return f"{self.stage}: {self.differing:,} of {self.total:,} elements{far}, first {self.first}"


def ulp_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return float64: how many representable values apart two tensors of one float dtype are; inf where one is NaN.

    -0 and +0 are one apart, so that equal distance 0 means equal bits (but for NaN's).
    """
    places = [_place(t) for t in (a, b)]
    far = (places[0] - places[1]).abs().double()
    return torch.where(a.isnan() != b.isnan(), torch.inf, torch.where(a.isnan() & b.isnan(), 0.0, far))


def _place(t: torch.Tensor) -> torch.Tensor:
    bits = t.contiguous().view(INTEGER[t.dtype]).long()
    lowest = -(1 << (8 * t.element_size() - 1))
    return torch.where(bits < 0, lowest - bits - 1, bits)


def compare(stage: str, old: torch.Tensor, new: torch.Tensor) -> Change:
    """Compare one result, bit for bit; False if nothing differs."""
    old, new = old.detach().cpu(), new.detach().cpu()
    forms = [f"{t.dtype} {list(t.shape)}".removeprefix("torch.") for t in (old, new)]
    if forms[0] != forms[1]:
        return Change(stage, 0, old.numel(), form=f"was {forms[0]}, is {forms[1]}")
    wrong = different_bits(old, new)
    count = int(wrong.sum())
    if not count:
        return Change(stage, 0, old.numel())
    at = tuple(wrong.nonzero()[0].tolist())
    values = f"{list(at)} was {old[at].item():.8g}, is {new[at].item():.8g}"
    far = float(ulp_distance(old, new)[wrong].max()) if old.dtype in INTEGER else 0.0
    return Change(stage, count, old.numel(), far, values)


def compare_all(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> list[Change]:
    """Compare results by name; a result that only one side has is a change of form."""
    changes = []
    for stage in dict.fromkeys([*old, *new]):
        if stage in old and stage in new:
            changes.append(compare(stage, old[stage], new[stage]))
        else:
            which = old if stage in old else new
            changes.append(Change(stage, 0, which[stage].numel(), form="gone" if stage in old else "new"))
    return [change for change in changes if change]
