"""`moeracle models`: list the bit models, replay recorded vectors, search the unit that explains some."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.properties.infer.probe_file import read_probe
from moeracle.properties.infer.unit_fit import Results, UnitFit, fit_unit
from moeracle.properties.recordings.vectors import Replayed, VectorSet, read_vectors, replay_vectors
from moeracle.properties.report.report import require_writable, write_json
from moeracle.ref.bitmodels.models import MODELS
from moeracle.ref.bitmodels.tensor_core import OPERANDS, Instruction
from moeracle.ref.errors import require, unknown

from ..console import print_table, say
from ..probe import vectors_of
from ..process import use_one_thread

COLUMNS = (
    "model", "operands", "accumulator", "how it adds", "least", "zeros, special", "a step", "bits",
)  # fmt: skip
WORDS_OF = {
    "products": "products a step", "order": "order of k", "sum_bits": "bits of the sum", "least": "least exponent",
    "zero_accumulator": "accumulator of 0 at",
}  # fmt: skip
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


def run_fit(vectors: Path, names: list[str], json: Path | None) -> int:
    """Search the unit that explains each set and print its numbers.

    Raises:
        ValueError: an unknown set, or vectors that cannot be read or are block-scaled.
    """
    require_writable(json)
    use_one_thread()
    exact, found = True, []
    for one in chosen(vectors, names):
        searched = one.operands in OPERANDS and not one.scales
        require(
            searched, f"set {one.name}: got {one.operands} with block scales, must be {', '.join(OPERANDS)} without"
        )
        seen = fit_unit(Results(one.operands, one.a, one.b, one.c, one.d))
        _say_fit(one, seen)
        exact = exact and (seen.exact or bool(seen.like))
        found.append({"set": one.name, "exact": seen.exact, **asdict(seen)})
    if json is not None:
        write_json(json, {"format": 1, "sets": found})
    return 0 if exact else ILLEGAL


def _say_fit(one: VectorSet, seen: UnitFit) -> None:
    say(f"\n[{one.name}]  {one.a.shape[1]} products, {one.operands} into {one.out}")
    say(f"  {'predicted':<20} {seen.equal} of {seen.total} ({_percent(seen.equal, seen.total)})")
    for name, value in seen.guess.items():
        if (name == "sum_bits" and value is None) or (name == "zero_accumulator" and seen.guess["sum_bits"] is None):
            continue
        left = seen.open.get(name)
        shown = "none needed" if value is None else value
        say(f"  {WORDS_OF.get(name, name):<20} {shown}" + (f"   left open: {left}" if left else ""))
    for name in set(seen.open) - set(seen.guess):
        say(f"  {WORDS_OF.get(name, name):<20} left open: {seen.open[name]}")
    for unit in seen.units:
        say(f"  {'or another unit':<20} {unit}")
    if seen.like:
        say(f"  {'known models':<20} {', '.join(seen.like)}")
    if not seen.exact:
        say(f"  first result that this unit does not predict: row {seen.first}")


def chosen(vectors: Path, names: list[str]) -> list[VectorSet]:
    """Read vectors and return those of the names given, or all.

    Raises:
        ValueError: a name that none of them has.
    """
    read = vectors_of(read_probe(vectors)) if vectors.is_file() else read_vectors(vectors)
    found = {one.name: one for one in read}
    for name in names:
        if name not in found:
            raise unknown("--set", name, found)
    return [one for name, one in found.items() if not names or name in names]
