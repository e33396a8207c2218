"""What a rank's process does before its first call: it becomes a member of torch.distributed's default group."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import torch

LOOPBACK = ("lo", "lo0")  # Linux's, macOS's
PATIENCE = 300.0  # seconds beyond the judge's limit: the judge gives up first, and knows which rank the others wait for


def join_ranks(said: dict[str, Any], device: torch.device) -> torch.device:
    """Join the other ranks' group, once; return the device of this rank.

    The environment says what torchrun says: RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE. The ranks find each other
    by a file, so that no port is fixed.

    Args:
        said: rank, of (how many), folder (of that file), seconds (that a call may take).
        device: that the kernel declares: of "cuda", rank r has the GPU number r.
    """
    import torch.distributed as dist

    rank, count = int(said["rank"]), int(said["of"])
    mine = torch.device(device.type, rank) if device.type == "cuda" else device
    if dist.is_initialized():
        return mine
    for name in [name for name in os.environ if name.startswith(("TORCHELASTIC_", "MASTER_"))]:
        del os.environ[name]
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
    loopback = [name for _, name in socket.if_nameindex() if name in LOOPBACK]
    if loopback:  # the machine's own name may lead nowhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
    if (
        "TORCH_DISTRIBUTED_DEBUG" not in os.environ
    ):  # ranks whose collectives do not go together say so, and do not wait
        dist.set_debug_level(dist.DebugLevel.DETAIL)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if mine.type == "cuda" else "gloo",
        init_method=f"file://{os.path.join(said['folder'], 'store')}", rank=rank, world_size=count,
        timeout=timedelta(seconds=float(said["seconds"]) + PATIENCE),
    )  # fmt: skip
    return mine
