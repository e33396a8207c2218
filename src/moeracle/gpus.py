"""A GPU for each worker of pytest-xdist: the workers of one machine take its GPUs in turn."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from pathlib import Path

WORKER = "PYTEST_XDIST_WORKER"  # gw0, gw1, …: xdist sets it before plugins are loaded
# What a runtime reads once, when it is first used: the variable, and where the driver lists its GPUs.
VISIBLE = {
    "CUDA_VISIBLE_DEVICES": "/proc/driver/nvidia/gpus/*",
    "HIP_VISIBLE_DEVICES": "/sys/class/kfd/kfd/topology/nodes/*/properties",
}


def take_own_gpu(environ: MutableMapping[str, str], root: Path = Path("/")) -> None:
    """Let this process, where it is a worker of xdist, and those that it starts see one GPU of those that it may see.

    Args:
        environ: the variables of the environment, which are changed; a list that is there is shared out, an empty one
            stays.
        root: of the file system that lists the GPUs.
    """
    worker = re.fullmatch(r"gw(\d+)", environ.get(WORKER, ""))
    if worker is None:
        return
    for name, listed in VISIBLE.items():
        if name in environ:
            gpus = [gpu.strip() for gpu in environ[name].split(",") if gpu.strip()]
        else:
            gpus = [str(place) for place, _ in enumerate(filter(_is_gpu, sorted(root.glob(listed[1:]))))]
        if gpus:
            environ[name] = gpus[int(worker[1]) % len(gpus)]


def _is_gpu(entry: Path) -> bool:
    """Say whether a driver's entry is a GPU: the kernel lists CPUs among the nodes of a ROCm machine, without SIMDs."""
    if entry.name != "properties":
        return True
    try:
        found = re.search(r"^simd_count (\d+)", entry.read_text(), re.MULTILINE)
    except OSError:
        return False
    return found is not None and int(found[1]) > 0
