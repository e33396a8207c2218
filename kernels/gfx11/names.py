"""Kernel names as the source has them: C++ symbols demangled by the C++ runtime of this process."""

from __future__ import annotations

import ctypes
import re
from functools import cache
from itertools import pairwise
from typing import Any

# Spellings of one type: compilers and C++ runtimes disagree.
SAME = (
    (r"\bstd::bfloat16_t\b|\b__hip_bfloat16\b|\bhip_bfloat16\b", "__bf16"),
    (r"\bdecimal64\b", "__bf16"),  # DF16b, which runtimes before GCC 13 do not know, is shown to them as this
    (r"\bhalf\b|\b__half\b|\b_Float16\b|\bstd::float16_t\b", "_Float16"),
    (r"\bunsigned int\b", "unsigned"),
    (r"\((?:int|unsigned|long|unsigned long|bool|char|short)\)(?=-?\d)", ""),  # (int)4 in template arguments
)


@cache
def _runtime() -> Any:
    for name in ("libstdc++.so.6", "libc++abi.so.1", "libc++abi.dylib", None):
        try:
            found = ctypes.CDLL(name)
            found.__cxa_demangle.restype = ctypes.c_void_p
            return found
        except (OSError, AttributeError):
            continue
    return None


def demangled(symbol: str) -> str:
    """Return a C++ symbol's name with its types, or the symbol itself where it is none (or no C++ runtime is here)."""
    if not symbol.startswith("_Z") or _runtime() is None:
        return symbol
    for text in (symbol, symbol.replace("DF16b", "Dd").replace("DF16_", "Dh")):
        status = ctypes.c_int(0)
        out = _runtime().__cxa_demangle(text.encode(), None, None, ctypes.byref(status))
        if out:
            name = ctypes.string_at(out).decode()
            ctypes.CDLL(None).free(ctypes.c_void_p(out))
            return name
    return symbol


def spelled(name: str) -> str:
    """Return a name in one spelling: types that are one, no spaces, no return type."""
    for pattern, instead in SAME:
        name = re.sub(pattern, instead, name)
    name = re.sub(r"^void\s+", "", name)
    return re.sub(r"\s+", "", name)


def short(name: str) -> str:
    """Return a demangled name without its return type and parameters, as a source calls it."""
    types = parameters(name)
    if types is None:
        return name
    depth = 0
    for at in range(len(name) - 1, -1, -1):
        depth += (name[at] in ")>") - (name[at] in "(<")
        if depth == 0:
            return re.sub(r"^void\s+", "", name[:at])
    return name


def base(name: str) -> str:
    """Return the function's own name: without template arguments, parameters and namespaces."""
    cut = re.split(r"[<(]", re.sub(r"^void\s+", "", name.replace("(anonymous namespace)::", "")))[0]
    return cut.rpartition("::")[2].strip()


def parameters(name: str) -> list[str] | None:
    """Return the parameter types of a demangled name, or None where it has none written."""
    if not name.endswith(")"):
        return None
    depth, end, cuts = 0, len(name) - 1, [len(name) - 1]
    for at in range(end, -1, -1):
        letter = name[at]
        depth += (letter in ")>") - (letter in "(<")
        if letter == "," and depth == 1:
            cuts.append(at)
        if depth == 0:
            edges = [at, *reversed(cuts)]
            parts = [name[a + 1 : b].strip() for a, b in pairwise(edges)]
            return [p for p in parts if p]
    return None


def chosen(wanted: str | None, symbols: list[str], argument: str = "kernel") -> str:
    """Return the one symbol that a name means: the symbol itself, its demangled name, or a part that only one has.

    Template arguments with defaults may be left out.

    Args:
        wanted: None where there must be exactly one.
        symbols: of the kernels.
        argument: what messages call `wanted`.
    Raises:
        ValueError: none or several; they are listed.
    """
    shown = {s: demangled(s) for s in symbols}
    listed = "; ".join(shown.values()) or "none: the file holds no kernel"
    if wanted is None:
        if len(symbols) == 1:
            return symbols[0]
        raise ValueError(f"{argument}: got none, must be one of {listed}")
    if wanted in symbols:
        return wanted
    want = spelled(wanted)
    for matches in (
        [s for s, name in shown.items() if spelled(name) == want],
        [s for s, name in shown.items() if spelled(name).split("(")[0] == want],
        [s for s, name in shown.items() if base(name) == wanted],
        [s for s, name in shown.items() if want in spelled(name)],
        # Template arguments that have defaults may be left out.
        [s for s, name in shown.items() if want.endswith(">") and f"{want[:-1]}," in spelled(name)],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            several = "; ".join(shown[m] for m in matches)
            raise ValueError(f"{argument}: got {wanted!r}, which several are: {several}")
    raise ValueError(f"{argument}: got {wanted!r}, must be one of {listed}")
