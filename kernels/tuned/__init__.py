"""Tuning tables: which tile a GEMM of some shape takes on some GPU, as data files in this folder.

    kernels/tuned/<gpu>.json   {"gpu": "NVIDIA H200", "arch": "sm_90", "made_by": {…}, "rows": [row, …]}
    row                        {"op", "N", "K", "E", "G", "dtype", "rows_per_expert", "tile": {…}, "us", …}

<gpu> is the device's name in lower case with dashes ("nvidia-h200") or, for every GPU of an architecture, "sm_90",
"gfx1151", …; the device's own table is asked first. `rows_per_expert` is a bucket's upper end: a launch with r = R / E
routed rows an expert takes the row with the smallest bucket >= r, or the largest bucket there is, if that is near
(`pick`). E is 1 for a dense GEMM. `made_by` says for each op which command wrote its rows, with which versions.
`tile` holds the fields of tiles.Tile, or whatever else the op's kernel reads, and is passed on as it is; a row may also
say "us" (measured), "registers", "spills" (compiled) or any other note, which nobody reads back.

A machine may have a table of its own beside these (`cached_path`): what kernels/tune/at_load.py found for the weights
that were loaded. It is asked last, and named by a digest of what its figures depend on.

Written by `moeracle kernels tune` (measured, on a GPU) and `moeracle kernels tune --arch gfx…` (by what the compiler
says); never by hand, and never keyed by a model's name. A shape that no table holds is no error: `lookup`
returns None, the caller takes its default, and `untuned()` says which shapes that happened to.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import torch

from moeracle.files import FIRST_ERROR, OPEN, locked, parse_json, read_bytes, write_atomically

Tile = TypeVar("Tile")
FOLDER = Path(__file__).resolve().parent
KEY = ("op", "N", "K", "E", "G", "dtype")
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
MOST, FEWEST = 2.0, 8.0  # how far a bucket reaches beyond its own rows, and below them
_UNTUNED: dict[tuple[Any, ...], str] = {}
_FORCED: dict[str, Mapping[str, Any]] = {}


@dataclass
class Row:
    """One row of a table, as far as it is read back."""

    op: str
    N: int
    K: int
    E: int
    G: int
    dtype: str
    rows_per_expert: float
    tile: dict[str, int | float | str | bool | dict[str, int | float | str | bool | None] | None]

    __pydantic_config__: ClassVar[Any] = OPEN


@dataclass
class Table:
    """A table's file."""

    rows: Annotated[list[Row], FIRST_ERROR]
    gpu: str = ""
    arch: str = ""
    made_by: dict[str, Any] = field(default_factory=dict)

    __pydantic_config__: ClassVar[Any] = OPEN


def slug(name: str) -> str:
    """Return a device's name as a file's: "NVIDIA H200" → "nvidia-h200"."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")


@cache
def _places(index: int, hip: str | None) -> tuple[str, ...]:
    properties: Any = torch.cuda.get_device_properties(index)
    if hip is not None:
        arch = str(getattr(properties, "gcnArchName", "")).partition(":")[0]
    else:
        arch = f"sm_{properties.major}{properties.minor}"
    return tuple(dict.fromkeys(place for place in (slug(properties.name), arch) if place))


def places(device: torch.device | str) -> tuple[str, ...]:
    """Return the names of the tables that a device asks, its own first; none for a CPU.

    Args:
        device: where the tensors are.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return ()
    return _places(torch.cuda.current_device() if device.index is None else device.index, torch.version.hip)


