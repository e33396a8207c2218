"""What a campaign found: counted from its Parquet files and journals, row by row, in bounded memory."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeracle.files import write_atomically
from moeracle.properties.common.verdict import STATUSES
from moeracle.ref.errors import require

from .journal import FAILURES, PARTS, finished, schema, unfinished
from .plan import Plan, read_plan

_SIZE = re.compile(r"([A-Za-z])(-?\d+)")
READ = ("op", "kernel", "target", "case", "verdict", "tier", "judged", "max_ratio", "finished", "digests", "seconds")
POINTS = 60  # of a curve


@dataclass
class KernelSummary:
    """What was found of one kernel.

    Args:
        op, kernel, target: which.
        verdicts: legal, illegal, skipped, vacuous: how many cases.
        tiers: of illegal cases.
        judged: elements.
        max_ratio: the largest |error| / bound of a legal case.
        seconds: building, running and judging, of all cases.
        sizes: of each dimension, how many cases had a size of each number of binary digits.
    """

    op: str
    kernel: str
    target: str
    verdicts: Counter[str] = field(default_factory=Counter)
    tiers: Counter[str] = field(default_factory=Counter)
    judged: int = 0
    max_ratio: float = 0.0
    seconds: float = 0.0
    sizes: dict[str, Counter[int]] = field(default_factory=dict)

    def take(self, row: dict[str, Any]) -> None:
        """Count one row."""
        self.verdicts[row["verdict"]] += 1
        if row["verdict"] == "illegal":
            self.tiers[row["tier"]] += 1
        else:
            self.max_ratio = max(self.max_ratio, row["max_ratio"] or 0.0)
        self.judged += row["judged"]
        self.seconds += row["seconds"]
        for letter, size in _SIZE.findall(row["case"].split("/")[1]):
            self.sizes.setdefault(letter, Counter())[max(0, int(size)).bit_length()] += 1

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; a dimension's sizes as [least, most, cases]."""
        sizes = {
            letter: [[1 << (bits - 1) if bits else 0, (1 << bits) - 1, count] for bits, count in sorted(counts.items())]
            for letter, counts in sorted(self.sizes.items())
        }
        plain = {name: getattr(self, name) for name in ("op", "kernel", "target", "judged", "max_ratio")}
        return {
            **plain,
            "verdicts": {name: self.verdicts[name] for name in STATUSES},
            "tiers": dict(self.tiers),
            "seconds": self.seconds,
            "sizes": sizes,
        }


@dataclass
class Summary:
    """What was found in one campaign or several.

    Args:
        kernels: one for each kernel of each TARGET.
        cases: finished.
        wanted: cases in all; None: no end was given.
        twice: cases that were finished twice; must be 0.
        times: when cases were finished, in seconds since the epoch, sorted.
        failures: what workers kept of failing cases, shrunk.
        memory: [seconds of a run, bytes of all its processes].
    """

    kernels: list[KernelSummary]
    cases: int = 0
    wanted: int | None = None
    twice: int = 0
    times: list[float] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)

    @property
    def illegal(self) -> int:
        """Cases that are illegal."""
        return sum(kernel.verdicts["illegal"] for kernel in self.kernels)

    @property
    def judged(self) -> int:
        """Cases that say something."""
        return sum(k.verdicts["legal"] + k.verdicts["illegal"] for k in self.kernels)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "format_version": 1, "kind": "moeracle sweep report", "cases": self.cases, "wanted": self.wanted,
            "twice": self.twice, "illegal": self.illegal, "kernels": [k.as_dict() for k in self.kernels],
            "history": curve(self.times), "memory": self.memory, "failures": self.failures,
        }  # fmt: skip


