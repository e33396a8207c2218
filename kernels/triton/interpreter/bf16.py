"""Correct bf16 for Triton's interpreter: operands are widened to fp32 exactly, results rounded once, to nearest even.

For +, -, *, / and square root this is the correctly rounded bf16 result (24 >= 2*8+2 bits). `fma` goes through fp64 and
a round to odd. Sums are fp32 and rounded once at the end, where a GPU may round each step. A dot of 16-bit operands is
summed in fp64 per tile and added to the fp32 accumulator with one rounding, so that a row's result does not depend on
which other rows share its tile, as BLAS's fp32 sum would. Atomics on bf16 and scaled dots of bf16 are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as ti

from moeracle.kernels.triton.interpreter import faster

BF16_NAN = np.uint16(0x7FC0)


def bf16_to_fp32(bits: np.ndarray) -> np.ndarray:
    """Widen uint16 bf16 bits to fp32, exactly."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def fp32_to_bf16(x: np.ndarray, *, toward_zero: bool = False) -> np.ndarray:
    """Round fp32 to bf16 bits (uint16), to nearest even or toward zero; every NaN becomes 0x7FC0."""
    x = np.ascontiguousarray(x, dtype=np.float32).reshape(np.shape(x))  # keep 0-d shapes
    bits = x.view(np.uint32)
    tie_to_even = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = bits if toward_zero else bits + tie_to_even
    return np.where(np.isnan(x), BF16_NAN, (rounded >> np.uint32(16)).astype(np.uint16))


def fp64_to_fp32_odd(x: np.ndarray) -> np.ndarray:
    """Round fp64 to fp32 so that a second rounding to at most 22 bits is the correct single rounding (round to odd)."""
    with np.errstate(over="ignore"):
        y = np.asarray(x, dtype=np.float64).astype(np.float32)
    step = np.where(np.abs(y.astype(np.float64)) > np.abs(x), -1, 1)
    nudge = (y.astype(np.float64) != x) & np.isfinite(x) & ((y.view(np.int32) & 1) == 0)
    return (y.view(np.int32) + np.where(nudge, step, 0).astype(np.int32)).view(np.float32)


