"""Driving one GEMM of a kernel: from activations, codes and scales to what it stored, through the op's own arguments.

A probe is a row of x. Many rows go in one call; how many at most, and of what sizes, the kernel's `why_not` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from moeracle.ref.align import moe_align_block_size
from moeracle.ref.errors import require, unknown
from moeracle.ref.weight import Int4Weight

from ..case import TORCH_DTYPE, Case
from ..optable import ZERO_LAYOUT
from ..trial import KernelLike
from .calls import Calls, ProbeError

GEMMS = ("int4_linear", "grouped_gemm", "padded_gemm", "moe_w4a16", "int8_lm_head")
ROWS = (256, 128, 64, 32, 16, 8, 4, 2, 1)
COLUMNS = (8, 16, 32, 64, 128, 256)
GROUPS = (32, 64, 128, 16, -1)
INPUTS = (2048, 1024, 512, 256, 4096, 128, 64)


@dataclass(frozen=True)
class Site:
    """The sizes and forms at which a kernel is probed.

    Args:
        case: the plainest case of that kind; its T is how many rows one call has.
        N, K, G: of the GEMM whose outputs are read; G resolved.
        stage: which stage holds them: "out", or "h" of moe_w4a16.
    """

    case: Case
    N: int
    K: int
    G: int
    stage: str = "out"

    @property
    def dtype(self) -> torch.dtype:
        """The activations'."""
        return TORCH_DTYPE[self.case.dtype]


def site_of(case: Case) -> Site:
    """Return the site of a case's GEMM: of moe_w4a16 the first."""
    sizes = case.sizes
    K = sizes["H"] if case.op == "moe_w4a16" else sizes["K"]
    G = sizes["G"] if sizes["G"] > 0 else K
    if case.op == "moe_w4a16":
        return Site(case, 2 * sizes["I"], K, G, "h")
    return Site(case, sizes["V"] if "V" in sizes else sizes["N"], K, G)


def _shapes(op: str, k: int | None, rows: int | None) -> Iterator[dict[str, int]]:
    """Yield dimensions to ask for, the best first."""
    inputs = INPUTS if k is None else (k,)
    if op == "moe_w4a16":
        inputs = INPUTS[2:] + INPUTS[:2] if k is None else inputs
    for K in inputs:
        for G in GROUPS:
            if G > K:
                continue
            for N in COLUMNS:
                for T in ROWS if rows is None else [rows, *(T for T in ROWS if rows > T)]:
                    yield from _dims(op, T, N, K, G)


def _dims(op: str, T: int, N: int, K: int, G: int) -> Iterator[dict[str, int]]:
    if op == "int4_linear":
        yield {"T": T, "N": N, "K": K, "G": G}
    elif op == "grouped_gemm":
        yield {"T": T, "E": 1, "k": 1, "N": N, "K": K, "G": G}
    elif op == "padded_gemm":
        for B in (64, 16, 32, 128):
            yield {"T": T, "E": 1, "k": 1, "N": N, "K": K, "G": G, "B": B}
    elif op == "int8_lm_head":
        yield {"T": T, "V": N, "K": K, "G": G}
    else:
        I = max(N, G)
        yield {"T": T, "E": 8, "k": 1, "H": K, "I": I, "G": G}


def find_site(
    kernel: KernelLike,
    *,
    dtype: str | None = None,
    k: int | None = None,
    zero: str | None = None,
    rows: int | None = None,
) -> Site:
    """Return the largest convenient sizes that the kernel takes.

    Args:
        kernel: a record with op, layout, zeros, dtypes and why_not.
        dtype: "bf16" or "fp16"; None: bf16 if the kernel takes it.
        k: the length of its dot products, or None: 2048 (512 for moe_w4a16), or what else it takes.
        zero: a zero-point form of its layout, or None: "sym" if it reads that.
        rows: rows a call, or None: 256, or fewer where the kernel takes no more.
    Raises:
        ValueError: an op without a GEMM, a dtype or zero-point form that the kernel does not take, or no sizes at all.
    """
    op = kernel.op
    if op not in GEMMS:
        raise unknown("infer op", op, GEMMS)
    require(k is None or k >= 32, f"k: got {k}, must be at least 32 (a dot product of fewer terms hides its order)")
    require(rows is None or rows >= 1, f"rows: got {rows}, must be at least 1")
    require(k is None or k % 8 == 0, f"k: got {k}, must be a multiple of 8 (packed words are whole)")
    taken = tuple(d for d in getattr(kernel, "dtypes", ("bf16", "fp16")) if d in ("bf16", "fp16"))
    require(dtype is None or dtype in taken, f"dtype: got {dtype}, must be {' or '.join(taken)} for {kernel.name}")
    names: dict[str, str] = {"dtype": dtype or ("bf16" if "bf16" in taken else taken[0])}
    if op != "int8_lm_head":
        names["layout"] = getattr(kernel, "layout", None) or "exllama"
        forms = [z for z in ZERO_LAYOUT[names["layout"]] if z in getattr(kernel, "zeros", ("sym",))]
        if zero is not None and zero not in forms:
            raise unknown("zero", zero, forms)
        names["zero"] = zero or forms[0]
    reasons: dict[str, int] = {}
    for dims in _shapes(op, k, rows):
        try:
            case = Case.of(op, **names, **dims)  # type: ignore[arg-type]
        except ValueError as error:
            reasons[str(error)] = reasons.get(str(error), 0) + 1
            continue
        why = kernel.why_not(case)
        if why is None:
            return site_of(case)
        reasons[why] = reasons.get(why, 0) + 1
    most = max(reasons, key=lambda why: reasons[why])
    raise ValueError(f"infer: {kernel.name} takes none of the sizes that probing asks for ({most}); name one with --k")


