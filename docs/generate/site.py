"""What mkdocs asks while it builds the site: the pages that are made from the code, and links out of docs/.

Pages made here: each op's from its record, the faults' from their register, the API's from `__all__`, pictures, and the
files of the repository that documents link to. `make docs` builds the site.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from inspect import getdoc, isclass, isroutine, signature
from pathlib import Path
from typing import Any

import pictures  # beside this file
from mkdocs.structure.files import File, Files

from moeracle import ref
from moeracle.commands.op import WEIGHT, form_of, returned, starter_file
from moeracle.properties import faults as register
from moeracle.properties.cases.optable import OPS, Op

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")
# Modules whose `__all__` is the public interface, with the title of their page.
PUBLIC = {
    "moeracle": "moeracle",
    "moeracle.ref": "moeracle.ref",
    "moeracle.testing": "moeracle.testing",
    "moeracle.gfx11": "moeracle.gfx11",
    "moeracle.clients": "moeracle.clients",
}
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LANGUAGES = {
    ".py": "python",
    ".json": "json",
    ".patch": "diff",
    ".toml": "toml",
    ".sh": "bash",
    ".cpp": "cpp",
    ".hip": "cpp",
}
TIER = re.compile(r"^\| (F\d+\w*) \|[^|]*\|[^|]*\|[^|]*\| ([^|]*) \|", re.MULTILINE)  # of the last run's table
LONGEST_SOURCE = 60_000  # characters of a file that a page shows whole


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that no file in docs/ holds."""
    made = {**dict(_op_pages()), "faults-gallery.md": _gallery(), **dict(_reference_pages()), **dict(_root_pages())}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    linked = {path for text in [*made.values(), *_documents()] for path in _outside(text)}
    for path in sorted(linked):
        files.append(File.generated(config, _uri(path), content=_source_page(path)))
    for name in ("extra.css", "iframe-worker.js"):
        files.append(File.generated(config, name, content=(ROOT / "docs/generate" / name).read_text()))
    for name, picture in pictures.drawn():
        files.append(File.generated(config, f"pictures/{name}.svg", content=picture))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links out of docs/ lead to the pages that stand for those files."""
    uri = page.file.src_uri
    source = next((path for path, made in ROOT_PAGES.items() if made == uri and uri != "index.md"), None)
    base = ROOT / source if source else ROOT / uri if uri.startswith("integrations/") else ROOT / "docs" / uri
    return LINK.sub(lambda found: _relinked(found[1], base.parent, uri), markdown)


def _relinked(target: str, folder: Path, uri: str) -> str:
    path = (folder / target).resolve()
    if not path.exists() or not path.is_relative_to(ROOT):
        return target
    return os.path.relpath(_uri(path), Path(uri).parent or ".")


def _uri(path: Path) -> str:
    """Return where the site has a file of the repository."""
    name = path.relative_to(ROOT).as_posix()
    if name in ROOT_PAGES:
        return ROOT_PAGES[name]
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if name.startswith("integrations/") and name.endswith(".md"):
        return name
    return f"source/{name}" if path.suffix == ".png" else f"source/{name}.md"


def _documents() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]


def _outside(text: str) -> Iterator[Path]:
    """Yield the files of the repository, outside docs/, that a text links to."""
    for target in LINK.findall(text):
        for folder in (ROOT / "docs", ROOT, ROOT / "integrations"):
            path = (folder / target).resolve()
            if path.exists() and path.is_relative_to(ROOT) and path != ROOT:
                if _uri(path).startswith("source/"):
                    yield path
                break


def _source_page(path: Path) -> str | bytes:
    if path.suffix == ".png":
        return path.read_bytes()
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        return f"# {name}\n\n" + "".join(f"- `{file.name}`\n" for file in sorted(path.iterdir()))
    text = path.read_text(encoding="utf-8")
    if len(text) > LONGEST_SOURCE:
        beginning = f"A file of {len(text):,} characters; the repository has it. Its beginning:"
        return f"# {name}\n\n{beginning}\n\n{_code(text[:2000], path)}"
    return f"# {name}\n\n{_code(text, path)}"


def _code(text: str, path: Path) -> str:
    return f"````{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n````\n"


def _root_pages() -> Iterator[tuple[str, str]]:
    notes = [" ".join(path.read_text(encoding="utf-8").split()) for path in sorted((ROOT / "changes").glob("*.*.md"))]
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        text = text.replace("## Unreleased\n", "\n- ".join(["## Unreleased\n", *notes]) + "\n", 1)
        yield ROOT_PAGES[name], text
    for path in sorted((ROOT / "integrations").glob("*.md")):
        yield f"integrations/{path.name}", path.read_text(encoding="utf-8")


# ---- Ops ----


def _op_pages() -> Iterator[tuple[str, str]]:
    rows = [(f"[{op.name}]({op.name}.md)", f"`{op.signature(op.name)}`", _escaped(op.summary)) for op in OPS.values()]
    yield (
        "ops/index.md",
        "# Ops\n\nWhat a kernel can be judged as. `moeracle op OP` prints such a page.\n\n"
        + _table(("op", "call", "what it computes"), rows),
    )
    for op in OPS.values():
        yield f"ops/{op.name}.md", _op_page(op)


def _op_page(op: Op) -> str:
    arguments = [*op.arguments, *([op.extra] if op.extra else [])]
    words = [
        ("dimensions", [f"[{letter}]" if letter in op.optional else letter for letter in op.dims]),
        ("dtype", op.dtypes),
        ("routing", [*op.routings, *(f"+{flag}" for flag in op.routing_flags)]),
        ("data", [*op.data, *(f"+{flag}" for flag in op.data_flags)]),
    ]
    faults = [(fault.id, fault.title) for fault in register.FAULTS.values() if op.name in fault.ops]
    parts = [
        f"# {op.name}",
        f"{_escaped(op.summary)} D is the activation dtype.",
        f"```python\n{op.signature(op.name)}\n```",
        "## Arguments",
        _table(("argument", "dtype and shape", "meaning"), [(f"`{a.name}`", form_of(a), a.meaning) for a in arguments]),
        _table(("of an `Int4Weight`", "what it is"), [(f"`{a}`", b) for a, b in WEIGHT]) if op.weight else "",
        "## Results",
        f"A kernel returns {returned(op)}.",
        _table(("result", "dtype and shape", "meaning"), [(f"`{r.name}`", r.form, r.meaning) for r in op.results]),
        "## What a case may say",
        "[Cases](../cases.md) explains each word.",
        _table(
            ("field", "words"),
            [(name, " ".join(f"`{w}`" for w in said)) for name, said in words if tuple(said) != ("-",)],
        ),
        "## A kernel file to start from",
        f"`moeracle new {op.name} FILE` writes it.",
        f"```python\n{starter_file(op).rstrip()}\n```",
        "## Faults that are planted in it",
        "[Every fault](../faults-gallery.md), with its thread.",
        _table(("id", "what is wrong"), faults) if faults else "None.",
        "## Reference",
        f"::: {_path(getattr(ref, op.name))}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# ---- Faults ----


def _gallery() -> str:
    """Return the faults by the file that plants them, each with its thread, where it shows and how it looks."""
    parts = [
        "# Faults, a gallery",
        f"{len(register.FAULTS)} bugs, most of them from public threads, each one small change of a correct simulated "
        "kernel. `moeracle faults` plants them all and says which check sees each; [its last run](faults.md), beside "
        "published tolerances.",
    ]
    tiers = dict(TIER.findall((ROOT / "docs/faults.md").read_text(encoding="utf-8")))
    families: dict[str, list[register.Fault]] = {}
    for fault in register.FAULTS.values():
        families.setdefault(_family(fault), []).append(fault)
    for name, faults in families.items():
        doc = (getdoc(import_module(f"moeracle.properties.faults.{name}")) or "").splitlines()[0]
        rows = [
            (
                f.id,
                f"{f.title}<br>{_thread(f.source)}",
                f"`{f.stage}` of " + ", ".join(f"`{op}`" for op in f.ops),
                tiers.get(f.id, ""),
            )
            for f in faults
        ]
        parts += [
            f"## {name.replace('_', ' ').capitalize()}",
            doc,
            _table(("id", "bug, thread", "where it shows", "seen by"), rows),
        ]
    return "\n\n".join(parts) + "\n"


def _family(fault: register.Fault) -> str:
    """Return the file of properties/faults whose functions plant a fault."""
    modules = [str(getattr(step, "__module__", "")) for step in fault.steps.values()]
    return next(
        (name.rpartition(".")[2] for name in modules if ".faults." in name and not name.endswith(".base")), "others"
    )


def _thread(source: str) -> str:
    return f"[{source.removeprefix('https://github.com/')}]({source})" if source.startswith("https://") else source


# ---- API ----


def _reference_pages() -> Iterator[tuple[str, str]]:
    seen: set[int] = set()  # what two modules offer is on the first one's page
    for module, title in PUBLIC.items():
        names = [name for name in import_module(module).__all__ if name != "__version__"]
        names = [name for name in names if id(_of(module, name)) not in seen]
        seen |= {id(_of(module, name)) for name in names}
        public = [name for name in names if isclass(_of(module, name)) or isroutine(_of(module, name))]
        others = [name for name in names if name not in public]
        text = f"# {title}\n\n{(getdoc(import_module(module)) or '').splitlines()[0]}\n\n"
        text += "".join(_documented(_of(module, name)) for name in public)
        if others:
            text += "## Tables\n\n" + ", ".join(f"`{name}`" for name in others) + "\n"
        yield f"reference/{module}.md", text


def _documented(thing: Any) -> str:
    """Return a name's section; moeracle.kernels is a namespace package, which mkdocstrings does not read."""
    if ".kernels." not in thing.__module__:
        return f"::: {_path(thing)}\n\n"
    call = "" if isclass(thing) and issubclass(thing, Exception) else signature(thing)
    return f"## {thing.__name__}\n\n```python\n{thing.__name__}{call}\n```\n\n```text\n{getdoc(thing)}\n```\n\n"


def _path(thing: Any) -> str:
    """Return the full name of a class or function."""
    return f"{thing.__module__}.{thing.__qualname__}"


def _of(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---" for _ in columns], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
