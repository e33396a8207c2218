"""A golden set on disk: a manifest, and one safetensors file a case with its inputs, once, and each entry's results.

    DIR/manifest.json            format_version, kind, files (path: sha256), entries
    DIR/<op>/<case>.safetensors  in.<argument>, <entry's source>:<result>

A set is written as one, whatever crashes (swap.py); one with a byte other than its manifest says is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from moeracle.files import FIRST_ERROR, STRICT, parse_json, read_bytes, within
from moeracle.ref.errors import require

from ..cases.optable import OPS
from .catalogue import Item
from .swap import recover, settled, sha256_of, swap
from .tensors import Tensors, digest, digest_all, from_safetensors, to_safetensors

__all__ = ["Entry", "GoldenSet", "read_set", "write_set"]

FORMAT_VERSION = 2  # 1 had no sha256 of its text
KIND = "moeracle golden"
MANIFEST = "manifest.json"
INPUT = "in."
_FILE = re.compile(r"[a-z0-9_]+/[^/\\]+\.safetensors")  # nothing outside the set's folder is ever read or deleted


class ChangedError(ValueError):
    """A set was changed by another process since it was read."""


@dataclass(frozen=True)
class Entry:
    """One case's results under one contract.

    Args:
        case: the case's text; of a literal, its op, shapes and dtype.
        contract: under which the results are legal.
        literal: the literal case's name, or "".
        kernel: whose stored bits these are, or "" for results derived by correct rounding.
        why: what the case is there for.
        file: relative to the set's folder.
        inputs: sha256 of all inputs.
        outputs: result name to sha256.
        derived: sha256 of the correctly rounded results for the same inputs and contract; "" where there are none.
        reason, date, version: why these bits were accepted, when, and by which version of moeracle.
    """

    case: str
    contract: str
    file: str
    inputs: str
    outputs: dict[str, str]
    derived: str
    reason: str
    date: str
    version: str
    why: str = ""
    literal: str = ""
    kernel: str = ""

    __pydantic_config__: ClassVar[Any] = STRICT

    @property
    def op(self) -> str:
        """The case's op."""
        return self.case.partition("/")[0]

    @property
    def source(self) -> str:
        """What the results are called by in the file: the kernel, or the contract they were derived under."""
        return self.kernel or self.contract

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies an entry in a set: file, kernel, contract."""
        return self.file, self.kernel, "" if self.kernel else self.contract

    def item(self) -> Item:
        """Return the case as the catalogue has it."""
        return Item(self.case, (self.contract,), self.why, self.literal)


@dataclass(frozen=True)
class Manifest:
    """What a set's manifest holds.

    Args:
        format_version, kind: of the file.
        files: path to sha256.
        entries: what the files hold.
        sha256: of the manifest's own text, with "" in its place; a set of format 1 has none.
    """

    format_version: int
    kind: str
    files: dict[str, str]
    entries: Annotated[list[Entry], FIRST_ERROR]
    sha256: str = ""

    __pydantic_config__: ClassVar[Any] = STRICT

    def text(self) -> str:
        """Return it as JSON, the same bytes for the same content."""
        plain = asdict(self) if self.format_version > 1 else {k: v for k, v in asdict(self).items() if k != "sha256"}
        return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def signed(self) -> Manifest:
        """Return it with the sha256 of its text."""
        return replace(self, sha256=hashlib.sha256(replace(self, sha256="").text().encode()).hexdigest())


@dataclass
class GoldenSet:
    """A set in memory: entries, and by file the inputs and each source's results.

    Args:
        entries: what the manifest lists.
        inputs: {file: tensors by name}.
        results: {file: {source: tensors by name}}.
    """

    entries: list[Entry] = field(default_factory=list)
    inputs: dict[str, Tensors] = field(default_factory=dict)
    results: dict[str, dict[str, Tensors]] = field(default_factory=dict)

    def add(self, entry: Entry, inputs: Tensors, results: Tensors) -> None:
        """Put in an entry with its tensors, in the place of one with the same key."""
        self.entries = [e for e in self.entries if e.key != entry.key] + [entry]
        self.inputs[entry.file] = inputs
        self.results.setdefault(entry.file, {})[entry.source] = results

    def results_of(self, entry: Entry) -> Tensors:
        """Return an entry's stored results."""
        return self.results[entry.file][entry.source]

    def named(self, op: str | None) -> list[Entry]:
        """Return the entries of one op, or all."""
        return [entry for entry in self.entries if op in (None, entry.op)]


