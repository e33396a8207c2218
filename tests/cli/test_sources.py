"""The digest of a TARGET's own code: it changes with each file that the kernel's code is in, and with no other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from moeracle.target.sources import digest_of

FILES = {
    "kernels.py": "import torch, json\nimport helper\nfrom pack import tiles\nfrom moeracle import kernel\n",
    "helper.py": "def scaled(x):\n    from late import factor\n    import no_such_module\n    return x * factor\n",
    "late.py": "import importlib\nfactor = importlib.import_module('named').factor\n",
    "named.py": "import helper\nfactor = 2\n",  # a circle
    "pack/__init__.py": "",
    "pack/tiles.py": "from . import sizes\nfrom .deep.rows import *\n",
    "pack/sizes.py": "sizes = [1]\nsource = 'native/k.hip'\n",
    "pack/deep/rows.py": "rows = 1\n",  # in a package with no __init__
    "pack/native/k.hip": '#include "rows.h"\n#include <math.h>\n',
    "pack/native/rows.h": "// 8\n",
}
OTHERS = {"unused.py": "1\n", "pack/unused.py": "1\n", "pack/native/other.h": "// 1\n", "data.json": "{}\n"}


@pytest.fixture
def place(folder: Path) -> str:
    # TARGETs of other tests left their folders there, one of which may hold a module of the same name.
    sys.path[:] = [path for path in sys.path if not Path(path).is_relative_to(folder.parent)]
    for name, text in {**FILES, **OTHERS}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return "kernels.py"


@pytest.mark.parametrize("target", ["kernels.py", "kernels"])
def test_every_file_that_the_code_is_in_counts_and_no_other(place: str, folder: Path, target: str) -> None:
    first = digest_of(target)
    assert first
    seen = {first}
    for name, text in FILES.items():
        (folder / name).write_text(f"{text}\n")
        seen.add(digest_of(target) or "")
        (folder / name).write_text(text)
    assert len(seen) == len(FILES) + 1
    for name, text in OTHERS.items():
        (folder / name).write_text(f"{text}\n")
    assert digest_of(target) == first


def test_a_name_that_is_found_in_another_file_changes_it(place: str, folder: Path) -> None:
    first = digest_of(place)
    (folder / "no_such_module.py").write_text("")
    assert digest_of(place) != first


def test_it_is_the_same_wherever_a_process_was_started_and_how(
    place: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, path = digest_of(place), list(sys.path)
    for started in (["", *path], [str(folder), *path], [*path, "/usr/bin"]):  # by -m, by a script, by its command
        monkeypatch.setattr(sys, "path", started)
        assert digest_of(place) == first
    monkeypatch.chdir("/")
    assert digest_of(str(folder / place)) == first


def test_installed_packages_and_the_judge_are_no_part_of_it(folder: Path) -> None:
    (folder / "alone.py").write_text("")
    (folder / "installed.py").write_text("import torch, json, numpy, moeracle\nimport moeracle.kernels\n")
    alone = digest_of("alone.py")
    (folder / "alone.py").write_text((folder / "installed.py").read_text())
    assert digest_of("alone.py") == digest_of("installed.py") != alone


@pytest.mark.parametrize("target", ["absent.py", "absent.module", "."])
def test_what_is_no_file_has_none(folder: Path, target: str) -> None:
    assert digest_of(target) is None


def test_a_file_that_is_no_python_still_counts(folder: Path) -> None:
    (folder / "broken.py").write_text("def (")
    first = digest_of("broken.py")
    (folder / "broken.py").write_text("def [")
    assert first
    assert digest_of("broken.py") != first