def fma_bf16(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return the bf16 bits of x*y + z, rounded once; operands are bf16 bits."""
    product = bf16_to_fp32(x).astype(np.float64) * bf16_to_fp32(y)  # exact: 16 bits, exponents within fp64's
    addend = bf16_to_fp32(z).astype(np.float64)
    total = product + addend
    back = total - product  # TwoSum: what the fp64 addition lost, as its sign only
    lost = (product - (total - back)) + (addend - back)
    up = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    odd = np.isfinite(total) & (lost != 0) & ((np.atleast_1d(total).view(np.int64) & 1) == 0).reshape(np.shape(total))
    return fp32_to_bf16(fp64_to_fp32_odd(np.where(odd, up, total)))


def _is_bf16(handle: Any) -> bool:
    return isinstance(handle, ti.TensorHandle) and handle.dtype.scalar == tl.bfloat16 and handle.data.dtype == np.uint16


def _wide(handle: Any) -> Any:
    return ti.TensorHandle(bf16_to_fp32(handle.data), tl.float32) if _is_bf16(handle) else handle


def _narrow(handle: Any) -> Any:
    if handle.data.dtype == np.bool_:  # a comparison
        return ti.TensorHandle(handle.data, tl.int1)
    return ti.TensorHandle(fp32_to_bf16(handle.data), tl.bfloat16)


def _elementwise(original: Callable[..., Any]) -> Callable[..., Any]:
    def op(self: Any, *args: Any) -> Any:
        with np.errstate(all="ignore"):  # inf - inf is a NaN on a GPU, not a warning
            if np.where in args or not any(map(_is_bf16, args)):  # a select moves bits and rounds nothing
                return original(self, *args)
            return _narrow(original(self, *map(_wide, args)))

    return op


def _cast(original: Callable[..., Any]) -> Callable[..., Any]:
    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar != tl.bfloat16:
            return original(self, _wide(src), dst_type)
        return src if _is_bf16(src) else ti.TensorHandle(fp32_to_bf16(src.data.astype(np.float32)), tl.bfloat16)

    return cast_impl


def _cast_rounded(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if dst_type.scalar != tl.bfloat16:
            return original(self, _wide(src), dst_type, rounding_mode)
        wide = _wide(src)
        if wide.dtype.scalar != tl.float32:
            wide = original(self, wide, tl.float32, rounding_mode)
        toward_zero = rounding_mode == ti._ir.ROUNDING_MODE.RTZ
        return ti.TensorHandle(fp32_to_bf16(wide.data, toward_zero=toward_zero), tl.bfloat16)

    return create_fp_to_fp


def _dot(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        a, b = _wide(a), _wide(b)
        to_fp32 = d.data.dtype == np.float32 and a.data.dtype in (np.float16, np.float32)
        if not to_fp32:  # fp8, int8, or an fp16 accumulator
            return original(self, a, b, d, *precision)
        return ti.TensorHandle(_dot_fp64(a.data, b.data, d.data), tl.float32)

    return create_dot


def _dot_fp64(a: np.ndarray, b: np.ndarray, d: np.ndarray) -> np.ndarray:
    # torch, because it keeps to torch.set_num_threads where numpy's BLAS starts threads of its own.
    product = torch.matmul(torch.from_numpy(a.astype(np.float64)), torch.from_numpy(b.astype(np.float64)))
    with np.errstate(over="ignore", invalid="ignore"):
        return (product.numpy() + d).astype(np.float32)


def _fma(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if not _is_bf16(z):
            return original(self, x, y, z)
        return ti.TensorHandle(fma_bf16(x.data, y.data, z.data), tl.bfloat16)

    return create_fma


def _refuse(original: Callable[..., Any], what: str) -> Callable[..., Any]:
    def refused(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(map(_is_bf16, args)):
            raise NotImplementedError(f"{what} of bf16 in Triton's interpreter is wrong and has no correction here")
        return original(self, *args, **kwargs)

    return refused


def _wide_tensor(x: Any) -> Any:
    shape = list(x.handle.data.shape)
    return tl.core.tensor(_wide(x.handle), tl.block_type(tl.float32, shape) if shape else tl.float32)


def _narrow_tensor(x: Any) -> Any:
    if x.dtype != tl.float32:  # the index of an argmax
        return x
    shape = list(x.handle.data.shape)
    return tl.core.tensor(_narrow(x.handle), tl.block_type(tl.bfloat16, shape) if x.type.is_block() else tl.bfloat16)


def _reduction(original: Callable[..., Any]) -> Callable[..., Any]:
    def reduction(self: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
        one = input[0] if isinstance(input, tuple) else input
        if not _is_bf16(one.handle):
            return original(self, input, *args, **kwargs)
        out = original(self, _wide_tensor(one), *args, **kwargs)
        return type(out)(map(_narrow_tensor, out)) if isinstance(out, tuple | list) else _narrow_tensor(out)

    return reduction


def _index_of_any_shape(original: Callable[..., Any]) -> Callable[..., Any]:
    # numpy 2.4 refuses int() of a one-element array, which triton 3.6 uses for every `range` over a runtime bound.
    def _patch_lang_tensor(tensor: Any, *scope: Any) -> None:
        original(tensor, *scope)

        def index(self: Any) -> int:
            return int(self.handle.data.item())

        if scope:
            scope[0].set_attr(tensor, "__index__", index)
        else:
            tensor.__index__ = index

    return _patch_lang_tensor


def _patched_once(original: Callable[..., Any]) -> Callable[..., Any]:
    # Triton looks for functions of `tl` to replace again at each call of a device function; a launch has replaced them.
    def _patch_lang(fn: Any) -> Any:
        modules = [m for m in fn.__globals__.values() if m is tl or m is tl.core]
        in_a_launch = not tl.core.is_builtin(tl.load)
        if in_a_launch and modules and not any(tl.core.is_builtin(m.load) for m in modules):
            return None
        return original(fn)

    return _patch_lang


def is_corrected() -> bool:
    """Say whether `apply` has run in this process."""
    return getattr(ti.InterpreterBuilder, "_moeracle_bf16", False)


def apply() -> None:
    """Install the corrections in triton.runtime.interpreter; a second call changes nothing."""
    if is_corrected():
        return
    builder = ti.InterpreterBuilder
    # Every lambda of the builder (create_fadd, create_fcmpOLT, create_floor ...) ends in one of the first four.
    for name, wrap in {
        "binary_op": _elementwise,
        "unary_op": _elementwise,
        "ternary_op": _elementwise,
        "cast_impl": _cast,
        "create_rsqrt": _elementwise,
        "create_erf": _elementwise,
        "create_fp_to_fp": _cast_rounded,
        "create_dot": _dot,
        "create_fma": _fma,
        "create_atomic_rmw": lambda f: _refuse(f, "an atomic"),
        "create_dot_scaled": lambda f: _refuse(f, "a scaled dot"),
    }.items():
        if hasattr(builder, name):
            setattr(builder, name, wrap(getattr(builder, name)))
    builder.get_bf16 = lambda self, value: ti.TensorHandle(fp32_to_bf16(np.array([value], np.float32)), tl.bfloat16)
    for cls, names in ((ti.ReduceOps, ("sum", "min_max")), (ti.ScanOps, ("cumsum", "cumprod"))):
        for name in names:
            setattr(cls, name, _reduction(getattr(cls, name)))
    if not ti.interpreter_builder.options.debug:
        # The overflow checks of every integer + and * are calculated and then thrown away; they take half the time.
        options = dataclasses.replace(ti.interpreter_builder.options, sanitize_overflow=False)
        ti.interpreter_builder.options = options
    faster.apply()
    ti._patch_lang = _patched_once(ti._patch_lang)
    ti._patch_lang_tensor = _index_of_any_shape(ti._patch_lang_tensor)
    builder._moeracle_bf16 = True
