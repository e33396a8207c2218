"""Files of every kind that others may send, changed at random, and what reads each of them."""

from __future__ import annotations

import hashlib
import json
import lzma
import random
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from moeracle.commands.kernels import bench_record
from moeracle.files import read_json
from moeracle.kernels import tuned
from moeracle.kernels.triton.tiles import Tile
from moeracle.properties.bisect.history_runner import Ended, conclude, read_answer
from moeracle.properties.bisect.history_state import Judged, Memory, Plan
from moeracle.properties.cases.case import Case
from moeracle.properties.golden.store import GoldenSet, read_set, write_set
from moeracle.properties.golden.swap import DECIDED, recover
from moeracle.properties.golden.verify import verify_set
from moeracle.properties.infer import infer_recorded, probe_file
from moeracle.properties.infer.calls import ReplayedCalls
from moeracle.properties.recordings.recordings import Recording, read_recording, write_recording
from moeracle.properties.recordings.replay import replay
from moeracle.properties.report.html.page import render
from moeracle.properties.report.html.view import read_run
from moeracle.ref.contracts.contract import contract

Rng = random.Random
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 1 << 31, 1 << 63, 1 << 64, 10**40, 0.5, -0.0, 1e308, 5e-324,
    float("nan"), float("inf"), "", "x", "\n", "\x00", "\x1b[31m", "\u202e", "\ud800", "../../etc/passwd",
    "/etc/passwd", "a" * 5000, "9" * 40, "inf", [], {}, [[]], [None, None], {"": {}}, [0] * 50,
)  # fmt: skip


class Kind(NamedTuple):
    """One kind of file.

    Args:
        seeds: right ones.
        change: makes another out of one.
        read: takes it and whether to do what is slow, too; a ValueError of one line is right, anything else is not.
        slow: once in so many inputs it is used as well as read.
    """

    seeds: list[bytes]
    change: Callable[[bytes, Rng], bytes]
    read: Callable[[bytes, bool], object]
    slow: int = 100


