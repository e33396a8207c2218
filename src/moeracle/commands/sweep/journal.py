"""What was judged, kept so that no kill loses a finished case or judges one twice.

While a chunk is being judged, journal/NUMBER.jsonl holds its cases, and one line for each case begun and each case
finished. Whoever works on it holds its lock. When all are finished they become parts/NUMBER-ROWS.parquet, which
appears whole or not at all, and the journal goes. A line that a kill cut short is dropped, and its case judged again.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from moeracle.files import lock, write_atomically

JOURNALS, PARTS, FAILURES = "journal", "parts", "failures"
COLUMNS = {
    "case": "string", "op": "string", "kernel": "string", "target": "string", "contract": "string", "verdict": "string",
    "tier": "string", "stage": "string", "reason": "string", "digests": "string", "judged": "int64", "illegal": "int64",
    "exact": "int64", "width_ulp": "float64", "max_ratio": "float64", "seconds": "float64", "finished": "float64",
    "chunk": "int64", "host": "string", "device": "string", "versions": "string",
}  # fmt: skip


class Journal:
    """The journal of one chunk, held by this process.

    Args:
        folder: the campaign's.
        chunk: its number.
    """

    def __init__(self, folder: Path, chunk: int) -> None:
        self.folder, self.chunk = folder, chunk
        self.path = folder / JOURNALS / f"{chunk:08d}.jsonl"
        self.handle = -1
        self.cases: list[str] | None = None
        self.rows: list[dict[str, Any]] = []
        self.begun: Counter[str] = Counter()

    def take(self) -> bool:
        """Take the journal; False where another process holds it or its chunk is finished."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        if not lock(handle, wait=False):
            os.close(handle)
            return False
        self.handle = handle
        if finished_rows(self.folder, self.chunk) is not None or not self._is_there():
            self._remove()
            self.close()
            return False
        self._read()
        return True

    def _is_there(self) -> bool:
        """Say whether the file that is locked is still the one of that name."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self.handle), os.stat(self.path))
        return False

    def _read(self) -> None:
        content = os.pread(self.handle, os.fstat(self.handle).st_size, 0)
        whole = content.rfind(b"\n") + 1
        os.ftruncate(self.handle, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                said = json.loads(line)
            except ValueError:
                raise ValueError(
                    f"campaign: {self.path} is damaged at line {number}; without it its cases are judged again"
                ) from None
            if "cases" in said:
                self.cases = said["cases"]
            elif "begun" in said:
                self.begun[said["begun"]] += 1
            else:
                self.rows.append(said)

    def _append(self, said: dict[str, Any]) -> None:
        data = json.dumps(said, separators=(",", ":")).encode() + b"\n"
        size = os.fstat(self.handle).st_size
        try:
            if os.write(self.handle, data) != len(data):
                raise OSError(28, "No space left on device")
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self.handle, size)
            raise OSError(error.errno, error.strerror or "cannot be written", str(self.path)) from None

    def plan(self, cases: list[str]) -> None:
        """Write down which cases the chunk has: another process might draw others."""
        self._append({"cases": cases})
        self.cases = cases

    def left(self) -> list[str]:
        """Return the cases that are not finished."""
        finished = {row["case"] for row in self.rows}
        return [case for case in self.cases or () if case not in finished]

    def begin(self, case: str) -> int:
        """Write down that a case is begun; return how often it was begun before without being finished."""
        before = self.begun[case]
        self._append({"begun": case})
        self.begun[case] += 1
        return before

    def finish(self, row: dict[str, Any]) -> None:
        """Write down a finished case, one value for each of COLUMNS."""
        self._append(row)
        self.rows.append(row)

    def close_chunk(self) -> None:
        """Write the chunk's Parquet file, then remove the journal."""
        part = self.folder / PARTS / f"{self.chunk:08d}-{len(self.rows)}.parquet"
        write_atomically(part, parquet(self.rows))
        self._remove()

    def _remove(self) -> None:
        if self._is_there():
            with suppress(OSError):
                os.unlink(self.path)

    def close(self) -> None:
        """Let another process take it."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def schema() -> Any:
    """Return COLUMNS as pyarrow's schema."""
    import pyarrow as pa

    return pa.schema([(name, getattr(pa, kind)()) for name, kind in COLUMNS.items()])


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Return rows as one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), file, compression="zstd")
    return file.getvalue()


def finished(folder: Path) -> dict[int, int]:
    """Return the rows of each chunk that is finished."""
    names = (name.partition("-") for name in os.listdir(folder / PARTS) if name.endswith(".parquet"))
    return {int(number): int(rows.removesuffix(".parquet")) for number, _, rows in names if number.isdigit()}


def finished_rows(folder: Path, chunk: int) -> int | None:
    """Return how many rows a finished chunk has; None: it is not finished."""
    return finished(folder).get(chunk)


def unfinished(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of chunks that are not finished, from their journals."""
    for path in sorted((folder / JOURNALS).glob("*.jsonl")):
        with suppress(FileNotFoundError):  # finished meanwhile
            content = path.read_bytes()
            for line in content[: content.rfind(b"\n") + 1].splitlines():
                if line.startswith(b'{"case":'):
                    yield json.loads(line)
