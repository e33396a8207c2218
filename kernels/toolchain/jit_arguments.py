"""Which value each argument of a Triton launch has, by name."""

from __future__ import annotations

from typing import Any


def arguments_of(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a launch's arguments by name, and those that are compile-time; of a NamedTuple, its members.

    Args:
        kernel: the jitted function.
        args, options: what it was launched with, by place and by name.
    """
    named = dict(zip(kernel.arg_names, args, strict=False)) | options
    given: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for p in kernel.params:
        value = named.get(p.name, p.default)
        members = value._asdict() if hasattr(value, "_asdict") else {p.name: value}
        given |= members
        constants |= {n: v for n, v in members.items() if p.is_constexpr}
        constants |= {n: v.value for n, v in members.items() if type(v).__name__ == "constexpr"}
    return given, constants