def nodes(plain: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) for every value of a JSON file."""
    todo = [plain]
    while todo:
        here = todo.pop()
        for key in here if isinstance(here, dict) else range(len(here)):
            yield here, key
            if isinstance(here[key], (dict, list)):
                todo.append(here[key])


def change_json(data: bytes, rng: Rng) -> bytes:
    """Change one to three values of a JSON file; of every eighth, bytes."""
    if rng.random() < 0.125:
        return change_bytes(data, rng)
    plain = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(nodes(plain))
        if not places:
            break
        here, key = rng.choice(places)
        how = rng.randrange(6)
        if how == 0:
            del here[key]
        elif how == 1:
            other, name = rng.choice(places)
            here[key] = json.loads(json.dumps(other[name])) if len(json.dumps(other[name])) < 2000 else None
        elif how == 2 and isinstance(here[key], (int, float)):
            here[key] = rng.choice((-here[key], here[key] + 1, here[key] * 2**40, str(here[key])))
        elif how == 3 and isinstance(here[key], str):
            here[key] = change_text(here[key], rng)
        elif how == 4 and isinstance(here, dict):
            here[rng.choice(("", "extra", "\x1b", str(key) + "x"))] = deepcopy(rng.choice(ODD))
        else:
            here[key] = deepcopy(rng.choice(ODD))
    return json.dumps(plain).encode()


def change_text(text: str, rng: Rng) -> str:
    """Change a few characters."""
    for _ in range(rng.choice((1, 2, 4))):
        at = rng.randrange(len(text) + 1)
        put = rng.choice(("", "0", "9" * 30, "-", "/", "+", ",", "=", ".", "\n", "\x1b", "é", "..", text[:5]))
        text = text[:at] + put + text[at + rng.randrange(3) :]
    return text


def change_bytes(data: bytes, rng: Rng) -> bytes:
    """Flip, drop, add or cut bytes, most of them near the beginning, where headers are."""
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(max(1, min(len(raw), rng.choice((16, 400, len(raw) + 1)))))
        how = rng.randrange(4)
        if how == 0 and raw:
            raw[at % len(raw)] ^= 1 << rng.randrange(8)
        elif how == 1:
            raw[at : at + rng.randrange(4)] = b""
        elif how == 2:
            raw[at:at] = rng.randbytes(rng.randrange(1, 5))
        elif rng.random() < 0.3:
            del raw[at:]
    return bytes(raw)


def parses(data: bytes) -> bool:
    """Say whether a file is JSON of some kind, or text."""
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def kinds(folder: Path, golden: GoldenSet, recording: Recording, runs: list[dict[str, Any]]) -> dict[str, Kind]:
    """Return every kind, with its files in a folder of their own.

    Args:
        folder: an empty one, where kernels' tuning tables are read, too.
        golden: a small set.
        recording: a small one.
        runs: what `check` and `bisect` wrote.
    """
    hardware = Path(__file__).parents[2] / "fixtures" / "hardware" / "h200"
    for name in ("golden", "journal", "recording", "files"):
        (folder / name).mkdir()
    write_set(folder / "golden", golden)
    write_recording(folder / "recording", recording.header, list(recording.entries), recording.tensors)
    files, memory = folder / "files", Memory(folder / "files")
    probe = probe_file.ask_all("simulated", 2, "bf16", probe_file.sequential)
    plan = Plan("a" * 40, "b" * 40, "kernels/moe.py", "op/dims", build="make")
    judged = Judged("c" * 40, "bad", "wrong", statuses=["illegal"], max_ratio=float("inf"), stage="h", tier="nonfinite")
    verdict = {"status": "illegal", "stage": "h", "tier": "interval", "reason": "wrong", "max_ratio": "inf"}
    table = {"gpu": "g", "arch": "a", "made_by": {}}
    row = {"op": "x", "N": 64, "K": 64, "E": 1, "G": 32, "dtype": "bf16", "rows_per_expert": 1.0, "tile": vars(Tile())}
    bench = {"device": "GPU", "versions": {}, "against": {}, "ceilings": {"gbs": 1.0}, "command": "c",
             "rows": [{"kernel": "k", "case": "c"}]}  # fmt: skip
    new = hashlib.sha256(b"new").hexdigest()
    journal = {"format_version": 1, "put": {"a/1": [None, new], "manifest.json": [None, new]}, "drop": {"b/2": new}}

    def to(name: str, data: bytes) -> Path:
        path = files / name
        path.write_bytes(data)
        return path

    def read_table(data: bytes, slow: bool) -> None:
        to("gpu.json", data)
        tuned.load.cache_clear()
        for rows in tuned.load("gpu").values():
            found = tuned.pick(rows, 1.0)
            if found is not None:
                tuned.made(Tile, found["tile"], "x")

    def read_manifest(data: bytes, slow: bool) -> None:
        (folder / "recording" / "manifest.json").write_bytes(data)
        found = read_recording(folder / "recording")
        if slow and found.entries:
            replay(found.entries[0], found.tensors[found.entries[0].name])

    def read_packed(data: bytes, slow: bool) -> None:
        packed = lzma.compress(data, preset=0)
        (folder / "recording" / packed_file).write_bytes(packed)
        sums = {**manifest["files"], packed_file: hashlib.sha256(packed).hexdigest()}
        read_manifest(json.dumps({**manifest, "files": sums}).encode(), slow)

    def read_probe(data: bytes, slow: bool) -> None:
        for section in probe_file.read_probe(to("probe.json", data))["sections"]:
            probe_file.answers_of(section)
            if slow:
                probe_file.read_out(section)

    def read_calls(data: bytes, slow: bool) -> None:
        ReplayedCalls(to("calls.json", data))
        if slow:
            infer_recorded(files / "calls.json")

    def read_golden(data: bytes, slow: bool) -> None:
        (folder / "golden" / "manifest.json").write_bytes(data)
        found = read_set(folder / "golden")
        if slow:
            verify_set(found)

    def read_fixture(data: bytes, slow: bool) -> None:
        (folder / "golden" / fixture).write_bytes(data)
        sums = {**listed["files"], fixture: hashlib.sha256(data).hexdigest()}
        read_golden(json.dumps({**listed, "format_version": 1, "files": sums}).encode(), slow)

    def read_journal(data: bytes, slow: bool) -> None:
        shutil.rmtree(folder / "journal", ignore_errors=True)
        for place in (f"{DECIDED}/a/1", f"{DECIDED}/manifest.json", "b/2"):
            (folder / "journal" / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / "journal" / place).write_bytes(b"new")
        (folder / "journal" / DECIDED / "journal.json").write_bytes(data)
        recover(folder / "journal")

    def read_report(data: bytes, slow: bool) -> None:
        run = read_run(to("run.json", data))
        if slow:
            render([run])

    def read_memory(data: bytes, slow: bool) -> None:
        to(f"{judged.commit}.json", data)
        found = memory.get(judged.commit)
        assert found is None or json.dumps(found.as_dict(), allow_nan=False)

    def read_plan(data: bytes, slow: bool) -> None:
        to("plan.json", data)
        assert memory.plan().key

    def read_said(data: bytes, slow: bool) -> None:
        conclude(judged.commit, plan, Ended(1, 0.0), read_answer(to("answer.json", data)), "words")

    def read_text(data: bytes, slow: bool) -> None:
        text = data.decode()
        (contract if "/" not in text else Case.parse)(text)

    manifest = json.loads((folder / "recording" / "manifest.json").read_bytes())
    packed_file = next(iter(manifest["files"]))
    listed = json.loads((folder / "golden" / "manifest.json").read_bytes())
    listed.pop("sha256")
    fixture = next(iter(listed["files"]))
    texts = [entry.case.encode() for entry in golden.entries] + [entry.contract.encode() for entry in golden.entries]

    def as_json(*values: Any) -> list[bytes]:
        return [json.dumps(value).encode() for value in values]

    def change_line(data: bytes, rng: Rng) -> bytes:
        return change_text(data.decode(), rng).encode()

    return {
        "tuned table": Kind(as_json({**table, "rows": [row, row]}), change_json, read_table),
        "recording": Kind(as_json(manifest), change_json, read_manifest),
        "recording's tensors": Kind(
            [lzma.decompress((folder / "recording" / packed_file).read_bytes())], change_bytes, read_packed
        ),
        "probe file": Kind(
            as_json(probe_file.content({"gpu": "none"}, [probe])), change_json, read_probe, slow=2000
        ),
        "infer file": Kind(
            [(hardware / "infer" / "tiny_dot-dtypebf16-k2048.json").read_bytes()], change_json, read_calls, slow=1000
        ),
        "golden manifest": Kind(as_json({**listed, "format_version": 1}), change_json, read_golden, slow=50),
        "golden file": Kind([(folder / "golden" / fixture).read_bytes()], change_bytes, read_fixture, slow=50),
        "journal": Kind(as_json(journal), change_json, read_journal),
        "report": Kind(as_json(*runs), change_json, read_report, slow=20),
        "bisect's memory": Kind(as_json(judged.as_dict()), change_json, read_memory),
        "bisect's plan": Kind(as_json({"format_version": 1, **vars(plan)}), change_json, read_plan),
        "bisect's answer": Kind(as_json({"verdicts": [verdict, verdict]}), change_json, read_said),
        "bench": Kind(as_json(bench), change_json, lambda data, slow: bench_record.read(to("bench.json", data))),
        "peer": Kind(
            as_json({"shape": {"1": 2.5}}),
            change_json,
            lambda data, slow: read_json(to("peer.json", data), dict[str, dict[str, float]], "peer"),
        ),
        "case and contract": Kind(texts, change_line, read_text),
    }  # fmt: skip