@cache
def load(place: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return one table, rows by (op, N, K, E, G, dtype) in ascending rows_per_expert; empty where there is none.

    Args:
        place: a file's name in kernels/tuned/ without its ending.
    Raises:
        ValueError: the file is no such table; its name and the row are said.
    """
    path = FOLDER / f"{place}.json"
    if not path.is_file():
        return {}
    return _by_key(_read(path)["rows"])


@cache
def digest() -> str:
    """Return what a machine's own tables depend on, in twelve letters: Triton's version and the kernels' sources."""
    found = hashlib.sha256()
    with suppress(PackageNotFoundError):
        found.update(version("triton").encode())
    for folder in ("hopper", "triton"):
        for path in sorted((FOLDER.parent / folder).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def cached_path(place: str) -> Path:
    """Return where a machine's own table is: in $MOERACLE_CACHE, or in the user's folder of caches.

    Args:
        place: as in `load`.
    """
    own = os.environ.get("MOERACLE_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(own) if own else home / "moeracle") / f"{place}-{digest()}.json"


@cache
def load_cached(place: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return a machine's own table, as `load` does: as it is when this process first asks, or wrote it last.

    Args:
        place: as in `load`.
    Raises:
        ValueError: as `load`.
    """
    path = cached_path(place)
    return _by_key(_read(path)["rows"]) if path.is_file() else {}


def _by_key(rows: Iterable[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[field] for field in KEY), []).append(row)
    for of_key in found.values():
        of_key.sort(key=lambda row: row["rows_per_expert"])
    return found


def keep(place: str, gpu: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Add rows to a machine's own table; several processes may.

    Args:
        place: the table's name.
        gpu: what was measured on.
        rows: as in the module's text.
    Returns:
        The file written.
    """
    path = cached_path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        written = _write(path, gpu, "", {}, rows)
    load_cached.cache_clear()
    return written


def _read(path: Path) -> dict[str, Any]:
    """Return a table as plain values, checked; unchecked where there is no pydantic, as on a GPU that only runs."""
    data = read_bytes(path, "tuned table")
    with suppress(ModuleNotFoundError):
        parse_json(data, Table, path.name)
    return dict(json.loads(data))


def pick(rows: Iterable[Mapping[str, Any]], rows_per_expert: float) -> dict[str, Any] | None:
    """Return the row whose bucket holds `rows_per_expert`, or None where the table has nothing near.

    The smallest bucket that is not below it, else the largest; but a bucket speaks for no more than twice its rows, and
    for no less than an eighth of them.

    Args:
        rows: of one shape, in ascending rows_per_expert.
        rows_per_expert: r = R / E.
    """
    ordered = list(rows)
    row = next((row for row in ordered if row["rows_per_expert"] >= rows_per_expert), ordered[-1] if ordered else None)
    if row is None or not row["rows_per_expert"] / FEWEST <= rows_per_expert <= row["rows_per_expert"] * MOST:
        return None
    return dict(row)


def tables(
    device: torch.device | str, dtype: str, own: str | None = None
) -> Iterator[tuple[dict[tuple[Any, ...], list[dict[str, Any]]], str]]:
    """Yield the tables that a device asks and their rows' dtype: its own, its architecture's, this machine's.

    Args:
        device: where the tensors are.
        dtype: of rows of the tables in this folder.
        own: of rows of this machine's table; None: the same.
    """
    asked = places(device)
    for place in asked:
        yield load(place), dtype
    if asked:
        yield load_cached(asked[0]), own or dtype


def lookup(
    op: str,
    N: int,
    K: int,
    E: int,
    G: int,
    dtype: torch.dtype | str,
    rows: int,
    device: torch.device | str,
    own: str | None = None,
) -> dict[str, Any] | None:
    """Return the tuned tile's fields for one launch, or None: the caller then takes its default.

    Args:
        op: the op, or a kernel's own name where an op has several ("decode_gemm").
        N, K, E, G: sizes of the weight; E = 1 for a dense one; G resolved (K for one group a row).
        dtype: of the activations.
        rows: R = T * top_k, rows of the whole launch.
        device: where the tensors are.
        own: what this machine's own table has in place of the dtype: more of what its figures depend on.
    Returns:
        The fields of a Tile, and whatever else the table gives the kernel.
    """
    if op in _FORCED:
        return dict(_FORCED[op])
    kind = dtype if isinstance(dtype, str) else DTYPES.get(dtype, str(dtype))
    key = (op, N, K, E, G, kind)
    asked = places(device)
    for table, of_rows in tables(device, kind, own):
        row = pick(table.get((*key[:-1], of_rows), ()), rows / max(E, 1))
        if row is not None:
            return dict(row["tile"])
    if asked and key not in _UNTUNED:
        _UNTUNED[key] = f"{op} N={N} K={K} E={E} G={G} {kind}: untuned on {asked[0]}, a model's or the default tile"
    return None


def made(make: Callable[..., Tile], fields: Mapping[str, Any], op: str) -> Tile:
    """Return the tile of a table's row.

    Args:
        make: the tile's class.
        fields: the row's tile.
        op: as the table calls it.
    Raises:
        ValueError: in one line: these are not the fields of such a tile.
    """
    try:
        return make(**fields)
    except TypeError as error:
        raise ValueError(f"tuned table: got tile {dict(fields)} for {op}, which is none ({error})") from None


@contextmanager
def forced(tiles: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Within this block let `lookup` answer with these tiles, by op, whatever the tables say: how tuning tries one."""
    before = dict(_FORCED)
    _FORCED.update(tiles)
    try:
        yield
    finally:
        _FORCED.clear()
        _FORCED.update(before)


def untuned() -> list[str]:
    """List, one line each, the shapes that no table of this process's devices held."""
    return list(_UNTUNED.values())


def write(place: str, gpu: str, arch: str, made_by: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a table, one row a line; rows of the same shape and bucket replace those of the file, others stay.

    Args:
        place: the file's name without its ending.
        gpu, arch: what was measured or compiled for.
        made_by: the command and versions.
        rows: as in the module's text.
    Returns:
        The file written.
    """
    written = _write(FOLDER / f"{place}.json", gpu, arch, made_by, rows)
    load.cache_clear()
    return written


def _write(path: Path, gpu: str, arch: str, made_by: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Path:
    table = _read(path) if path.is_file() else {}
    old, new = table.get("rows", []), [dict(row) for row in rows]
    writers = table.get("made_by", {})
    if "command" in writers:  # one for all ops, as written before there were several
        writers = {row["op"]: writers for row in old}
    writers |= {row["op"]: dict(made_by) for row in new}
    by_key = {(*(row[field] for field in KEY), row["rows_per_expert"]): row for row in [*old, *new]}
    lines = ",\n  ".join(
        json.dumps(by_key[key]) for key in sorted(by_key, key=lambda key: (*map(str, key[:6]), f"{key[6]:012.4f}"))
    )
    head = {"gpu": gpu, "arch": arch, "made_by": writers}
    text = json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n  {lines}\n ]\n}}\n'
    with suppress(ModuleNotFoundError):
        parse_json(text.encode(), Table, path.name)
    return write_atomically(path, text)