class Dots:
    """One GEMM of a kernel as probes use it, always with as many rows a call.

    out[p, n] = sum_k x[p, k] * q[n, k] * s[n, k//G], as it was stored.

    Args:
        calls: runs the kernel.
        site: at which sizes.
    """

    def __init__(self, calls: Calls, site: Site) -> None:
        self.calls, self.site = calls, site
        self.limit = site.case.T
        self.N, self.K, self.G, self.dtype = site.N, site.K, site.G, site.dtype

    def __call__(
        self, x: torch.Tensor, q: torch.Tensor | None = None, s: torch.Tensor | None = None, *, times: int = 0
    ) -> torch.Tensor:
        """Return the stored values [P, N] in D.

        Args:
            x: [P, K], any float dtype, values of D.
            q: [N, K], integers u - 8 in -8..7, or None: all 1.
            s: [N, K/G], values of D, or None: all 1.
            times: run each call that many times more, and note in calls.repeats whether the bits stay.
        """
        N, K, G, rows = self.N, self.K, self.G, len(x)
        q = torch.ones(N, K) if q is None else q
        s = torch.ones(N, K // G) if s is None else s
        # Every call has as many rows: a kernel may choose its tile, and so its order, by how many there are.
        x = torch.nn.functional.pad(x.to(self.dtype), (0, 0, 0, -len(x) % self.limit))
        rest = self._weights(q, s)
        parts = [self._call(part, rest, times) for part in x.split(self.limit)]
        return torch.cat(parts)[:rows] if parts else x.new_zeros(0, N)

    def _weights(self, q: torch.Tensor, s: torch.Tensor) -> dict[str, Any]:
        case, op = self.site.case, self.site.case.op
        if op == "int8_lm_head":
            return {"codes": q.to(torch.int8), "scale": s.float() if case.G != -1 else s[:, 0].float()}
        if op == "int4_linear":
            return {"w": self.pack(q, s)}
        if op != "moe_w4a16":
            return {"w": self.pack(q[None], s[None])}
        E, I, H = case.E, case.I, case.H
        none = self.pack(torch.zeros(E, H, I), torch.ones(E, H, I // self.G))
        return {"w13": self.pack(q.expand(E, -1, -1), s.expand(E, -1, -1)), "w2": none}

    def pack(self, q: torch.Tensor, s: torch.Tensor) -> Int4Weight:
        """Return the weight q * s, codes q + 8, in the layout and zero-point form of this site."""
        case = self.site.case
        zero = None if case.zero_layout is None else torch.full(s.shape, 8, dtype=torch.uint8)
        return Int4Weight.from_codes(
            (q + 8).to(torch.uint8), s.to(self.dtype).contiguous(), zero,
            layout=case.layout, zero_layout=case.zero_layout or "unpacked",
        )  # fmt: skip

    def answers(self) -> bool:
        """Say whether the kernel returns the stage that holds this GEMM's outputs."""
        x, w = torch.zeros(self.limit, self.K, dtype=self.dtype), torch.ones(self.N, self.K)
        rest = self._weights(w, torch.ones(self.N, self.K // self.G))
        return self.site.stage in self.calls.run(ARGUMENTS[self.site.case.op](self.site.case, x, rest))

    def _call(self, x: torch.Tensor, w: dict[str, Any], times: int) -> torch.Tensor:
        case, stage = self.site.case, self.site.stage
        out = self.calls.run(ARGUMENTS[case.op](case, x, w), times, stage).get(stage)
        form = "nothing" if out is None else f"{out.dtype} {list(out.shape)}"
        wanted = f"{self.dtype} {[len(x), self.N]}"
        if out is None or form != wanted:
            raise ProbeError(f"{self.calls.kernel.name} returned {form} as {stage}, must be {wanted}")
        return out


def _padded(case: Case, x: torch.Tensor, w: dict[str, Any]) -> dict[str, Any]:
    ids, experts, end = moe_align_block_size(torch.zeros(len(x), 1, dtype=torch.int32), case.B, 1)
    blocks = {"sorted_token_ids": ids, "expert_ids": experts, "num_tokens_post_padded": end}
    return {"x": x, **w, **blocks, "topk_weights": None, "top_k": 1}


def _layer(case: Case, x: torch.Tensor, w: dict[str, Any]) -> dict[str, Any]:
    ids = torch.zeros(len(x), 1, dtype=torch.int32)
    return {"x": x, **w, "topk_weights": torch.ones(len(x), 1), "topk_ids": ids}


ARGUMENTS: dict[str, Callable[[Case, torch.Tensor, dict[str, Any]], dict[str, Any]]] = {
    "int4_linear": lambda case, x, w: {"x": x, **w, "bias": None},
    "grouped_gemm": lambda case, x, w: {"x": x, **w, "expert_offsets": torch.tensor([0, len(x)])},
    "padded_gemm": _padded,
    "moe_w4a16": _layer,
    "int8_lm_head": lambda case, x, w: {"x": x, **w, "bias": None},
}