def file_name(item: Item) -> str:
    """Return where a case's fixture lies in its set."""
    return f"{item.op}/{item.name}.safetensors"


def make_entry(item: Item, contract: str, inputs: Tensors, results: Tensors, derived: Tensors, **about: str) -> Entry:
    """Return the entry of these tensors; `about`: reason, date, version, and kernel if it is one's."""
    sums = {name: digest(t) for name, t in sorted(results.items())}
    whole = digest_all(derived) if derived else ""
    where = file_name(item)
    return Entry(
        item.case, contract, where, digest_all(inputs), sums, whole, why=item.why, literal=item.literal, **about
    )


def read_manifest(folder: Path) -> Manifest:
    """Return a set's manifest.

    Raises:
        ValueError: in one line: there is none, it is not one of ours, or of a format that this version cannot read.
    """
    path = folder / MANIFEST
    require(path.is_file(), f"golden: found no {MANIFEST} in {folder}, must be the folder of a golden set")
    where, data = f"golden: {path} is damaged: it", read_bytes(path, "golden")
    plain = parse_json(data, dict[str, Any], where)
    kind, version = plain.get("kind"), plain.get("format_version")
    require(kind == KIND, f"golden: {path} is no golden manifest: got kind {kind!r}, must be {KIND!r}")
    require(
        version in (1, FORMAT_VERSION),
        f"golden: {path} has format_version {version!r}, must be 1 or {FORMAT_VERSION}; "
        "read it with the version of moeracle that wrote it, or make the set again",
    )
    manifest = parse_json(data, Manifest, where)
    strange = [name for name in manifest.files if not _FILE.fullmatch(name)]
    require(
        not strange, f"golden: {path} is damaged: got file {(strange or [''])[0]!r}, must be <op>/<case>.safetensors"
    )
    return manifest


def is_signed(folder: Path) -> bool:
    """Say whether each byte of a manifest's text, its entries' cases and reasons too, is as it was written."""
    manifest = read_manifest(folder)
    return manifest.format_version == 1 or manifest.signed().text().encode() == (folder / MANIFEST).read_bytes()


def differences(folder: Path, manifest: Manifest) -> list[str]:
    """Return what in a set's folder is not as its manifest says: files missing, damaged or unknown."""
    found = []
    for name, sha in sorted(manifest.files.items()):
        path = within(folder, name, "golden")
        if not path.is_file():
            found.append(f"{name} is missing")
        elif sha256_of(path) != sha:
            found.append(f"{name} is damaged (its sha256 is not the manifest's)")
    ops = sorted({name.partition("/")[0] for name in manifest.files})
    present = {f"{op}/{path.name}" for op in ops for path in (folder / op).glob("*.safetensors")}
    return found + [f"{name} is not in the manifest" for name in sorted(present - set(manifest.files))]


def read_set(folder: Path, *, signed: bool = True) -> GoldenSet:
    """Read a set and check every byte of it.

    Args:
        folder: where its manifest.json is.
        signed: the text of the manifest must be what its sha256 says; False for who will write it anew.
    Returns:
        GoldenSet.
    Raises:
        ValueError: in one line, as `read_manifest`; or a file is missing, damaged, or not in the manifest.
    """
    with settled(folder):
        manifest = read_manifest(folder)
        wrong = differences(folder, manifest)
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        require(not wrong, f"golden: {folder}: {wrong[0] if wrong else ''}{more}; restore it from version control")
        golden = GoldenSet()
        for name in manifest.files:
            _read_file(folder, name, golden)
        for entry in manifest.entries:
            _check(entry, folder, golden)
            golden.entries.append(entry)
        hint = "restore it from version control, or after a merge: moeracle golden regen --accept REASON"
        fine = not signed or is_signed(folder)
        require(fine, f"golden: {folder / MANIFEST} is damaged: its text is not what its sha256 says; {hint}")
    return golden


