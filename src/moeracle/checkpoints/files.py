"""The files of a checkpoint: safetensors, one or many with an index, each opened lazily and checked before it is read.

The safetensors library validates a header (its length, every dtype, shape and range, overlaps, gaps and the file's
size) before anything is allocated. What is written here is which files belong together, and errors in plain words.
"""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import torch

from moeracle.files import read_json as read_by_schema
from moeracle.ref.errors import require

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
LONGEST_HEADER = 1 << 24  # bytes that are read again to say what is wrong
NO_PICKLE = (
    "is pickled: opening it would run whatever code its maker put in; "
    "convert it where you trust it (safetensors.torch.save_file) and give the .safetensors"
)


class TensorFiles:
    """The tensors of a checkpoint by name, whichever file each is in; nothing is read until it is asked for.

    Args:
        folder: where they lie.
        files: safetensors files, names in `folder`.
        metadata: the files' own metadata, merged.
    """

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.folder, self.files = folder, files
        self.metadata: dict[str, str] = {}
        self._file_of: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        for name in files:
            opened = self._open[name] = open_safetensors(folder / name)
            self.metadata |= opened.metadata() or {}
            names: list[str] = list(opened.keys())
            for tensor in names:
                first = self._file_of.setdefault(tensor, name)
                require(first == name, f"{folder}: tensor {shown(tensor)} is in {first} and in {name}, must be in one")

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def names(self) -> list[str]:
        """Return the tensors' names, sorted."""
        return sorted(self._file_of)

    def file_of(self, name: str) -> str:
        """Return the name of the file that holds a tensor."""
        return self._file_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, from its header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors calls it: I32, BF16, F16, F32, I8, U8, I64, F8_E4M3, …"""
        return str(self._slice(name).get_dtype())

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """Read a tensor, or only one index of its first dimension."""
        try:
            if index is None:
                found: torch.Tensor = self._open[self._file_of[name]].get_tensor(name)
            else:
                found = self._slice(name)[index : index + 1][0]
        except Exception as error:  # the file was cut while it was open, or a dtype that this torch does not have
            raise ValueError(f"{self.folder / self._file_of[name]}: tensor {shown(name)}: {error}") from None
        return found

    def _slice(self, name: str) -> Any:
        return self._open[self._file_of[name]].get_slice(name)


def open_safetensors(path: Path) -> Any:
    """Return an open safetensors file whose header is right.

    Raises:
        ValueError: it is not there, is no file, is pickled, is cut short, or its header lies.
    """
    from safetensors import SafetensorError, safe_open

    require(path.suffix.lower() not in PICKLED, f"{path}: {NO_PICKLE}")
    require(path.exists(), f"{path}: is not there")
    require(path.is_file(), f"{path}: must be a safetensors file")
    with path.open("rb") as file:
        head = file.read(8)
    require(not head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")), f"{path}: {NO_PICKLE}")
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {_why(path, head, ' '.join(str(error).split()))}") from None


def _why(path: Path, head: bytes, said: str) -> str:
    """Say what is wrong with a header, in more words than the library where the file's size tells more."""
    size = path.stat().st_size
    if len(head) < 8:
        return f"holds {size} bytes, too few for a safetensors header"
    length = struct.unpack("<Q", head)[0]
    if length + 8 > size:
        return f"its header should be {length:,} bytes, but the file holds {size:,}: cut short, or no safetensors file"
    if "not fully covered" in said and length <= LONGEST_HEADER:
        with path.open("rb") as file:
            file.seek(8)
            entries = json.loads(file.read(length))
        end = max((e["data_offsets"][1] for name, e in entries.items() if name != "__metadata__"), default=0)
        cut = "cut short" if end > size - 8 - length else "bytes follow that no tensor owns"
        return f"its header describes {end:,} bytes of tensors, the file holds {size - 8 - length:,}: {cut}"
    return f"{said.removeprefix('Error while deserializing header: ')[:300]} (safetensors header)"


