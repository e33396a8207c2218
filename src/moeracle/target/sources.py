"""A digest of a TARGET's own code: its file, and the local modules that it imports, however deep.

What was found about a kernel holds for this code only. Nothing is imported: a TARGET runs in a process of its own.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name
from pathlib import Path

from .importing import is_file

INSTALLED = frozenset({"site-packages", "dist-packages"})
STANDARD = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
NATIVE = (".c", ".cc", ".cl", ".cpp", ".cu", ".cuh", ".h", ".hip", ".hpp", ".s")  # of kernels that a module compiles
INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)
LONGEST = 255  # characters of a file's name


def digest_of(place: str) -> str | None:
    """Return the sha256 of a TARGET's own code.

    Covered are its file, the modules that it and they import and that are not installed packages, also those imported
    inside functions, and files of C, CUDA or HIP beside them that their code names.

    Args:
        place: a file or a module's name, as in a TARGET.
    Returns:
        64 hex digits; None where there is no such file or module.
    """
    own = place.partition(".")[0]
    here = str(Path.cwd())
    roots = [*(folder for folder in sys.path if folder not in ("", here)), here]  # the same in every process of a run
    found: dict[str, Path] = {}
    if is_file(place):
        path = Path(place).resolve()
        roots.insert(0, str(path.parent))
        found[""] = path
        waiting = [("", path)] if path.is_file() else []
    else:
        waiting = list(_files(place, roots, found, own))
    if not waiting:
        return None
    while waiting:
        name, path = waiting.pop()
        for imported in _named(name, path, found):
            waiting += _files(imported, roots, found, own)
    whole = hashlib.sha256()
    for name in sorted(found):
        with suppress(OSError):
            whole.update(f"{name}\n{hashlib.sha256(found[name].read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def _files(name: str, roots: Sequence[str], found: dict[str, Path], own: str) -> Iterator[tuple[str, Path]]:
    """Yield, and add to what was found, the local files of a module and of the packages that it is in."""
    inside: Sequence[str] | None = roots
    parts = name.split(".")
    if parts[0] == "moeracle" != own:  # the judge is no part of a kernel
        return
    for count in range(1, len(parts) + 1):
        known = ".".join(parts[:count])
        spec = _spec(known, inside)
        if spec is None:
            return
        path = Path(spec.origin).resolve() if spec.has_location and spec.origin else None
        if path is not None and _is_installed(path):
            return
        if path is not None and known not in found:
            found[known] = path
            yield known, path
        inside = list(spec.submodule_search_locations or ())


def _spec(name: str, inside: Sequence[str] | None) -> ModuleSpec | None:
    with suppress(Exception):  # finders are anybody's
        # By its last part: for a whole name it wants the packages around it imported.
        if (spec := PathFinder.find_spec(name.rpartition(".")[2], inside)) is not None:
            return spec
        if "." not in name:  # packages installed in place are found by finders of their own
            return next((s for f in sys.meta_path if (s := f.find_spec(name, None)) is not None), None)
    return None


def _is_installed(path: Path) -> bool:
    return not INSTALLED.isdisjoint(path.parts) or any(path.is_relative_to(folder) for folder in STANDARD)


def _named(name: str, path: Path, found: dict[str, Path]) -> Iterator[str]:
    """Yield the modules that a file may import, and add to what was found the native sources that it names."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError):  # a relative one outside a package
                base = resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            _add_native(path.parent, node.value, name, found)


def _add_native(folder: Path, file: str, beside: str, found: dict[str, Path]) -> None:
    """Add a native source, and what it includes from beside it, named by the module that it is beside."""
    file = os.path.normpath(file)  # each way to a file through .. is the same file
    name, path = f"{beside}/{file}", folder / file
    if not file.endswith(NATIVE) or len(file) > LONGEST or name in found:
        return
    with suppress(OSError, ValueError):
        text = path.read_bytes()
        found[name] = path
        for included in INCLUDE.findall(text):
            _add_native(folder, str(Path(file).parent / included.decode(errors="replace")), beside, found)
