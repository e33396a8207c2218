"""`moeracle models`: list the bit models, replay recorded vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.properties.recordings.vectors import Replayed, VectorSet, read_vectors, replay_vectors
from moeracle.properties.report.report import require_writable, write_json
from moeracle.ref.bitmodels.models import MODELS
from moeracle.ref.bitmodels.tensor_core import Instruction
from moeracle.ref.errors import unknown

from ..console import print_table, say
from ..process import use_one_thread

COLUMNS = (
    "model", "operands", "accumulator", "how it adds", "least", "zeros, special", "a step", "bits",
)  # fmt: skip
WORDS = {
    "measured": "measured here", "replayed": "replayed on third-party recordings", "published": "published",
    "assumed": "assumed",
}  # fmt: skip


def run_list() -> int:
    """Print a row for each model."""
    print_table(COLUMNS, [row_of(name, how) for name, how in MODELS.items()], text_columns=4)
    return 0


def row_of(name: str, how: Instruction) -> tuple[str, ...]:
    """Return a model's row of the table that `models list` prints and docs/bit-models.md holds."""
    core = how.core
    assert core is not None
    store = "nearest" if core.store == "rne" else "toward zero"
    form = {"fp32": "fp32", "e8m13": "fp32 of 13 bits", "fp16": "fp16"}[core.form]
    last = f"{form}, added last, nearest" if how.late else f"{form}, {store}"
    bits = str(core.bits) if core.sum_bits is None else f"{core.bits}, {core.sum_bits}"
    evidence = " and ".join(WORDS[word] for word in how.evidence)
    least = "none" if core.least_exponent is None else str(core.least_exponent)
    return name, ", ".join(how.takes), last, evidence, least, WORDS[core.edges], str(how.step), bits


def run_replay(vectors: Path, model: str | None, names: list[str], json: Path | None) -> int:
    """Replay each set and print its row.

    Raises:
        ValueError: an unknown model or set, or vectors that cannot be read.
    """
    require_writable(json)
    if model is not None and model not in MODELS:
        raise unknown("--model", model, MODELS)
    use_one_thread()
    found: list[Replayed] = []
    without: list[str] = []
    for one in chosen(vectors, names):
        try:
            found.append(replay_vectors(one, model))
        except ValueError as error:
            without.append(str(error))
    if found:
        print_table(("set", "model", "evidence", "predicted", "share"), [_row(seen) for seen in found], text_columns=3)
        equal, total = sum(seen.equal for seen in found), sum(seen.total for seen in found)
        say(f"\n{equal} of {total} results of {len(found)} sets are predicted bit for bit ({_percent(equal, total)})")
    wrong = [f"{seen.name}: {seen.first}" for seen in found if not seen.ok]
    for line in (*wrong, *without):
        say(line)
    if json is not None:
        write_json(json, {"format": 1, "sets": [_fields(seen) for seen in found], "without": without})
    return ILLEGAL if wrong else UNJUDGED if without or not found else 0


def _row(seen: Replayed) -> tuple[str, ...]:
    evidence = " and ".join(MODELS[seen.model].evidence)
    return seen.name, seen.model, evidence, f"{seen.equal} of {seen.total}", _percent(seen.equal, seen.total)


def _fields(seen: Replayed) -> dict[str, Any]:
    return {"set": seen.name, "model": seen.model, "equal": seen.equal, "total": seen.total, "first": seen.first}


def _percent(equal: int, total: int) -> str:
    """Return a share in percent that is "100 %" only where it is so."""
    return "100 %" if equal == total else f"{min(100 * equal / total, 99.99):.2f} %"


def chosen(vectors: Path, names: list[str]) -> list[VectorSet]:
    """Read vectors and return those of the names given, or all.

    Raises:
        ValueError: a name that none of them has.
    """
    found = {one.name: one for one in read_vectors(vectors)}
    for name in names:
        if name not in found:
            raise unknown("--set", name, found)
    return [one for name, one in found.items() if not names or name in names]
