"""Record the in-tree GEMM kernels and raw matrix instructions on an H200. One run, under 4 minutes.

    PYTHONPATH=src python3 -u tests/hardware/record.py

writes to the folder $OUT (or recordings/), to be copied to fixtures/h200/recordings/. Every entry is replayed at once.
"""

import itertools
import multiprocessing as mp
import os
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]
OUT = Path(os.environ.get("OUT", "recordings"))
WORKERS = int(os.environ.get("WORKERS", "12"))
BUDGET = float(os.environ.get("BUDGET", "200"))  # seconds: workers stop taking jobs
DATA = ("normal", "outliers", "subnormal", "cancelling", "wide")
COMMAND = "PYTHONPATH=src python3 -u tests/hardware/record.py"


def jobs():
    """(kind, ...) most valuable first; a worker takes every WORKERS-th, so neighbours share no compile."""
    cases = []
    tiles = [(bm, 64, bk, 4, 2) for bm, bk in itertools.product((16, 64, 128), (32, 64, 128))]
    tiles += [(16, 128, 64, 4, 4), (64, 128, 64, 4, 3), (128, 128, 64, 8, 3)]  # the defaults
    for dt, (i, t) in itertools.product(("bf16", "fp16"), enumerate(tiles)):
        default = t[1] == 128
        R = "T8-E2-k2"
        some = [
            f"grouped_gemm/{R}-N64-K512-G{'128' if default else '32'}/{dt}/exllama-sym/uniform/{d}/s{i}" for d in DATA
        ]
        big = [
            f"grouped_gemm/{R}-N64-K2048-G{'128' if default else '32'}/{dt}/exllama-sym/uniform/{d}/s{i}"
            for d in ("normal", "cancelling")
        ]
        if default:
            big += [
                f"grouped_gemm/{R}-N64-K8192-G128/{dt}/exllama-sym/uniform/{d}/s{i}" for d in ("normal", "outliers")
            ]
        cases.append(("case", "grouped_gemm", "fp32", t, some + big))
        if default:
            cases.append(("case", "grouped_gemm", dt, t, some + big))
            pad = [
                f"padded_gemm/T8-E2-k2-N64-K{K}-G128-B16/{dt}/exllama-sym/uniform/{d}/s{i}"
                for K, d in ((512, "outliers"), (2048, "wide"), (512, "subnormal"), (8192, "cancelling"))
            ]
            cases.append(("case", "padded_gemm", "fp32", t, pad))
            cases.append(("case", "padded_gemm", dt, t, [p.replace("/uniform/", "/uniform+weight/") for p in pad[:2]]))
            lin = [
                f"int4_linear/T16-N64-K{K}-G128/{dt}/exllama-rdna/-/{d}+bias/s{i}"
                for K, d in (
                    (512, "normal"),
                    (2048, "outliers"),
                    (512, "subnormal"),
                    (8192, "wide"),
                    (1000, "cancelling"),
                )
            ]
            lin = [
                p if "K1000" not in p else p.replace("G128", "G8").replace("exllama-rdna", "exllama-sym") for p in lin
            ]
            cases.append(("case", "int4_linear", "fp32", t, lin))
            cases.append(("case", "int4_linear", dt, t, lin[:3]))
    for dt, g in itertools.product(("bf16", "fp16"), (32, 128, 256, 512)):
        dec = [
            f"padded_gemm/T4-E2-k2-N64-K{K}-G{g}-B16/{dt}/exllama-sym/uniform/{d}/s{g}"
            for d in DATA
            for K in (512, 2048)
        ]
        dec += [f"padded_gemm/T4-E2-k2-N64-K8192-G{g}-B16/{dt}/exllama-sym/uniform/normal/s{g}"]
        cases.append(("case", "decode_gemm", "fp32", None, dec))
        if g >= 128:
            cases.append(("case", "decode_gemm", dt, None, dec[:4]))
    dots = [("dots", shape, dt) for shape in ("m16n8k8", "m16n8k16") for dt in ("bf16", "fp16")]
    dots += [("dots", f"dot{bm}{codes}", dt) for bm in (16, 64) for codes in ("", "codes") for dt in ("bf16", "fp16")]
    return dots + cases


def worker(index, todo, start, result):
    """Run every WORKERS-th job; leave (entry fields, tensors) in a file."""
    import record_jobs

    done, errors = [], []
    for job in todo:
        if time.time() - start > BUDGET:
            errors.append(f"{job[:4]}: left out, time is short")
            continue
        try:
            done += record_jobs.run(job)
        except Exception as error:
            trace = traceback.extract_tb(error.__traceback__)[-1]
            errors.append(
                f"{job[:4]}: {type(error).__name__}: {str(error)[:300]} ({Path(trace.filename).name}:{trace.lineno})"
            )
    import torch

    torch.save((done, errors), result)


def main():
    start = time.time()
    OUT.mkdir(parents=True, exist_ok=True)
    work = Path("/tmp/record_parts")
    work.mkdir(exist_ok=True)
    context = mp.get_context("spawn")
    todo = jobs()
    parts = [(i, todo[i::WORKERS], start, work / f"{i}.pt") for i in range(WORKERS)]
    processes = [context.Process(target=worker, args=part) for part in parts]
    for p in processes:
        p.start()
    for p in processes:
        p.join(max(1, BUDGET + 20 - (time.time() - start)))
        if p.is_alive():
            p.terminate()
    import record_jobs
    import torch

    from moeracle.properties.recordings import Entry, read_recording, write_recording

    done, errors = [], []
    for *_, path in parts:
        if path.is_file():
            d, e = torch.load(path, weights_only=False)
            done, errors = done + d, errors + e
        else:
            errors.append(f"{path.name}: a worker left nothing")
    entries, tensors, lines = [], {}, {}
    for fields, parts_of, equal, total, first in done:
        entry = Entry(**fields)
        entries.append(entry)
        tensors[entry.name] = parts_of
        key = (
            entry.kernel,
            entry.store,
            str(entry.facts.get("tile", "")),
            entry.schedule[:60],
            "; ".join(entry.facts.get("instructions", []))[:70],
            entry.facts.get("order", "")[:110],
        )
        lines.setdefault(key, []).append((entry.name, equal, total, first))
    order = sorted(range(len(entries)), key=lambda i: entries[i].name)
    entries = [entries[i] for i in order]
    write_recording(OUT, record_jobs.header(COMMAND), entries, tensors)
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
    main()
