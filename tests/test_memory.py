"""No file below 10 MB takes more than 1 GB of memory, whatever stands in it and whatever it unpacks to.

A process of its own reads an ordinary file of every kind, then hostile ones, and says how much memory it has taken at
most; what it takes before, torch's libraries above all, is no reader's. `make fuzz` puts much into every field of every
kind.
"""

from __future__ import annotations

import base64
import json
import lzma
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from moeracle.kernels import tuned
from moeracle.properties.golden.catalogue import items
from moeracle.properties.golden.regen import plan_derived
from moeracle.properties.golden.store import GoldenSet
from support.fuzz import Kind, change_json, kinds, nodes
from support.runs import a_run, config_json, git_json, stages

MOST, FILE = 1 << 30, 10_000_000
ALL = int(os.environ.get("MOERACLE_FUZZ", "0")) >= 100_000
MANY = {"objects": [{}] * 290_000, "fields": {str(i): 0 for i in range(590_000)}, "text": "a" * 9_000_000}


PIECES = 80  # of 16 MiB


def zlib_bomb() -> bytes:
    """Return 1.25 GiB of zeros, packed: one piece, and another again and again; to pack them all takes 7 s."""
    packing, zeros, checksum = zlib.compressobj(9), bytes(1 << 24), 1
    first, other = (packing.compress(zeros) + packing.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    for _ in range(PIECES):
        checksum = zlib.adler32(zeros, checksum)
    return first + (PIECES - 1) * other + b"\x03\0" + checksum.to_bytes(4, "big")


def xz_bomb() -> bytes:
    """Return 1.25 GiB of zeros, packed: one block again and again, and an index of one, which nobody should reach."""
    packed = lzma.compress(bytes(1 << 24), preset=1)
    index = 4 * (int.from_bytes(packed[-8:-4], "little") + 1) + 12
    return packed[:12] + PIECES * packed[12:-index] + packed[-index:]


def bombs(every: dict[str, Kind]) -> Iterator[tuple[str, str, bytes]]:
    """Yield (kind, what, file) of what unpacks to very much, or asks for it."""
    probe = json.loads(every["probe file"].seeds[0])
    probe["sections"][0]["answers"]["order"] = base64.b64encode(zlib_bomb()).decode()
    yield "probe file", "zlib", json.dumps(probe).encode()
    calls = json.loads(every["infer file"].seeds[0])
    yield "infer file", "xz", json.dumps({**calls, "outputs": base64.b64encode(xz_bomb()).decode()}).encode()
    site = "int4_linear/T1000000-N65536-K65536-G32/bf16/exllama-sym/-/normal/s0"
    yield "infer file", "a case", json.dumps({**calls, "op": "int4_linear", "site": site}).encode()
    tensor = b'{"one.out":{"dtype":"BF16","shape":[2,8],"data_offsets":[0,32]}}'
    yield "recording's tensors", "too many bytes", b"\x40\0\0\0\0\0\0\0" + tensor + bytes(9_000_000)
    plain = json.loads(every["report"].seeds[0])
    here, key = next((here, key) for here, key in nodes(plain) if key == "cells")
    here[key] = [[i % 2 * 5.0 for i in range(1000)]] * 580
    yield "report", "cells", json.dumps(plain, separators=(",", ":")).encode()
    search = next(json.loads(seed) for seed in every["report"].seeds if b'"moeracle bisect git"' in seed)
    yield "report", "commits", json.dumps({**search, "commits": 10**9}).encode()


def hostile(every: dict[str, Kind]) -> Iterator[tuple[str, str, bytes]]:
    """Yield (kind, what, file)."""
    yield from bombs(every)
    for name, kind in every.items():
        if kind.change is not change_json:
            continue
        for what, much in MANY.items():
            if ALL or name in ("tuned table", "golden manifest"):
                yield name, what, json.dumps(much).encode()
        if not ALL:
            continue
        for place in range(len(list(nodes(json.loads(kind.seeds[0]))))):
            for what, much in MANY.items():
                plain = json.loads(kind.seeds[0])
                here, key = list(nodes(plain))[place]
                here[key] = much
                yield name, f"{what} in {key}", json.dumps(plain).encode()


def memory(what: str) -> int:
    """Return VmRSS, the bytes that this process holds, or VmHWM, the most that it has held.

    Not ru_maxrss, in which the size of the process that started this one stays.
    """
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def main(folder: Path) -> None:
    """Read an ordinary file of every kind and print the memory held; read every hostile one, print the most held."""
    from test_fuzz import WANTED, recording

    tuned.FOLDER = folder / "files"
    few = [item for item in items() if (item.literal or item.case) in WANTED]
    golden = plan_derived(GoldenSet(), "for a test", "0", catalogue=few).golden
    every = kinds(folder, golden, recording(), [a_run(), stages(), git_json(), config_json()])
    for kind in every.values():
        kind.read(kind.seeds[0], False)
    print(f"{memory('VmRSS'):,}\tordinary files", flush=True)
    for name, what, data in hostile(every):
        assert len(data) < FILE, (name, what, len(data))
        try:
            every[name].read(data, ALL and name == "report")
            said = "read"
        except ValueError as error:
            said = str(error)[-90:]
        del data
        print(f"{memory('VmHWM'):,}\t{name}\t{what}\t{said!r}", flush=True)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux's")
def test_a_small_file_takes_no_vast_memory(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    words = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(lines) > 11
    base, most = (int(line.partition("\t")[0].replace(",", "")) for line in (lines[0], lines[-1]))
    print("\n" + "\n".join(lines))
    assert most - base < MOST, "\n".join(lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
