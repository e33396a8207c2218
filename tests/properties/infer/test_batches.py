"""Batch invariance and casts of scales from outputs; the orders of two batch sizes, side by side."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moeracle.properties.infer import infer
from moeracle.ref.contracts.contract import contract
from moeracle.target.declaration import make_kernel

NO_BIAS: dict[str, Any] = {"layout": "gptq", "supports": lambda case: "bias" not in case.flags}


def in_order(x: torch.Tensor, W: torch.Tensor, backwards: bool = False) -> torch.Tensor:
    """Add the products of each row one after another, from the first or from the last."""
    products = (x[:, None, :].float() * W.float()).unbind(-1)
    return functools.reduce(torch.add, reversed(products) if backwards else products)


def by_batch(x: torch.Tensor, w: Any, bias: Any) -> torch.Tensor:
    """Sums of a single row go backwards."""
    return in_order(x, w.dequantize().to(x.dtype), backwards=len(x) == 1).to(x.dtype)


def in_one_order(x: torch.Tensor, w: Any, bias: Any) -> torch.Tensor:
    return in_order(x, w.dequantize().to(x.dtype)).to(x.dtype)


def test_batch_invariance_is_told_by_outputs() -> None:
    for fn, kept in ((in_one_order, True), (by_batch, False)):
        found = infer(make_kernel(fn, "int4_linear", name="one", dtypes="bf16", **NO_BIAS), k=32, rows=4)
        finding = found.finding("batch_invariant")
        assert finding is not None
        assert (finding.value, finding.status) == (kept, "measured")
        assert not found.contract.batch_invariant  # a promise is the kernel's to make


def test_check_prints_them_under_the_broken_promise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from moeracle.cli import main

    target = tmp_path / "late.py"
    head = "import functools\nfrom typing import Any\n\nimport torch\n\nimport moeracle\n\n\n"
    declared = "'int4_linear', layout='gptq', dtypes='fp16', contract='grouped,batch_invariant=true'"
    body = f"{inspect.getsource(in_order)}\n\n@moeracle.kernel({declared})\n{inspect.getsource(by_batch)}"
    target.write_text(head + body)
    case = "int4_linear/T4-N8-K32-G32/fp16/gptq-sym/-/cancelling/s1"
    assert main(["check", str(target), "--case", case, "--in-process"]) == 1
    shown = capfd.readouterr().out
    assert "order of sums at T = 4: fma (" in shown
    assert "order of sums at T = 1: fma/reversed (" in shown


@pytest.mark.parametrize(("dtype", "word", "cast"), [("bf16", "scale16", True), ("fp16", "scale32", False)])
def test_a_cast_of_scales_is_told_by_outputs(dtype: str, word: str, cast: bool) -> None:
    def kernel(x: torch.Tensor, w: Any, bias: Any) -> torch.Tensor:
        read = replace(w, scale=w.scale.to(x.dtype)) if cast else w
        return in_order(x, read.dequantize().to(x.dtype)).to(x.dtype)

    found = infer(make_kernel(kernel, "int4_linear", name="one", dtypes=dtype, weights=word, **NO_BIAS), k=32, rows=4)
    finding = found.finding("scale_cast")
    assert finding is not None
    assert (finding.value, finding.status) == (cast, "measured")
    assert found.contract.scale_cast is cast
    assert contract(found.text).scale_cast is cast
