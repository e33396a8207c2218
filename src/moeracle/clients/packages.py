"""Other projects' files: of an installed package, or of a folder with an unpacked wheel; imported only when asked."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from moeracle.target.load import kernel

from . import CLIENTS


def client_kernel(name: str, **declared: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a function to be a kernel of CLIENTS, whose op, contract, layout and bits of a code stand there.

    Args:
        name: project.kernel.
        declared: what else `moeracle.kernel` takes.
    """
    client = CLIENTS[name]
    weights = "w8" if client.bits == 8 else ()
    return kernel(client.op, name=name, layout=client.layout, contract=client.contract, weights=weights, **declared)


def package_folder(package: str) -> Path | None:
    """Return the folder of a package, which is not imported: $MOERACLE_<PACKAGE>/<package>, else the installed one.

    Args:
        package: vllm, executorch, sglang, aiter or transformers.
    """
    unpacked = os.environ.get(f"MOERACLE_{package.upper()}")
    if unpacked:
        folder = Path(unpacked) / package
        return folder if folder.is_dir() else None
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) if places else None


def file_of(package: str, name: str) -> Path | None:
    """Return one file of a package, or None where the package or the file is absent."""
    folder = package_folder(package)
    return folder / name if folder is not None and (folder / name).is_file() else None


def absent(package: str, name: str = "") -> str:
    """Return why a package's file cannot be used, or "" where it is there."""
    if package_folder(package) is None:
        return f"{package} is not installed (or unpack its wheel and set MOERACLE_{package.upper()} to that folder)"
    return f"{package} has no {name}" if name and file_of(package, name) is None else ""


def needs(package: str, name: str, then: Callable[[Any], bool | str] | None = None) -> Callable[[Any], bool | str]:
    """Return a kernel's `supports`: why the package cannot be used, else what `then` says of the case."""

    def supports(case: Any) -> bool | str:
        return absent(package, name) or (then(case) if then is not None else True)

    return supports


@functools.cache
def module_of_file(path: Path) -> ModuleType:
    """Load one file by its path, under a name of its own; Triton runs interpreted where there is no GPU."""
    from moeracle.kernels.triton.interpreter.enable import enable_if_no_gpu

    enable_if_no_gpu()
    name = f"moeracle_client_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def triton_functions(path: Path, names: tuple[str, ...]) -> ModuleType:
    """Load some top-level functions of a file alone: the file's own imports would need all of its project.

    Raises:
        ValueError: the file has no function of that name.
    """
    text = path.read_text(encoding="utf-8")
    found = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path}: has no function {', '.join(missing)}")
    cut = "\n\n".join(_lines(text, found[name]) for name in names)
    head = "import torch\nimport triton\nimport triton.language as tl\n\n\n"
    # Triton reads a kernel's source from its file, which therefore stays until the process ends.
    folder = Path(_own_folder().name)
    own = folder / f"{path.stem}_{abs(hash(names))}.py"
    own.write_text(head + cut + "\n", encoding="utf-8")
    return module_of_file(own)


def _lines(text: str, node: ast.FunctionDef) -> str:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


@functools.cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="moeracle_client_")


@functools.cache
def load_libraries(package: str, names: Iterable[str]) -> str:
    """Load compiled ops into torch; return why they cannot be, or ""."""
    import torch

    for name in names:
        path = file_of(package, name)
        if path is None:
            return f"{package} has no {name} here"
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            return f"{package}'s {name} does not load: {(str(error).splitlines() or [''])[0][:160]}"
    return ""
