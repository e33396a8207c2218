"""Importing what a TARGET names: a mistake in it is one clear line, and what it switches in torch stays its own."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from moeracle.properties.common.torch_state import TorchState, current, switched

from .declaration import forget


class TargetError(ValueError):
    """A TARGET that cannot be judged as it stands; its message is one line."""


_STATES: dict[str, TorchState] = {}  # of modules: a second import does not run them again


def imported(place: str) -> tuple[ModuleType, TorchState]:
    """Return the module at a path or of a name, and torch's switches as it left them; here they stay as they were.

    Raises:
        TargetError: there is none, or it does not import: the cause and where.
    """
    with switched():
        if not _is_file(place):
            known = _STATES.get(place) if place in sys.modules else None
            module = _load_module(place)
            state = _STATES[place] = known or current()
            return module, state
        return _load_file(place), current()


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place or "/" in place or place in (".", "..")


def _load_file(place: str) -> ModuleType:
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
