"""Helpers with the signatures of other projects' comparisons, so that in a test of theirs one import changes.

Theirs log, pass NaN, or broadcast; these raise. Where a test also says what was computed (`op=`, its arguments and
`contract=` or `client=`), the output is judged and the tolerance is not asked.
"""

from __future__ import annotations

from typing import Any

import torch

from moeracle.tensors.errors import NotJudged
from moeracle.tensors.judge import assert_legal

__all__ = ["assert_close", "checkAllclose", "check_all_close"]


def assert_close(
    actual: torch.Tensor, expected: torch.Tensor, *args: Any, op: str | None = None, inputs: Any = None, **more: Any
) -> None:
    """Judge `actual` if the test says what was computed, else compare as torch.testing.assert_close does.

    Args:
        actual: what the kernel returned.
        expected: the test's own reference; not read where the output is judged.
        args: torch.testing.assert_close's.
        op: one of `moeracle op`; None compares.
        inputs: what the kernel was called with: a tuple in the op's order, or a dict by name.
        more: assert_legal's arguments (contract, client, layout, …) beside op; torch.testing.assert_close's otherwise.
    Raises:
        AssertionError: illegal, or not close.
        NotJudged: the tensors cannot be judged.
    """
    if op is None:
        torch.testing.assert_close(actual, expected, *args, **more)
        return
    for name in ("atol", "rtol", "equal_nan", "check_device", "check_dtype", "check_layout", "check_stride", "msg"):
        more.pop(name, None)
    if not isinstance(inputs, (tuple, list, dict, type(None))):
        raise NotJudged(f"inputs: got {type(inputs).__name__}, must be a tuple in the op's order, or a dict by name")
    named = dict(inputs) if isinstance(inputs, dict) else {}
    given = () if isinstance(inputs, dict) else tuple(inputs or ())
    assert_legal(op, actual, *given, **named, **more)


def check_all_close(
    a: torch.Tensor,
    b: torch.Tensor,
    rtol: float = 1e-2,
    atol: float = 1e-2,
    tol_err_ratio: float = 0.0,
    msg: str = "",
    printNum: int = 8,
    printLog: bool = True,
    *,
    op: str | None = None,
    inputs: Any = None,
    **more: Any,
) -> float:
    """Compare as aiter's checkAllclose is meant to, and raise where it logs.

    Args:
        a: the reference, as aiter passes it.
        b: what the kernel returned.
        rtol, atol: of every element; one that is NaN in either is not close.
        tol_err_ratio: the share of elements that need not be close; 0 unless the test asks for more.
        msg: begins the error.
        printNum, printLog: taken and not used.
        op, inputs, more: as `assert_close` takes them; then b is judged.
    Returns:
        The share of elements that are not close, at most tol_err_ratio; 0 where b was judged.
    Raises:
        AssertionError: illegal, or too many elements are not close, or shapes or dtypes differ.
        NotJudged: the tensors cannot be judged, or there is nothing to compare.
    Source: github.com/ROCm/aiter, aiter/test_common.py.
    """
    if op is not None:
        assert_close(b, a, op=op, inputs=inputs, **more)
        return 0.0
    for name, value in (("a", a), ("b", b)):
        if not isinstance(value, torch.Tensor):
            raise NotJudged(f"{msg}{name}: got {type(value).__name__}, must be a tensor")
    for name, number in (("rtol", rtol), ("atol", atol), ("tol_err_ratio", tol_err_ratio)):
        if not 0 <= number < float("inf"):
            raise NotJudged(f"{msg}{name}: got {number}, must be a finite number from 0 on")
    if a.shape != b.shape or a.dtype != b.dtype:
        raise AssertionError(f"{msg}got {b.dtype} {list(b.shape)}, must be {a.dtype} {list(a.shape)}")
    if not a.numel():
        raise NotJudged(f"{msg}nothing to compare: no elements")
    expected, got = a.double(), b.double()
    near = (expected == got) | ((expected - got).abs() <= atol + rtol * expected.abs())
    share = float((~near).double().mean())
    if share > tol_err_ratio:
        worst = (expected - got).abs().nan_to_num(torch.inf).max()
        raise AssertionError(f"{msg}{share:.2%} of the elements are not close, largest error {float(worst):.4g}")
    return share


checkAllclose = check_all_close  # noqa: N816 - aiter's name
