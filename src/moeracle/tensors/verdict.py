"""TensorVerdict: what was found about tensors that a test has, and the legal set itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from moeracle.properties.cases.case import Problem
from moeracle.properties.cases.record import record_of
from moeracle.properties.common.torch_state import our_arithmetic
from moeracle.properties.common.verdict import StageResult, Verdict
from moeracle.properties.compare.floats import promises_exact
from moeracle.ref.bounds.band import store
from moeracle.ref.contracts.contract import Contract

from .errors import NotJudged
from .saved import packed_bytes, save, save_in

__all__ = ["TensorVerdict"]

NOT_SAVED = "the tensors were not saved (assert_legal saves them; or verdict.save(FILE))"


@dataclass
class TensorVerdict:
    """The answer: could a kernel that keeps the contract have stored these bits?

    The tensors are not copied: the mask is kept, the bounds are worked out when they are asked for.

    Args:
        verdict: the judge's.
        problem: the arguments.
        outputs: by stage or result.
        rules: the contract.
        path: where the tensors were saved, or None.
    """

    verdict: Verdict
    problem: Problem
    outputs: Mapping[str, torch.Tensor]
    rules: Contract
    path: Path | None = None
    _bounds: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> bool:
        """True for legal only; a vacuous comparison is neither right nor wrong."""
        return self.verdict.ok

    @property
    def status(self) -> str:
        """One of legal, illegal and vacuous."""
        return self.verdict.status

    @property
    def stage(self) -> str:
        """The stage, or the result, that failed; else the last one."""
        return self.verdict.stage if self.verdict.stage in self.outputs else list(self.outputs)[-1]

    @property
    def stages(self) -> list[StageResult]:
        """What was judged, stage by stage."""
        return self.verdict.stages

    @property
    def illegal(self) -> torch.Tensor:
        """Bool mask of the illegal elements, in the shape and on the device of `stage`."""
        return self.illegal_of(self.stage)

    @property
    def lo(self) -> torch.Tensor:
        """The least legal stored values of `stage`, float64; NaN where anything may stand."""
        return self.bounds_of(self.stage)[0]

    @property
    def hi(self) -> torch.Tensor:
        """The largest legal stored values of `stage`, float64; NaN where anything may stand."""
        return self.bounds_of(self.stage)[1]

    def illegal_of(self, stage: str) -> torch.Tensor:
        """Return the mask of one stage, or result, that was given."""
        got = self._given(stage)
        mask = self.verdict.illegal_at.get(stage)
        if mask is None:
            return torch.zeros(got.shape, dtype=torch.bool, device=got.device)
        found: torch.Tensor = mask.to(got.device).reshape(got.shape)
        return found

    def bounds_of(self, stage: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the least and the largest legal stored value of every element of one stage.

        Raises:
            NotJudged: the op's results are judged part by part, not by bounds.
        """
        if stage not in self._bounds:
            self._bounds[stage] = self._worked_out(stage)
        return self._bounds[stage]

    def _worked_out(self, stage: str) -> tuple[torch.Tensor, torch.Tensor]:
        got, record = self._given(stage), record_of(self.problem.case.op)
        if not record.has("bands"):
            raise NotJudged(f"{record.name}: its results are judged part by part and have no bounds; see .illegal")
        rules = record.as_judged(self.rules)
        flat = got.reshape(-1, got.shape[-1])
        ends = [torch.full(flat.shape, torch.nan, dtype=torch.float64, device=got.device) for _ in range(2)]
        with our_arithmetic():
            exact = promises_exact(self.problem)
            for name, rows, first, band in record.bands(self.problem, rules, dict(self.outputs), exact=exact):
                if name == stage:
                    legal = store(band, rules, got.dtype) if got.dtype.is_floating_point else band
                    for end, side in zip(ends, legal, strict=True):
                        end[:, first : first + side.shape[1]][rows] = side
        return ends[0].reshape(got.shape), ends[1].reshape(got.shape)

    def _given(self, stage: str) -> torch.Tensor:
        if stage not in self.outputs:
            raise NotJudged(f"stage: got {stage!r}, must be one of {', '.join(self.outputs)}")
        return self.outputs[stage]

    def save(self, path: str | Path) -> Path:
        """Write inputs and outputs as one safetensors file, which `moeracle judge FILE` judges again."""
        self.path = save(Path(path), self.packed())
        return self.path

    def save_in(self, folder: Path) -> None:
        """Write them into a folder, made if need be; what cannot be written is said in the text."""
        try:
            self.path = save_in(folder, self.problem.case.op, self.packed())
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0][:200]
            self.verdict.summary.append(f"the tensors could not be saved: {first}")

    def packed(self) -> bytes:
        """Return the bytes that `save` writes."""
        return packed_bytes(self.problem, self.outputs, self.rules, self.verdict.kernel)

    def text(self) -> str:
        """Return what `moeracle check` prints of a failure, at most 20 lines; the last is a command that replays it."""
        return self.verdict.text(replay=replay(self.path) if self.path else NOT_SAVED)

    def __str__(self) -> str:
        return self.text()

    def __bool__(self) -> bool:
        return self.ok

    def _repr_html_(self) -> str:
        from moeracle.properties.report.html.notebook import notebook_page

        return notebook_page(self.verdict, self.text())


def replay(path: Path) -> str:
    """Return the command that judges saved tensors again."""
    import shlex

    return f"moeracle judge {shlex.quote(str(path))}"
