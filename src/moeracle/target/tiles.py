"""Tiles that a user's kernel declares: the values of keyword parameters that it may be called with.

    @moeracle.kernel("int4_linear", tiles={"block_m": (16, 32), "block_n": (64, 128)}, …)
    def my_linear(x, w, bias, *, block_m=16, block_n=64): …

A tile's text names it everywhere, in a TARGET too: `my_kernels.py:my_linear[block_m=32,block_n=64]` is the kernel with
that tile, `my_linear[*]` every tile in the order declared, `my_linear` alone the defaults of the function.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice, product
from typing import Any

from moeracle.ref.errors import require

MOST = 4096  # tiles of one kernel
EVERY = "*"
_VALUE = re.compile(r"[A-Za-z0-9_.+-]+")
_WORDS = {"True": True, "False": False}


def tile_text(values: Mapping[str, Any]) -> str:
    """Return a tile's text.

    Args:
        values: by parameter.
    """
    return ",".join(f"{name}={value}" for name, value in values.items())


def tile_of(text: str) -> dict[str, Any]:
    """Return a tile's values by parameter.

    Args:
        text: as `tile_text` makes it.
    """
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name: _value(value) for name, _, value in pairs}


def _value(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def tile_texts(
    fn: Callable[..., Any], given: Mapping[str, Iterable[Any]] | Iterable[Mapping[str, Any]]
) -> tuple[str, ...]:
    """Return the texts of the tiles that a kernel declares, each once.

    Args:
        fn: the kernel's function, which has a keyword-only parameter with a default for each name.
        given: values by parameter, of which all combinations are tiles; or the tiles themselves.
    Raises:
        ValueError: something else, none or too many of them, a value that is no plain number, bool or word, or a
            parameter that the function does not have.
    """
    try:
        if isinstance(given, Mapping):
            choices = {
                str(name): (values,) if isinstance(values, str) else tuple(values) for name, values in given.items()
            }
            found = [dict(zip(choices, values, strict=True)) for values in islice(product(*choices.values()), MOST + 1)]
        else:
            found = [dict(tile) for tile in islice(given, MOST + 1)]
    except (TypeError, ValueError):
        raise ValueError(
            f"tiles: got {given!r}, must be values by parameter or a list of such tiles: {{'block_m': (16, 32)}}"
        ) from None
    require(0 < len(found) <= MOST and all(found), f"tiles: got {len(found)} of them, must be 1 to {MOST}, none empty")
    keyword = {
        p.name for p in inspect.signature(fn).parameters.values() if p.kind == p.KEYWORD_ONLY and p.default != p.empty
    }
    for tile in found:
        for name, value in tile.items():
            require(
                name in keyword,
                f"tiles: got {name!r}, must be a keyword-only parameter of the function, with a default",
            )
            plain = isinstance(value, (bool, int, float, str)) and _VALUE.fullmatch(str(value)) is not None
            same = plain and tile_of(f"x={value}")["x"] == value and type(tile_of(f"x={value}")["x"]) is type(value)
            require(same, f"tiles: got {name}={value!r}, must be a number, True, False or a word of letters and digits")
    return tuple(dict.fromkeys(map(tile_text, found)))


def with_values(fn: Callable[..., Any], values: Mapping[str, Any], whole: bool = True) -> Callable[..., Any]:
    """Return a function that is called with a tile's values.

    Args:
        fn: the kernel's function, or its `supports` or `schedule`.
        values: by parameter.
        whole: it takes all of them; else those that it has a parameter for.
    """
    if not whole:
        parameters = inspect.signature(fn).parameters
        values = {name: value for name, value in values.items() if name in parameters}

    @functools.wraps(fn)
    def tiled(*args: Any) -> Any:
        return fn(*args, **values)

    return tiled
