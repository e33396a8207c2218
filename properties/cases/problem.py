"""Problem: a case's tensors, in the order of its op's arguments."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from moeracle.ref.errors import require
from moeracle.ref.weights.weight import Int4Weight

from .fields import Case


@dataclass
class Problem:
    """What a kernel is called with, `fn(*problem.args.values())`, and what only the judge knows.

    Args:
        case: what it was built from.
        args: the op's arguments by name, in order.
        truth: facts that the kernel is not told, e.g. the topk_ids behind padded_gemm's sorted ids.
        exact: the recipe promises that every order of accumulation gives the same result.
    """

    case: Case
    args: dict[str, Any]
    truth: dict[str, Any] = field(default_factory=dict)
    exact: bool = False

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        for value in self.args.values():
            if isinstance(value, torch.Tensor):
                return value.device
            if isinstance(value, Int4Weight):
                return value.packed.device
        return torch.device("cpu")

    def to(self, device: str | torch.device) -> Problem:
        """Return the problem on another device; padded and transposed strides stay as they are."""
        target = torch.device(device)
        if target == self.device:
            return self
        args = {name: _moved(value, target) for name, value in self.args.items()}
        truth = {name: _moved(value, target) for name, value in self.truth.items()}
        return Problem(self.case, args, truth, self.exact)

    def nbytes(self) -> int:
        """Bytes of all argument tensors, without the gaps of padded ones."""
        return sum(_nbytes(value) for value in self.args.values())


def build_problem(case: Case, device: str | torch.device = "cpu") -> Problem:
    """Make a case's tensors on the CPU and put them on a device.

    Args:
        case: any case.
        device: e.g. "cpu", "cuda", "cuda:1".
    Raises:
        ValueError: the device is unknown or not there.
    """
    target = check_device(device)
    from .record import record_of  # record.py imports Problem

    return record_of(case.op).build(case).to(target)


def check_device(device: str | torch.device) -> torch.device:
    """Return the torch device, or raise ValueError in one line if torch does not know it or it is absent here."""
    try:
        target = torch.device(device)
    except RuntimeError as error:
        first = str(error).splitlines()[0].partition(" but got:")[0]
        raise ValueError(f"device: got {str(device)!r}, must be a torch device like cpu or cuda ({first})") from None
    if target.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        require(count > 0, f"device: got {str(device)!r}, but torch sees no CUDA device here; must be cpu")
        index = 0 if target.index is None else target.index
        require(
            index < count,
            f"device: got {str(device)!r}, must be one of the {count} CUDA devices, cuda:0 to cuda:{count - 1}",
        )
        return torch.device("cuda", index)
    if target.type not in ("cpu", "meta"):
        try:
            torch.empty(0, device=target)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            message = f"device: got {str(device)!r}, which is not here: {str(error).splitlines()[0]}"
            raise ValueError(message) from None
    return target


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return _with_gaps(value, device)
    if isinstance(value, Int4Weight):
        zero = None if value.zero is None else _with_gaps(value.zero, device)
        return replace(value, packed=_with_gaps(value.packed, device), scale=_with_gaps(value.scale, device), zero=zero)
    return value


def _with_gaps(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move the whole storage, so that a view keeps its strides and what lies between its rows."""
    if tensor.is_contiguous():
        return tensor.to(device)
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    whole = tensor.as_strided((count,), (1,), 0).to(device)
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _nbytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Int4Weight):
        return sum(_nbytes(part) for part in (value.packed, value.scale, value.zero))
    return 0
