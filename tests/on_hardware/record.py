"""Record the in-tree kernels and raw matrix instructions on an H200. One run, under 4 minutes.

    PYTHONPATH=src python3 -u tests/on_hardware/record.py gemms      # or hopper, or kernels

writes a folder of that name in $OUT (or recordings/), to be copied to fixtures/hardware/h200/recordings/: gemms the portable GEMMs
and raw instructions, hopper every tile of the tuned table, kernels all others. Every entry is replayed at once; where
bits differ, changes of its schedule are tried and those that predict more are named.
"""

import multiprocessing as mp
import os
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]
SETS = ("gemms", "kernels", "hopper")
SET = sys.argv[1] if len(sys.argv) > 1 else "gemms"
OUT = Path(os.environ.get("OUT", "recordings")) / SET
WORKERS = int(os.environ.get("WORKERS", "12"))
BUDGET = float(os.environ.get("BUDGET", "200"))  # seconds: workers stop taking jobs
COMMAND = f"PYTHONPATH=src python3 -u tests/on_hardware/record.py {SET}"


def jobs(name):
    """Return a set's jobs, (kind, ...); a worker takes every WORKERS-th, so neighbours share no compile."""
    import record_cases
    import record_others

    return {"gemms": record_cases.gemms, "hopper": record_cases.hopper, "kernels": record_others.kernels}[name]()


def worker(index, todo, start, result):
    """Run every WORKERS-th job; leave (entry fields, tensors) in a file."""
    import record_jobs

    done, errors = [], []
    for job in todo:
        if time.time() - start > BUDGET:
            errors.append(f"{job[:4]}: left out, time is short")
            continue
        found, wrong = record_jobs.run(job)
        done, errors = done + found, errors + wrong
    import torch

    torch.save((done, errors), result)


def main():
    start = time.time()
    OUT.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp())
    context = mp.get_context("spawn")
    todo = jobs(SET)
    parts = [(i, todo[i::WORKERS], start, work / f"{i}.pt") for i in range(WORKERS)]
    processes = [context.Process(target=worker, args=part) for part in parts]
    for p in processes:
        p.start()
    for p in processes:
        p.join(max(1, BUDGET + 20 - (time.time() - start)))
        if p.is_alive():
            p.terminate()
    import record_replay
    import torch

    from moeracle.properties.recordings.recordings import Entry, read_recording, write_recording

    done, errors = [], []
    for *_, path in parts:
        if path.is_file():
            d, e = torch.load(path, weights_only=False)
            done, errors = done + d, errors + e
        else:
            errors.append(f"{path.name}: a worker left nothing")
    entries, tensors, lines = [], {}, {}
    for fields, parts_of, equal, total, first, others in done:
        entry = Entry(**fields)
        if entry.name in tensors:
            errors.append(f"{entry.name}: recorded twice, the second is left out")
            continue
        entries.append(entry)
        tensors[entry.name] = parts_of
        key = (
            entry.kernel,
            entry.store,
            str(entry.facts.get("tile", "")),
            entry.schedule[:90],
            "; ".join(entry.facts.get("instructions", []))[:70],
            entry.facts.get("order", "")[:110],
        )
        lines.setdefault(key, []).append((entry.name, equal, total, f"{first} {entry.schedule} {others}"))
    order = sorted(range(len(entries)), key=lambda i: entries[i].name)
    entries = [entries[i] for i in order]
    write_recording(OUT, record_replay.header(COMMAND), entries, tensors)
    again = read_recording(OUT)
    log = [
        f"{len(again.entries)} entries, {sum(f.stat().st_size for f in OUT.iterdir()) / 1e6:.1f} MB in {len(list(OUT.iterdir()))} files"
    ]
    log += [f"{again.header}"]
    for key, rows in sorted(lines.items()):
        bad = [r for r in rows if r[1] != r[2]]
        equal, total = sum(r[1] for r in rows), sum(r[2] for r in rows)
        line = f"{'ok ' if not bad else 'BAD'} {equal}/{total} equal in {len(rows)} | " + " | ".join(key)
        log.append(line[: 400 if bad else 110])
        log += [f"      {name}: {e}/{t} {first}" for name, e, t, first in bad[:3]]
    log += [f"ERROR {e}" for e in errors]
    log.append(
        f"{sum(e[2] == e[3] for e in done)} of {len(done)} entries wholly predicted; {len(errors)} errors; {time.time() - start:.0f} s"
    )
    (OUT / "record.log").write_text("\n".join(log) + "\n")
    print("\n".join(log))


if __name__ == "__main__":
    if SET not in SETS:
        sys.exit(f"record.py: got {SET!r}, must be one of {', '.join(SETS)}")
    main()