def _read_file(folder: Path, name: str, golden: GoldenSet) -> None:
    try:
        content = from_safetensors((folder / name).read_bytes())
    except ValueError as error:
        raise ValueError(f"golden: {folder / name} is {error}") from None
    golden.inputs[name] = {key.removeprefix(INPUT): t for key, t in content.items() if key.startswith(INPUT)}
    golden.results[name] = {}
    for key, tensor in content.items():
        if not key.startswith(INPUT):
            source, _, stage = key.rpartition(":")
            golden.results[name].setdefault(source, {})[stage] = tensor


def _check(entry: Entry, folder: Path, golden: GoldenSet) -> None:
    where = f"golden: {folder / MANIFEST} is damaged: entry {entry.case!r}"
    require(entry.op in OPS, f"{where} is of no op")
    require(entry.source in golden.results.get(entry.file, {}), f"{where} has no results of {entry.source!r}")
    require(file_name(entry.item()) == entry.file, f"{where} names the file {entry.file!r}")
    sums = {name: digest(t) for name, t in golden.results_of(entry).items()}
    intact = sums == entry.outputs and digest_all(golden.inputs[entry.file]) == entry.inputs
    require(intact, f"golden: {folder / entry.file}: {entry.source!r} is not what the manifest's entry says")


def write_set(folder: Path, golden: GoldenSet, base: str | None = None) -> None:
    """Write a set, whole or not at all, and drop the files that it no longer names.

    Args:
        folder: made if it is not there.
        golden: the set.
        base: `manifest_digest` of what it was made from; None: whatever is there.
    Raises:
        ChangedError: the folder was changed since.
        ValueError: in one line: the folder holds files that the write would lose.
    """
    folder.mkdir(parents=True, exist_ok=True)
    golden.entries.sort(key=lambda e: e.key)
    used = {entry.file for entry in golden.entries}
    data = {name: file_bytes(golden, name) for name in sorted(used)}
    files = {name: hashlib.sha256(content).hexdigest() for name, content in data.items()}
    manifest = Manifest(FORMAT_VERSION, KIND, files, golden.entries).signed()
    recover(folder)
    old = set(read_manifest(folder).files) if (folder / MANIFEST).is_file() else set()
    foreign = {name for name in used - old if sha256_of(folder / name) not in (None, files[name])}

    def check() -> None:
        if base is not None and manifest_digest(folder) != base:
            raise ChangedError(f"golden: {folder} was changed while this ran; nothing was written, run it again")
        wrong = differences(folder, read_manifest(folder)) if old else []
        wrong += [f"{name} is there but not in a manifest" for name in sorted(foreign)]
        require(not wrong, f"golden: will not overwrite {folder}: {(wrong or [''])[0]}; nothing was written")

    swap(folder, {**data, MANIFEST: manifest.text().encode()}, MANIFEST, sorted(old - used), check)


def manifest_digest(folder: Path) -> str:
    """Return the SHA-256 of a folder's manifest, or "" if there is none."""
    return sha256_of(folder / MANIFEST) or ""


def file_bytes(golden: GoldenSet, name: str) -> bytes:
    """Return one file of a set: its inputs and the results of every entry that it holds."""
    wanted = {entry.source for entry in golden.entries if entry.file == name}
    content = {f"{INPUT}{key}": t for key, t in golden.inputs[name].items()}
    for source in wanted:
        content |= {f"{source}:{stage}": t for stage, t in golden.results[name][source].items()}
    return to_safetensors(content)
