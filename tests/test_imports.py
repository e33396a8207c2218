"""The rooms: who may import whom, and that the name `kernels` stays free for the package that owns it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("ref", "kernels", "properties")
# What a kernel may take from the reference: types and names, never an op that computes an output.
KERNELS_MAY_USE = (
    "moeracle.ref.weights.weight",
    "moeracle.ref.contracts.contract",
    "moeracle.ref.errors",
    "moeracle.ref.weights.layouts",
)


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Yield (level, dotted name) of every import anywhere in a file, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names)


def violations(source: str, room: str, depth: int = 0) -> list[str]:
    """Return the imports of a file that its room forbids.

    Args:
        source: the file's text.
        room: "ref", "kernels" or "properties".
        depth: folders between the room and the file; a relative import may not climb out of the room.
    """
    bad = []
    for level, name in imported(source):
        top = name.partition(".")[0]
        if level > depth + 1:
            bad.append("." * level + name)
        elif level:
            continue
        elif room == "ref":
            if top != "torch" and top not in sys.stdlib_module_names:
                bad.append(name)
        elif top in (*ROOMS, "moeracle"):
            own = name == f"moeracle.{room}" or name.startswith(f"moeracle.{room}.")
            reference = name == "moeracle.ref" or name.startswith("moeracle.ref.")
            if not own and not (name.startswith(KERNELS_MAY_USE) if room == "kernels" else reference):
                bad.append(name)
    return bad


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room}/ holds no Python files: nothing was checked"
    found = {
        str(file.relative_to(ROOT)): bad
        for file in files
        if (bad := violations(file.read_text(), room, len(file.relative_to(ROOT / room).parts) - 1))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("ref", "import numpy"),
        ("ref", "import triton"),
        ("ref", "from moeracle.properties.cases import fields as case"),
        ("ref", "from ..target import load_target"),
        ("ref", "def f():\n    import triton.language as tl"),
        ("kernels", "from moeracle.properties.cases.case import Case"),
        ("kernels", "from moeracle import kernel"),
        ("kernels", "import moeracle"),
        ("kernels", "from ..properties import case"),
        ("kernels", "from moeracle.ref import moe_w4a16"),
        ("kernels", "from moeracle.ref.ops.grouped_gemm import grouped_gemm"),
        ("properties", "from moeracle.kernels import registry"),
        ("properties", "from moeracle.target.load import load_target"),
        ("properties", "from properties import case"),
    ],
)
def test_a_forbidden_import_is_seen(room: str, line: str) -> None:
    assert violations(line, room)


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("ref", "import torch.nn.functional as F\nfrom .rounding import round_to\nimport math"),
        (
            "kernels",
            "import triton\nfrom moeracle.ref.weights.weight import Int4Weight\nfrom moeracle.kernels import tiles",
        ),
        ("properties", "import numpy\nfrom moeracle.ref import Int4Weight\nfrom .case import Case"),
    ],
)
def test_a_legal_import_is_not_flagged(room: str, line: str) -> None:
    assert violations(line, room) == []


def whose_kernels(root: Path, elsewhere: Path) -> str:
    """Return the file that `import kernels` finds with `root` as the working folder and first on sys.path."""
    path = f"sys.path.insert(0, {str(root)!r}); sys.path.append({str(elsewhere)!r})"
    script = f"import sys; {path}; import kernels; print(kernels.__file__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def make_package(folder: Path) -> None:
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "__init__.py").write_text("")


def test_another_package_named_kernels_wins(tmp_path: Path) -> None:
    make_package(tmp_path / "site")
    assert whose_kernels(ROOT, tmp_path / "site") == str(tmp_path / "site" / "kernels" / "__init__.py")


def test_a_shadowing_kernels_folder_would_be_seen(tmp_path: Path) -> None:
    make_package(tmp_path / "root")
    make_package(tmp_path / "site")
    assert whose_kernels(tmp_path / "root", tmp_path / "site") != str(tmp_path / "site" / "kernels" / "__init__.py")


def test_nothing_is_installed_under_the_rooms_own_names(tmp_path: Path) -> None:
    script = "import importlib.util as u; print([n for n in ('kernels', 'ref', 'properties') if u.find_spec(n)])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    # A package named kernels may be installed beside us, and is then not ours.
    found = ast.literal_eval(done.stdout)
    assert "ref" not in found
    assert "properties" not in found


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after a statement."""
    script = f"{statement}\nimport sys\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSTARTUP"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    return set(done.stdout.split())


def test_the_pytest_plugin_costs_nothing_unless_used() -> None:
    assert loaded_by("import moeracle.pytest_plugin") & {"torch", "numpy", "triton", "hypothesis", "typer"} == set()


def test_importing_the_reference_loads_no_tools() -> None:
    assert loaded_by("import moeracle.ref") & {"triton", "hypothesis", "pytest", "typer", "rich"} == set()


IMPORT_EACH_FIRST = """
import importlib, sys
import torch, hypothesis, pytest
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m == "moeracle" or m.startswith("moeracle.")]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(name, error)
"""


def modules_of(room: str) -> list[str]:
    files = [f for f in sorted((ROOT / room).rglob("*.py")) if "suite" not in f.parts]
    names = ["moeracle." + ".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("room", ["ref", "properties"])
def test_every_module_can_be_the_first_that_is_imported(room: str) -> None:
    names = modules_of(room)
    assert len(names) > 20
    run = subprocess.run([sys.executable, "-c", IMPORT_EACH_FIRST, *names], capture_output=True, text=True)
    assert run.stdout == ""
    assert run.returncode == 0, run.stderr
