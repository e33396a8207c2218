"""Importing what a TARGET names: a mistake in it is one clear line, and what it switches in torch stays its own."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import linecache
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from importlib.util import decode_source
from pathlib import Path
from types import ModuleType
from typing import Any

from moeracle.properties.common.torch_state import TorchState, current, switched

from .declaration import forget


class TargetError(ValueError):
    """A TARGET that cannot be judged as it stands; its message is one line."""


_STATES: dict[str, TorchState] = {}  # of modules: a second import does not run them again


class _Held(SourceFileLoader):
    """Loads a file as it was: whatever it, or what Python keeps of it, was changed to since."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self.source = source
        lines = decode_source(source).splitlines(keepends=True)
        linecache.cache[path] = (len(source), None, lines, path)  # which Triton reads, too

    def get_data(self, path: str) -> bytes:
        return self.source

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError("nothing is kept of it")


def imported(place: str, source: bytes | None = None) -> tuple[ModuleType, TorchState]:
    """Return the module at a path or of a name, and torch's switches as it left them; here they stay as they were.

    Args:
        place: a path or a name.
        source: what the file of a path held, in place of what it holds now.
    Raises:
        TargetError: there is none, or it does not import: the cause and where.
    """
    with switched():
        if not is_file(place):
            known = _STATES.get(place) if place in sys.modules else None
            module = _load_module(place)
            state = _STATES[place] = known or current()
            return module, state
        return _load_file(place, source), current()


def is_file(place: str) -> bool:
    """Say whether a TARGET's place is a path, not a module's name."""
    return place.endswith(".py") or os.sep in place or "/" in place or place in (".", "..")


def source_of(place: str) -> bytes | None:
    """Return what the file of a TARGET holds; None where it is no file that can be read."""
    try:
        return Path(place).read_bytes() if is_file(place) and Path(place).is_file() else None
    except (OSError, ValueError):
        return None


def _load_file(place: str, source: bytes | None) -> ModuleType:
    path = Path(place)
    if path.is_dir():
        raise TargetError(f"TARGET {place}: is a folder, must be a module or a file in it")
    if not path.is_file():
        raise TargetError(f"TARGET {place}: no such file")
    whole = str(path.resolve())
    # A name no import can collide with, but the same in every process: xdist workers compare test ids.
    name = f"moeracle_target_{path.stem}_{hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, whole)
    if spec is None or spec.loader is None:
        raise TargetError(f"TARGET {place}: not a Python file, must end in .py")
    if source is not None:
        with suppress(SyntaxError, UnicodeDecodeError):  # Python's own loader says what is wrong with it
            spec.loader = _Held(name, whole, source)
    forget(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # As `python file.py` does, so that the file may import its neighbours.
    if str(path.resolve().parent) not in sys.path:
        sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise TargetError(f"TARGET {place}: does not import: {cause(error, whole)}") from error
    return module


def _load_module(place: str) -> ModuleType:
    if place.startswith("."):
        raise TargetError(f"TARGET {place}: starts with a dot, must be a module's whole name")
    # Last, not first: the current directory must not shadow an installed package.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            hint = f"; a file is named with its ending: {place}.py" if Path(f"{place}.py").is_file() else ""
            raise TargetError(f"TARGET {place}: no module named {error.name!r}{hint}") from error
        raise TargetError(f"TARGET {place}: does not import: {cause(error, None)}") from error
    except (Exception, SystemExit) as error:
        raise TargetError(f"TARGET {place}: does not import: {cause(error, None)}") from error


def cause(error: BaseException, path: str | None) -> str:
    """Put an exception in one line with the user's file and line: the place to look, without our frames."""
    lines = str(error.msg if isinstance(error, SyntaxError) else error).strip().splitlines()
    # A ValueError of ours already names the argument; its type would only be noise.
    what = lines[0] if lines else ""
    if type(error) is not ValueError or not what:
        what = f"{type(error).__name__}: {what}" if what else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{what} ({_short(error.filename)}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parents[1])
    theirs = [f for f in frames if f.filename == path] or [
        f
        for f in frames
        if not f.filename.startswith((ours, "<frozen importlib")) and not f.filename.endswith("importlib/__init__.py")
    ]
    return f"{what} ({_short(theirs[-1].filename)}:{theirs[-1].lineno})" if theirs else what


def _short(filename: str) -> str:
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative
