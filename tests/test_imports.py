"""Who may import whom, inside the folders too, and that the name `kernels` stays free for the package that owns it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.imports import against, between, circle, graph, imported, sources

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("ref", "kernels", "properties")
# What a kernel may take from the reference: types and names, never an op that computes an output.
KERNELS_MAY_USE = (
    "moeracle.ref.weights.weight",
    "moeracle.ref.contracts.contract",
    "moeracle.ref.errors",
    "moeracle.ref.weights.layouts",
)
# The order of each package, lowest first: a file may import its own folder, and folders and files to its left. Names
# in one pair of brackets do not know each other; the longest name that fits a module is its place.
ORDER = {
    "moeracle.ref": (
        ("errors",),
        ("rounding", "activation"),
        ("weights", "bitmodels"),
        ("ops", "contracts"),
        ("bounds",),
        ("contract", "weight"),  # old paths, which hand names on
        ("__init__",),
    ),
    "moeracle.kernels": (
        ("common",),
        ("entry", "tuned"),
        ("toolchain",),
        ("gfx11", "ranks"),
        ("triton.interpreter",),
        ("triton.triton_import",),
        ("triton.tiles",),
        ("triton.device",),
        ("triton",),
        ("hopper.prepared_weight", "hopper.gluon_import", "hip.runtime"),
        ("hopper.tiles", "hopper.device"),
        ("hopper", "hip"),
        ("case_schedules", "choose", "entries"),
        ("registry", "bench"),
        ("compile",),
        ("tune",),
    ),
    "moeracle.properties": (
        ("common",),
        ("cases",),
        ("case", "compare", "simulate"),
        ("faults",),
        ("diagnose",),
        ("judge",),
        ("trial",),
        ("laws", "golden", "hunt"),
        ("fault_matrix", "report"),
        ("report.html", "bisect", "infer", "recordings", "suite"),
        ("ops",),  # last: an op's record holds what every tool asks of the op
        ("__init__",),
    ),
    "moeracle": (
        ("files", "text"),
        ("ref",),
        ("kernels", "properties"),
        ("exit_codes", "known_failures", "case_database", "target", "checkpoints", "tensors.errors"),
        ("isolate.frames", "isolate.confine", "commands.process"),
        ("isolate",),
        ("ranks", "torchrun"),
        ("clients", "tensors.forms"),
        ("tensors.weights",),
        ("tensors.problem",),
        ("tensors",),
        ("__init__", "testing", "bench", "gfx11", "clients.record", "clients.measure"),
        ("commands.console",),
        ("commands.options", "commands.loading", "commands.tuner"),
        ("commands.infer",),
        ("commands.check_undeclared",),
        ("commands",),
        ("pytest_reports", "gpus"),
        ("pytest_session",),
        ("pytest_plugin",),
        ("cli",),
        ("__main__",),
    ),
}
FLAT = {
    "ref": {"__init__", "errors", "rounding", "activation", "contract", "weight"},
    "kernels": {"entry", "registry", "case_schedules", "choose"},
    "properties": {"__init__", "case"},
}


def violations(source: str, folder: str, depth: int = 0) -> list[str]:
    """Return the imports of a file that its folder forbids.

    Args:
        source: the file's text.
        folder: "ref", "kernels" or "properties".
        depth: folders between the folder and the file; a relative import may not climb out of the folder.
    """
    bad = []
    for level, name in imported(source):
        top = name.partition(".")[0]
        if level > depth + 1:
            bad.append("." * level + name)
        elif level:
            continue
        elif folder == "ref":
            if top != "torch" and top not in sys.stdlib_module_names:
                bad.append(name)
        elif top in (*FOLDERS, "moeracle"):
            own = f"{name}.".startswith((f"moeracle.{folder}.", "moeracle.files."))  # which lies below all folders
            reference = name == "moeracle.ref" or name.startswith("moeracle.ref.")
            if not own and not (name.startswith(KERNELS_MAY_USE) if folder == "kernels" else reference):
                bad.append(name)
    return bad


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder}/ holds no Python files: nothing was checked"
    found = {
        str(file.relative_to(ROOT)): bad
        for file in files
        if (bad := violations(file.read_text(), folder, len(file.relative_to(ROOT / folder).parts) - 1))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("ref", "import numpy"),
        ("ref", "import triton"),
        ("ref", "from moeracle.properties.cases import fields as case"),
        ("ref", "from ..target import load_target"),
        ("ref", "from moeracle.files import write_atomically"),
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
def test_a_forbidden_import_is_seen(folder: str, line: str) -> None:
    assert violations(line, folder)


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("ref", "import torch.nn.functional as F\nfrom .rounding import round_to\nimport math"),
        (
            "kernels",
            "import triton\nfrom moeracle.ref.weights.weight import Int4Weight\nfrom moeracle.kernels import tuned",
        ),
        ("kernels", "from moeracle.files import write_atomically"),
        ("properties", "import numpy\nfrom moeracle.ref import Int4Weight\nfrom .case import Case"),
    ],
)
def test_a_legal_import_is_not_flagged(folder: str, line: str) -> None:
    assert violations(line, folder) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circle(graph(sources(ROOT))) == []


@pytest.mark.parametrize("package", ORDER)
def test_a_file_imports_its_own_folder_and_folders_to_its_left(package: str) -> None:
    imports = graph(sources(ROOT))
    assert len([module for module in imports if module.startswith(package + ".")]) > 25
    assert against(imports, package, ORDER[package]) == []


def test_hopper_and_hip_do_not_know_each_other() -> None:
    imports = graph(sources(ROOT))
    assert between(imports, "moeracle.kernels.hopper", "moeracle.kernels.hip") == []
    assert between(imports, "moeracle.kernels.hopper", "moeracle.kernels.triton")


@pytest.mark.parametrize("folder", FLAT)
def test_files_lie_in_folders(folder: str) -> None:
    assert {file.stem for file in (ROOT / folder).glob("*.py")} == FLAT[folder]


@pytest.mark.parametrize(
    ("module", "line", "target"),
    [
        ("moeracle.ref.weights.weight", "from ..ops.rope import rope", "moeracle.ref.ops.rope"),
        ("moeracle.ref.ops.rope", "from .. import contract", "moeracle.ref.contract"),
        ("moeracle.ref.ops.rope", "from .. import round_to", "moeracle.ref.__init__"),
        (
            "moeracle.kernels.triton.int8_lm_head",
            "def f():\n    from moeracle.kernels.hopper.cases import on_hopper",
            "moeracle.kernels.hopper.cases",
        ),
        ("moeracle.kernels.hip.common", "from moeracle.kernels.hopper import launch", "moeracle.kernels.hopper.launch"),
        ("moeracle.kernels.triton.tiles", "import moeracle.kernels.registry", "moeracle.kernels.registry"),
        ("moeracle.properties.cases.case", "from ..judge import judge", "moeracle.properties.judge.__init__"),
        ("moeracle.properties.laws.agree", "from moeracle.properties.ops import X", "moeracle.properties.ops.__init__"),
        ("moeracle.properties.laws.agree", "from ..golden.store import load", "moeracle.properties.golden.store"),
        ("moeracle.target.load", "from moeracle.commands import check", "moeracle.commands.check"),
        (
            "moeracle.commands.console",
            "if TYPE_CHECKING:\n    from .options import json_option",
            "moeracle.commands.options",
        ),
    ],
)
def test_an_import_to_the_right_is_seen(module: str, line: str, target: str) -> None:
    modules = sources(ROOT)
    modules[module] += "\n" + line
    package = next(package for package in ORDER if module.startswith(package + "."))
    assert f"{module} -> {target}" in against(graph(modules), package, ORDER[package])


def test_a_module_without_a_place_is_seen() -> None:
    modules = sources(ROOT) | {"moeracle.ref.somewhere.new": ""}
    assert against(graph(modules), "moeracle.ref", ORDER["moeracle.ref"]) == ["moeracle.ref.somewhere.new has no place"]


@pytest.mark.parametrize(
    "line",
    [
        "from ..bounds.band import Band",
        "import moeracle.ref.bounds.band",
        "def f():\n    from moeracle.ref.bounds import band",
        "if TYPE_CHECKING:\n    from moeracle.ref.bounds.band import Band",
    ],
)
def test_a_circle_is_seen(line: str) -> None:
    modules = sources(ROOT)
    modules["moeracle.ref.contracts.contract"] += "\n" + line
    found = circle(graph(modules))
    assert "moeracle.ref.contracts.contract" in found


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


def test_nothing_is_installed_under_their_own_names(tmp_path: Path) -> None:
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


# Each in a fork of its own of a process that has imported the package alone, whose `__init__` runs before any of them.
IMPORT_EACH_FIRST = """
import importlib, os, sys
import torch, hypothesis, pytest
package, *names = sys.argv[1:]
importlib.import_module(package)
for name in names:
    if not os.fork():
        importlib.import_module(name)
        os._exit(0)
    if os.wait()[1]:
        print(name, flush=True)
print(len(names), "imported")
"""


def modules_of(folder: str) -> list[str]:
    files = [f for f in sorted((ROOT / folder).rglob("*.py")) if "suite" not in f.parts]
    names = ["moeracle." + ".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("folder", ["ref", "properties"])
def test_every_module_can_be_the_first_that_is_imported(folder: str) -> None:
    names = modules_of(folder)
    assert len(names) > 20
    words = [sys.executable, "-c", IMPORT_EACH_FIRST, f"moeracle.{folder}", *names]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{len(names)} imported\n", run.stderr