def summarize(folders: Sequence[Path]) -> Summary:
    """Read campaigns.

    Args:
        folders: of campaigns; the same case of the same kernel in two of them counts as twice.
    Raises:
        ValueError: a folder holds no campaign, or a file in it is damaged.
    """
    found: dict[tuple[str, str, str], KernelSummary] = {}
    whole = Summary([], wanted=0)
    seen: set[int] = set()
    for folder in folders:
        plan = read_plan(folder)
        whole.wanted = None if whole.wanted is None or plan.cases is None else whole.wanted + plan.cases
        for subject in plan.kernels:
            key = (subject.target, subject.op, subject.name)
            found.setdefault(key, KernelSummary(subject.op, subject.name, subject.target))
        for row in rows_of(folder, plan):
            kernel = found[row["target"], row["op"], row["kernel"]]
            kernel.take(row)
            name = hash((row["target"], row["op"], row["kernel"], row["case"]))
            whole.twice += name in seen
            seen.add(name)
            whole.times.append(row["finished"])
            whole.cases += 1
        whole.failures += [json.loads(path.read_bytes()) for path in sorted((folder / FAILURES).glob("*.json"))]
        whole.memory += list(_memory_of(folder))
    whole.kernels = list(found.values())
    whole.times.sort()
    return whole


def rows_of(folder: Path, plan: Plan | None = None) -> Iterator[dict[str, Any]]:
    """Yield what is known of each finished case, READ's columns of it at least.

    Args:
        folder: a campaign's.
        plan: read already, or None.
    """
    import pyarrow.parquet as pq

    plan = plan or read_plan(folder)
    done = finished(folder)
    for chunk, rows in sorted(done.items()):
        path = folder / PARTS / f"{chunk:08d}-{rows}.parquet"
        try:
            table = pq.read_table(path, columns=list(READ))
        except (OSError, ValueError) as error:
            raise ValueError(f"campaign: {path} is damaged ({str(error).splitlines()[0][:100]})") from None
        require(table.num_rows == rows, f"campaign: {path} has {table.num_rows} rows, its name says {rows}")
        yield from table.to_pylist()
    yield from (row for row in unfinished(folder) if row["chunk"] not in done)


def merge(folders: Sequence[Path], file: Path) -> int:
    """Write all rows of campaigns as one Parquet file; return how many there are.

    Args:
        folders: of campaigns.
        file: to be written, whole or not at all.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = schema()
    beside, count = file.with_name(f".{file.name}.part"), 0
    try:
        with pq.ParquetWriter(beside, columns, compression="zstd") as writer:
            for folder in folders:
                done = finished(folder)
                for chunk, rows in sorted(done.items()):
                    writer.write_table(pq.read_table(folder / PARTS / f"{chunk:08d}-{rows}.parquet").cast(columns))
                    count += rows
                late = [row for row in unfinished(folder) if row["chunk"] not in done]
                writer.write_table(pa.Table.from_pylist(late, schema=columns))
                count += len(late)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    return count


def _memory_of(folder: Path) -> Iterator[tuple[float, int]]:
    try:
        lines = (folder / "memory.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            seconds, size = json.loads(line)
        except ValueError:  # a kill cut it short
            continue
        yield seconds, size


def curve(times: Sequence[float]) -> list[tuple[float, int]]:
    """Return how many cases were finished after how many seconds, at evenly spread places."""
    if not times:
        return []
    places = sorted({len(times) * i // POINTS for i in range(1, POINTS + 1)} - {0})
    return [(round(times[place - 1] - times[0], 1), place) for place in places]


def write_page(file: Path, summary: Summary, folders: Sequence[Path]) -> None:
    """Write a campaign's page: self-contained HTML."""
    from moeracle.properties.report.html.page import style, template

    charts = [
        _chart(
            "cases finished", "seconds of wall time since the first", [(t, float(n)) for t, n in curve(summary.times)]
        ),
        _chart("MB of all processes", "seconds of the run", [(t, size / 2**20) for t, size in thinned(summary.memory)]),
    ]
    view = {
        **summary.as_dict(),
        "folders": list(map(str, folders)),
        "charts": [c for c in charts if c],
        "judged": summary.judged,
    }
    write_atomically(file, template("sweep.html").render(view, style=style()))


def thinned(points: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """Return at most POINTS of the points, evenly spread, the last among them."""
    step = -(-len(points) // POINTS) or 1
    return list(points[::-1][::step][::-1])


def _chart(what: str, along: str, points: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    if len(points) < 2:
        return None
    wide, tall = 640, 160
    right, top = max(x for x, _ in points) or 1.0, max(y for _, y in points) or 1.0
    line = " ".join(f"{wide * x / right:.1f},{tall - tall * y / top:.1f}" for x, y in points)
    return {"what": what, "along": along, "line": line, "right": right, "top": top, "wide": wide, "tall": tall}