def find_files(path: Path) -> tuple[Path, list[str]]:
    """Return the folder of a checkpoint and the names of its safetensors files.

    Args:
        path: a folder, a .safetensors file, or an index of shards.
    Raises:
        ValueError: there is none, a shard is missing, several do not belong together, or they are pickled.
    """
    require(path.exists(), f"{path}: is not there, must be a folder, a .safetensors file or an index of shards")
    if path.is_dir():
        if (path / SINGLE).exists():
            return path, [SINGLE]
        if (path / INDEX).exists():
            return path, _of_index(path / INDEX)
        return path, _of_folder(path)
    if path.name.endswith(".index.json"):
        return path.parent, _of_index(path)
    require(path.suffix.lower() not in PICKLED, f"{path}: {NO_PICKLE}")
    require(path.suffix == ".safetensors", f"{path}: must be a folder, a .safetensors file or an index of shards")
    shard = _SHARD.fullmatch(path.name)
    if shard and (path.parent / f"{shard[1]}.safetensors.index.json").exists():
        raise ValueError(f"{path}: is one shard of {shard[3]}; give its folder, or {shard[1]}.safetensors.index.json")
    return path.parent, [path.name]


def _of_folder(folder: Path) -> list[str]:
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    shards = [match for name in found if (match := _SHARD.fullmatch(name))]
    if found and len(shards) == len(found) and len({(m[1], m[3]) for m in shards}) == 1:
        missing = [i for i in range(1, int(shards[0][3]) + 1) if i not in {int(m[2]) for m in shards}]
        require(not missing, f"{folder}: shard {missing[:1]} of {shards[0][3]} is missing" if missing else "")
        return found
    if found:
        raise ValueError(f"{folder}: holds {', '.join(found[:4])} and no index; name the file that is meant")
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICKLED)
    if pickled:
        raise ValueError(f"{folder / pickled[0]}: {NO_PICKLE}")
    raise ValueError(f"{folder}: holds no .safetensors file")


def _of_index(path: Path) -> list[str]:
    index = read_json(path)
    weight_map = index.get("weight_map")
    right = isinstance(weight_map, dict) and all(isinstance(name, str) for name in weight_map.values())
    require(right and bool(weight_map), f"{path}: must have a weight_map of tensor to file")
    assert isinstance(weight_map, dict)
    names = sorted(set(weight_map.values()))
    for name in names:
        plain = name == os.path.basename(name) and name not in ("", ".", "..") and "\\" not in name
        require(plain, f"{path}: names the file {shown(name)}, must be a plain name in the same folder")
        require(
            name.endswith(".safetensors"),
            f"{path}: names {shown(name)}, which {NO_PICKLE}"
            if name.endswith(PICKLED)
            else f"{path}: names {shown(name)}, must be a .safetensors file",
        )
        held = sum(file == name for file in weight_map.values())
        require(
            (path.parent / name).exists(), f"{path.parent / name}: shard is missing; {held:,} tensors should be in it"
        )
    return names


def check_index(path: Path, tensors: TensorFiles) -> list[str]:
    """Return what an index says that its shards do not hold, in sentences; nothing where there is no index."""
    if not path.exists():
        return []
    weight_map = read_json(path)["weight_map"]
    absent = [name for name in weight_map if name not in tensors]
    moved = [name for name, file in weight_map.items() if name in tensors and tensors.file_of(name) != file]
    extra = [name for name in tensors.names() if name not in weight_map]
    return [
        f"index: {len(names):,} tensors {what}, first {shown(names[0])}"
        for names, what in ((absent, "are in no shard"), (moved, "are in another shard"), (extra, "are not listed"))
        if names
    ]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        ValueError: it is no object, too large, or no JSON.
    """
    return dict(read_by_schema(path, dict[str, Any], "checkpoint"))


def shown(name: str) -> str:
    """Return a name from a file as it can be printed: control characters escaped, and no longer than a line."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= 160 else f"{text[:80]}…{text[-60:]}"
