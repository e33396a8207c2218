"""An op X is found by its name: its files are called X, and few places outside its record compare an op's name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from moeracle.properties.cases.optable import OPS
from support.imports import imported, module_of, sources

ROOT = Path(__file__).resolve().parents[1]
# References that stand in another file than ref/ops/X.py, and why.
REFERENCE = {
    "unpack_int4": "ref/weights/layouts.py",  # reading a weight is no op on activations
    "dequantize_int4": "ref/weights/dequantize.py",
    "quantize_int8": "ref/weights/quantize.py",
    "moe_unpermute": "ref/ops/moe_permute.py",  # the way back of a permutation
}
# A record, a simulation and a fault are about one op each and may say so; elsewhere a name is compared this often.
ABOUT_ONE_OP = tuple(f"moeracle.properties.{folder}." for folder in ("ops", "simulate", "faults"))
MOST_COMPARISONS = 15


@pytest.mark.parametrize("op", OPS)
def test_the_files_of_an_op_have_its_name(op: str) -> None:
    reference = ROOT / REFERENCE.get(op, f"ref/ops/{op}.py")
    functions = [node.name for node in ast.parse(reference.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert op in functions
    assert (ROOT / "properties" / "ops" / f"{op}.py").is_file()
    assert list((ROOT / "fixtures" / op).glob("*.safetensors"))


def test_an_exception_is_one() -> None:
    assert [op for op in REFERENCE if op not in OPS or (ROOT / "ref" / "ops" / f"{op}.py").exists()] == []


@cache
def groups_in(source: str) -> set[str]:
    """Return the names of a module's tuples, lists and sets that hold an op's name."""
    found = set()
    for node in ast.parse(source).body:
        value = getattr(node, "value", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(value, ast.Tuple | ast.List | ast.Set):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(item, ast.Constant) and _is_op(item.value) for item in value.elts):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def imported_groups(module: str, modules: dict[str, str], groups: dict[str, set[str]]) -> set[str]:
    """Return the names of `groups` that a module takes from others."""
    found = set()
    for level, name in imported(modules[module]):
        parts = [*(module.split(".")[:-level] if level else []), *name.split(".")]
        if parts[-1] in groups.get(module_of(parts, modules) or "", ()):
            found.add(parts[-1])
    return found


def comparisons(modules: dict[str, str]) -> Iterator[str]:
    """Yield "module:line" of each comparison, or arm of a match, with an op's name or a constant of such names."""
    groups = {module: groups_in(source) for module, source in modules.items()}
    groups = {module: names for module, names in groups.items() if names}
    for module, source in modules.items():
        if not module.startswith(ABOUT_ONE_OP):
            names = groups.get(module, set()) | imported_groups(module, modules, groups)
            yield from (f"{module}:{line}" for line in lines_that_compare(source, frozenset(names)))


@cache
def lines_that_compare(source: str, names: frozenset[str]) -> list[int]:
    """Return the lines of a file's comparisons with an op's name, or with one of these constants."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare | ast.MatchValue):
            inside = list(ast.walk(node))
            named = any(isinstance(part, ast.Constant) and _is_op(part.value) for part in inside)
            if named or any(isinstance(part, ast.Name) and part.id in names for part in inside):
                lines.append(node.lineno)
    return lines


def _is_op(value: object) -> bool:
    return isinstance(value, str) and value in OPS


def test_few_places_compare_the_name_of_an_op() -> None:
    found = list(comparisons(sources(ROOT)))
    assert 0 < len(found) <= MOST_COMPARISONS, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        'planted = case.op == "tiny_dot"',
        'planted = case.op not in ("tiny_dot", "moe_w4a16")',
        "from ..faults.base import GEMMS\nplanted = case.op in GEMMS",
        "from moeracle.properties.faults.base import GEMMS\nplanted = case.op in (*GEMMS, 'other')",
        "BOTH = ('tiny_dot', 'shared_expert')\nplanted = case.op in BOTH",
        "match case.op:\n    case 'tiny_dot':\n        pass",
    ],
)
def test_a_planted_comparison_is_counted(line: str) -> None:
    modules = sources(ROOT)
    before = len(list(comparisons(modules)))
    modules["moeracle.properties.judge.__init__"] += "\n" + line
    assert len(list(comparisons(modules))) == before + 1


def test_a_record_may_say_which_op_it_is() -> None:
    modules = sources(ROOT)
    before = len(list(comparisons(modules)))
    modules["moeracle.properties.ops.tiny_dot"] += '\nplanted = case.op == "tiny_dot"'
    assert len(list(comparisons(modules))) == before
