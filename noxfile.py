"""`make matrix`: oldest and newest Python, torch and triton, each with the wheel that users get.

Environments are made with uv where it is installed, else with virtualenv and pip; a Python that this machine lacks is
skipped, and nox says so. docs/matrix.md has what was run last. Tests named after -- are run in place of the part below.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import gettempdir

import nox

ROOT = Path(__file__).parent
SETS = [
    nox.param(python, torch, triton, id=f"py{python}-torch{torch}-triton{triton}")
    for python, torch, triton in (
        ("3.10", "2.6.0", "3.6.0"),
        ("3.11", "2.13.0", "3.9.0"),
        ("3.12", "2.6.0", "3.9.0"),
        ("3.12", "2.13.0", "3.6.0"),
        ("3.13", "2.6.0", "3.6.0"),
        ("3.13", "2.13.0", "3.9.0"),
    )
]
# A part of this repository's tests: formats, rounding, cases, Triton kernels, the hunt, what reports say.
TESTS = (
    "tests/ref/weights",
    "tests/ref/test_rounding.py",
    "tests/properties/test_case.py",
    "tests/kernels/triton/test_elementwise.py",
    "tests/cli/test_shard.py",
    "tests/cli/test_report.py",
)

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True


@nox.session
@nox.parametrize("python,torch,triton", SETS)
def quick(session: nox.Session, torch: str, triton: str) -> None:
    """Import, check, golden verify, the documents, the pytest suite, and a part of this repository's tests."""
    session.env["OMP_NUM_THREADS"] = "1"
    others = [
        name for name in nox.project.load_toml("pyproject.toml")["project"]["dependencies"] if name[:5] != "torch"
    ]
    session.install(f"torch=={torch}", "setuptools", *others)
    # Over what is there: asked all at once, pip and uv would take the torch that this triton belongs to.
    session.install("--no-deps", f"triton=={triton}")
    session.install("--no-deps", *(["--reinstall"] if session.venv_backend == "uv" else ["--force-reinstall"]), ".")
    versions = "import moeracle, numpy, sys, torch, triton"
    shown = "print('versions:', sys.version.split()[0], torch.__version__, triton.__version__, numpy.__version__)"
    kernel, suite = str(ROOT / "examples/my_kernel.py"), ("--pyargs", "moeracle.properties.suite")
    with session.chdir(session.create_tmp()):  # where no source tree can stand for the wheel
        session.run("python", "-c", f"{versions}; {shown}")
        session.run("moeracle", "check", kernel, "--profile", "smoke")
        session.run("moeracle", "check", "moeracle.kernels", "--op", "silu_and_mul", "--profile", "smoke")
        session.run("moeracle", "golden", "verify")
        session.run("moeracle", "docs", "contracts", silent=True)
        session.run("pytest", "-q", *suite, "--kernel", kernel, "--moeracle-profile", "smoke")
    session.run("pytest", "-q", "-p", "no:cacheprovider", *(session.posargs or TESTS))


# For each extra, or two that belong together, what uses it; FILE is the smallest kernel.
FILE = str(ROOT / "examples/my_kernel.py")
USES = {
    "triton": ("check", "moeracle.kernels", "--op", "tiny_dot", "--profile", "smoke"),
    "hip": ("check", "moeracle.kernels.hip", "--op", "int4_linear", "--profile", "smoke", "--examples", "1"),
    "hip,gfx": ("check", str(ROOT / "examples/rdna/target.py"), "--profile", "smoke", "--examples", "1"),
    "report": ("routing", "--plot", "map.png", "--html", "map.html"),
    "sweep": ("sweep", FILE, "--cases", "50", "--out", "campaign"),
    "ray": ("sweep", FILE, "--cases", "50", "--ray", "local", "--out", "campaign"),
    "clients": ("check", "moeracle.clients.transformers", "--profile", "smoke", "--examples", "1"),
    "docs": (),
    "dev": (),
}


@nox.session(python="3.11", default=False)
@nox.parametrize("extra", [nox.param(extra, id=extra.replace(",", "+")) for extra in USES])
def extra(session: nox.Session, extra: str) -> None:
    """Install the wheel with one extra, and run what needs it."""
    session.env["OMP_NUM_THREADS"] = "1"
    session.install(f".[{extra}]", "torch==2.13.0")
    if extra == "docs":
        session.run("mkdocs", "build", "--quiet", "--site-dir", str(Path(session.create_tmp()) / "site"))
        return
    with session.chdir(session.create_tmp()):
        session.env["TMPDIR"] = gettempdir()  # Ray takes none inside an environment
        if extra != "dev":
            session.run("moeracle", *USES[extra])
            return
        suite = ("--pyargs", "moeracle.properties.suite", "--kernel", FILE, "--moeracle-profile", "smoke")
        session.run("pytest", "-q", "-n", "2", *suite)
    session.run("ruff", "check", ".")
    session.run("hatchling", "build", "-t", "wheel", "-d", session.create_tmp())
    session.run("towncrier", "build", "--draft", "--version", "0", silent=True)
