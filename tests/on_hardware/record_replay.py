"""What record.py does with a recorded launch: replay it at once, and where bits differ look for an order that fits."""

import subprocess

import torch
import triton

from moeracle.properties.recordings.recordings import STORES, Entry
from moeracle.properties.recordings.replay import replay


def finished(fields, tensors):
    """Replay on the CPU (many processes with tiny kernels would only wait for the GPU); search where bits differ."""
    recorded = Entry(**fields)
    tensors = {k: v.cpu() for k, v in tensors.items() if v is not None}
    assert tensors["out"].dtype == STORES[recorded.store]
    seen = replay(recorded, tensors)
    others = [] if seen.ok or recorded.kind == "dots" else alternatives(recorded, tensors, seen.equal)
    return fields, tensors, seen.equal, seen.total, seen.first, others


def alternatives(recorded, tensors, equal):
    """List changes of the schedule that predict more, the best first."""
    text, found = recorded.schedule, []
    changes = [("-sequential", "-pairwise"), ("-sequential", "-halves"), ("-sequential", "-reversed")]
    changes += [("-halves", "-pairwise"), ("-halves", "-sequential"), ("fma", "mul_add"), ("/fused", ""), ("held1", "")]
    changes += [("/biasfused", ""), ("join=halves", "join=sequential"), ("join=halves", "join=pairwise")]
    changes += [("join=sequential", "join=pairwise"), ("join=pairwise", "join=sequential"), ("fma", "fma.rz")]
    changes += [("p8/bits1.2.16.4.8", ""), ("bits1.2.16.32.4.8", ""), ("p4", ""), ("-pairwise", "-sequential")]
    tried = {text.replace(old, new).replace("//", "/").rstrip("/") for old, new in changes}
    tried |= {t.replace(old, new).replace("//", "/").rstrip("/") for t in list(tried) for old, new in changes}
    for other in sorted(tried - {text}):
        try:
            seen = replay(recorded, tensors, other)
        except ValueError:
            continue
        if seen.equal > equal:
            found.append((seen.equal, other))
    return [f"{n}: {t}" for n, t in sorted(found, reverse=True)[:4]]


def header(command):
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
    major, minor = torch.cuda.get_device_capability()
    return {
        "gpu": torch.cuda.get_device_name(), "capability": f"{major}.{minor}", "driver": driver[0] if driver else "unknown",
        "torch": torch.__version__, "triton": triton.__version__, "cuda": str(torch.version.cuda), "command": command,
    }  # fmt: skip
