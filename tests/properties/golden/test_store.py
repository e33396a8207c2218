"""Sets on disk: the same bytes from the same tensors, and everything that is damaged refused in one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from moeracle.properties.golden.store import GoldenSet, read_set, write_set
from moeracle.properties.golden.tensors import (
    digest,
    digest_all,
    from_safetensors,
    inputs_of,
    to_safetensors,
    with_inputs,
)

FIXTURES = Path(__file__).parents[3] / "fixtures"
TENSORS = {
    "b": torch.arange(6, dtype=torch.int32).reshape(2, 3),
    "a": torch.tensor([1.5, -0.0]).bfloat16(),
    "c": torch.zeros(0, 4, dtype=torch.float16),
    "d": torch.tensor([3], dtype=torch.int64),
}


def test_the_same_tensors_are_the_same_bytes_in_whatever_order_they_come() -> None:
    data = to_safetensors(TENSORS)
    assert data == to_safetensors(dict(reversed(TENSORS.items())))
    again = load(data)
    assert {name: digest(t) for name, t in again.items()} == {name: digest(t) for name, t in TENSORS.items()}
    assert from_safetensors(data).keys() == TENSORS.keys()


def test_a_digest_sees_dtype_shape_sign_of_zero_and_name() -> None:
    one = torch.zeros(4)
    others = [one.half(), one.reshape(2, 2), -one, one[:3]]
    assert len({digest(t) for t in (one, *others)}) == 5
    assert digest(one) == digest(torch.zeros(4, 2).T[0])  # strides are not part of it
    assert digest_all({"x": one}) != digest_all({"y": one})


def test_what_was_written_is_read_back(small: GoldenSet, folder: Path) -> None:
    again = read_set(folder)
    assert again.entries == small.entries
    for entry in small.entries:
        assert digest_all(again.results_of(entry)) == digest_all(small.results_of(entry))
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    write_set(folder, again)
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before


def test_stored_inputs_go_back_into_padded_and_transposed_tensors() -> None:
    from moeracle.properties.cases.case import Case

    for text in (
        "int4_linear/T3-N16-K64-G32/bf16/exllama-v1+pad32/-/normal+strided/s0",
        "int4_linear/T3-N16-K64-G32/fp16/gptq-v1/-/normal/s0",
    ):
        problem = Case.parse(text).build()
        stored = inputs_of(problem)
        stored["x"] = stored["x"] + 1
        changed = with_inputs(problem, stored)
        assert digest_all(inputs_of(changed)) == digest_all(stored)
        assert changed.args["x"].stride() == problem.args["x"].stride()
        assert changed.args["w"].scale.stride() == problem.args["w"].scale.stride()
        assert changed.args["w"].packed.stride() == problem.args["w"].packed.stride()
        assert torch.equal(problem.args["x"] + 1, changed.args["x"])


def _manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _first(folder: Path) -> Path:
    return next(iter(sorted(folder.rglob("*.safetensors"))))


def damage(folder: Path, how: str) -> None:
    """Do one kind of damage to a set."""
    path, manifest = _first(folder), folder / "manifest.json"
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(bytes(data[:-1]))
    elif how == "flipped bit":
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    elif how == "missing":
        path.unlink()
    elif how == "unlisted":
        path.with_name("other.safetensors").write_bytes(bytes(data))
    elif how == "no manifest":
        manifest.unlink()
    elif how == "half a manifest":
        manifest.write_text(manifest.read_text()[:-20])
    elif how == "version":
        _manifest(folder, format_version=99)
    elif how == "kind":
        _manifest(folder, kind="something else")
    elif how == "no entries":
        _manifest(folder, entries=None)
    elif how == "climbing":
        _manifest(folder, files={"../../etc/passwd": "0"})
    elif how == "not safetensors":
        path.write_bytes(b"hello")
        files = json.loads(manifest.read_text())["files"]
        _manifest(folder, files={**files, str(path.relative_to(folder)): hashlib.sha256(b"hello").hexdigest()})
    elif how == "no text":
        entries = json.loads(manifest.read_text())["entries"]
        entries[0]["case"] = 5
        _manifest(folder, entries=entries)
    elif how == "bottomless":
        manifest.write_text("[" * 100_000)
    elif how == "bytes":
        manifest.write_bytes(bytes(range(256)))
    elif how == "names a file that is not there":
        entries = json.loads(manifest.read_text())["entries"]
        entries[0]["file"] = "int4_linear/other.safetensors"
        _manifest(folder, entries=entries)
    elif how == "other words":
        manifest.write_text(manifest.read_text().replace("for a test", "for a jest", 1))
    elif how == "other case of a literal":
        literal = next(entry for entry in json.loads(manifest.read_text())["entries"] if entry["literal"])
        manifest.write_text(manifest.read_text().replace(literal["case"], literal["case"].replace("s0", "s1")))
    elif how == "other space":
        manifest.write_text(manifest.read_text() + " ")
    elif how == "other outputs":
        entries = json.loads(manifest.read_text())["entries"]
        entries[0]["outputs"] = {"out": "0" * 64}
        _manifest(folder, entries=entries)
    else:
        assert how == "other fields"
        entries = json.loads(manifest.read_text())["entries"]
        entries[0]["colour"] = "red"
        _manifest(folder, entries=entries)


DAMAGES = {
    "other words": "its text is not what its sha256 says",
    "other case of a literal": "its text is not what its sha256 says",
    "other space": "its text is not what its sha256 says",
    "truncated": "is damaged (its sha256",
    "flipped bit": "is damaged (its sha256",
    "missing": "is missing",
    "unlisted": "other.safetensors is not in the manifest",
    "no manifest": "found no manifest.json",
    "half a manifest": "not JSON",
    "version": "has format_version 99, must be 1",
    "kind": "got kind 'something else'",
    "no entries": "wrong fields (entries: Input should be a valid array)",
    "climbing": "must be <op>/<case>.safetensors",
    "not safetensors": "is not a safetensors file",
    "no text": "wrong fields (entries.0.case: Input should be a valid string)",
    "bottomless": "not JSON",
    "bytes": "not JSON",
    "names a file that is not there": "has no results of",
    "other outputs": "is not what the manifest's entry says",
    "other fields": "wrong fields (entries.0.colour: Unexpected keyword argument)",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_refused_in_one_line(folder: Path, how: str) -> None:
    damage(folder, how)
    with pytest.raises(ValueError, match=r"^golden: ") as caught:
        read_set(folder)
    assert DAMAGES[how] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("listed", [False, True])
def test_a_truncated_file_is_refused_wherever_it_ends(folder: Path, share: float, listed: bool) -> None:
    """Also where the manifest was made to fit: the file then has no end to its header or its tensors."""
    path = _first(folder)
    data = path.read_bytes()[: int(share * path.stat().st_size)]
    path.write_bytes(data)
    if listed:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        _manifest(folder, files={**files, str(path.relative_to(folder)): hashlib.sha256(data).hexdigest()})
    with pytest.raises(ValueError, match=r"^golden: ") as caught:
        read_set(folder)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert path.read_bytes() == data


def test_files_that_no_entry_names_go_with_the_manifest(folder: Path, small: GoldenSet) -> None:
    gone = [entry for entry in small.entries if entry.op == "silu_and_mul"]
    small.entries = [entry for entry in small.entries if entry.op != "silu_and_mul"]
    write_set(folder, small)
    assert gone
    assert not (folder / "silu_and_mul").exists()
    assert len(read_set(folder).entries) == len(small.entries)


def test_the_shipped_set_is_whole_and_small() -> None:
    golden = read_set(FIXTURES)
    assert len(golden.entries) >= 300
    size = sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file() and "h200" not in path.parts)
    assert size < 3_000_000
    assert all(entry.reason and entry.date and entry.version and entry.why for entry in golden.entries)
