"""What a public docstring leaves out: Args for each parameter, Returns, Raises, fields, and the Source of a format."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Attributes|Source):", re.M)
# "Args, Returns: as `other`": parts that another function says of itself, in its own words.
AS_ANOTHER = re.compile(r"^([A-Z]\w+(?:, [A-Z]\w+)*)(?: and Raises)?: as `([\w.]+)`", re.M)


def sections(doc: str) -> dict[str, str]:
    """Return {"Args": its text, ...} of a docstring without indentation; "" is what comes before."""
    starts = [*SECTION.finditer(doc)]
    ends = [match.start() for match in starts[1:]] + [len(doc)]
    found = {match[1]: doc[match.end() : end] for match, end in zip(starts, ends, strict=False)}
    return {"": doc[: starts[0].start()] if starts else doc} | found


def named_in(text: str) -> set[str]:
    """Return the names that an Args section explains: "x: ...", "a, b: ...", two on one line after a full stop too."""
    found: set[str] = set()
    for names in re.findall(r"(?:^|\.  )[ ]*((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*):", text, re.M):
        found |= {name.strip("* ") for name in names.split(",")}
    return found


def faults_of_function(function: Callable[..., Any], *, source: bool = False) -> list[str]:
    """Return what a function's docstring leaves out.

    Args:
        function: public, written in Python.
        source: whether it must say where its format is published.
    """
    doc = inspect.getdoc(function) or ""
    if not doc:
        return ["no docstring"]
    parts = sections(doc)
    borrowed = {word for words, _ in AS_ANOTHER.findall(doc) for word in words.split(", ")}
    signature = inspect.signature(function).parameters.values()
    parameters = [p.name for p in signature if p.name not in ("self", "cls") and p.kind is not p.VAR_KEYWORD]
    found = []
    if "Args" not in borrowed:
        missing = [name for name in parameters if name not in named_in(parts.get("Args", ""))]
        found += [f"Args does not name {name}" for name in missing]
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    inside = [*_own_nodes(tree)]
    gives = any(isinstance(node, ast.Return) and not _is_none(node.value) for node in inside)
    gives |= any(isinstance(node, ast.Yield | ast.YieldFrom) for node in inside)
    if gives and not ({"Returns", "Yields"} & parts.keys() or "Returns" in borrowed):
        found.append("no Returns")
    raised = {name for node in inside if isinstance(node, ast.Raise) and (name := _error(node.exc))}
    raised |= {"ValueError" for node in inside if _calls(node, "require")}
    if raised and "Raises" not in borrowed:
        found += [f"Raises does not name {name}" for name in sorted(raised) if name not in parts.get("Raises", "")]
    if source and "Source" not in parts:
        found.append("no Source")
    return found


def _own_nodes(function: ast.FunctionDef) -> list[ast.AST]:
    """Return the nodes of a function's body without those of functions inside it."""
    found: list[ast.AST] = []
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        found.append(node)
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            todo += ast.iter_child_nodes(node)
    return found


def _is_none(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _error(raised: ast.expr | None) -> str | None:
    """Return what a raise statement raises, where that is ValueError: `raise ValueError(...)`, `raise unknown(...)`."""
    made = raised.func if isinstance(raised, ast.Call) else raised
    name = made.id if isinstance(made, ast.Name) else None
    return "ValueError" if name in ("ValueError", "unknown") else None


def _calls(node: ast.AST, function: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function


def faults_of_class(kind: type) -> list[str]:
    """Return which fields, or parameters of __init__, a class's docstring does not name.

    Args:
        kind: public.
    """
    doc = kind.__doc__ or ""
    if not doc or doc.startswith(f"{kind.__name__}("):
        return ["no docstring"]
    parts = sections(inspect.cleandoc(doc))
    named = named_in(parts.get("Args", "")) | named_in(parts.get("Attributes", ""))
    wanted = [field.name for field in fields(kind)] if is_dataclass(kind) else list(getattr(kind, "_fields", ()))
    if not wanted and "__init__" in vars(kind):
        wanted = [name for name in inspect.signature(vars(kind)["__init__"]).parameters if name != "self"]
    return [f"Args does not name {name}" for name in wanted if name not in named and not name.startswith("_")]


def faults_of(thing: object, *, source: bool = False) -> list[str]:
    """Return what the docstring of a public name leaves out; nothing for constants, which have none.

    Args:
        thing: function or class.
        source: as `faults_of_function`.
    """
    if isinstance(thing, type):
        return faults_of_class(thing)
    return faults_of_function(thing, source=source) if inspect.isfunction(thing) else []
