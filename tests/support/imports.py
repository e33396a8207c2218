"""Who imports whom, read off source text: a graph of modules, its circles, and imports against an order of folders."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

# Folders of the repository, and the package that each is (through a symbolic link, but for the last).
PACKAGES = {
    "ref": "moeracle.ref",
    "kernels": "moeracle.kernels",
    "properties": "moeracle.properties",
    "src/moeracle": "moeracle",
}
Order = tuple[tuple[str, ...], ...]


def sources(root: Path) -> dict[str, str]:
    """Return {dotted name: source text} of every module; a package's __init__ is called `package.__init__`.

    Args:
        root: the repository.
    """
    found = {}
    for folder, package in PACKAGES.items():
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root / folder).with_suffix("").parts
            if package != "moeracle" or parts[0] not in PACKAGES:  # the links are followed by their own names
                found[".".join((package, *parts))] = file.read_text()
    return found


@cache
def imported(source: str) -> list[tuple[int, str]]:
    """Return (level, dotted name) of every import anywhere in a file, `from a import b` as a.b."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names]
    return found


def graph(modules: dict[str, str]) -> dict[str, set[str]]:
    """Return {module: modules that it imports}, imports inside functions and under TYPE_CHECKING included.

    Args:
        modules: as `sources` returns it.
    """
    found: dict[str, set[str]] = {}
    for module, source in modules.items():
        found[module] = set()
        for level, name in imported(source):
            package = module.split(".")[:-level] if level else []
            if (target := module_of([*package, *name.split(".")], modules)) and target != module:
                found[module].add(target)
    return found


def module_of(parts: list[str], modules: Iterable[str]) -> str | None:
    """Return the module that a dotted name is, or is defined in; None: it is not ours."""
    while parts:
        for name in (".".join(parts), ".".join((*parts, "__init__"))):
            if name in modules:
                return name
        parts = parts[:-1]
    return None


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circle of imports, the first again at the end; or nothing."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def place_of(module: str, order: Order) -> tuple[int, str] | None:
    """Return (rank, name) of the longest name of an order that a module's name begins with, or None."""
    found = [
        (len(name), rank, name)
        for rank, names in enumerate(order)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    return max(found)[1:] if found else None


def against(imports: dict[str, set[str]], package: str, order: Order) -> list[str]:
    """Return the imports inside a package that go against an order, and the modules that the order does not name.

    A module may import from its own name's modules and from those of names further to the left.

    Args:
        imports: as `graph` returns it.
        package: such as "moeracle.ref"; only imports between its modules are looked at.
        order: names of folders or modules below the package, lowest rank first; names of one rank do not know each
            other.
    """
    found = []
    inside = {
        module: place_of(module.removeprefix(package + "."), order)
        for module in imports
        if module.startswith(package + ".")
    }
    for module, place in inside.items():
        if place is None:
            found.append(f"{module} has no place")
            continue
        for target in sorted(imports[module] & inside.keys()):
            other = inside[target]
            if other is not None and other[1] != place[1] and other[0] >= place[0]:
                found.append(f"{module} -> {target}")
    return found


def between(imports: dict[str, set[str]], one: str, other: str) -> list[str]:
    """Return the imports from one package to another, in either direction.

    Args:
        imports: as `graph` returns it.
        one, other: such as "moeracle.kernels.hip".
    """
    found = []
    for start, end in ((one, other), (other, one)):
        for module in imports:
            if module.startswith(start + "."):
                found += [f"{module} -> {name}" for name in sorted(imports[module]) if name.startswith(end + ".")]
    return found
