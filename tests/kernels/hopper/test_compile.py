"""The Hopper kernels, compiled for sm_90 with no GPU at hand: weights stay in registers, and nothing spills.

Here are kinds that no tuned layer launches; tools/test_compile.py asks the same of every tile of the layer's table.
"""

from __future__ import annotations

import pytest

SCRIPT = """
import json, re, sys, warnings
from functools import partial
warnings.filterwarnings("ignore")
import torch
from moeracle.kernels.toolchain.architectures import architecture
from moeracle.kernels.compile.dry_run import pretending
from moeracle.kernels.hopper.launch import run_gemm
from moeracle.kernels.hopper.moe_w4a16 import moe_w4a16_hopper
from moeracle.kernels.hopper.tiles.layers import Direct, Duo, Few, Layer, Ring, Stream
from moeracle.kernels.toolchain.machine_code import read_nvidia
from moeracle.kernels.hopper.prepared_weight import PreparedWeight

def facts(launch, tile):
    ptx = launch.compiled.asm["ptx"]
    calls = re.findall(r"wgmma\\.mma_async[^;]*;", ptx)
    code = read_nvidia(ptx, launch.compiled.asm["cubin"])
    return {"tile": str(tile), "kernel": launch.kernel, "wgmma": len(calls), "spills": code.spills,
        "from_registers": sum(bool(re.search(r"\\}, *\\{", call)) for call in calls), "registers": code.registers,
        "local": launch.compiled.metadata.shared, "waits": ptx.count("griddepcontrol.wait"),
        "weighted": launch.constants["WEIGHTED"],
        "registers_of": [int(n) for n in re.findall(r"setmaxnreg[^;]*?(\\d+);", ptx)],
        "least": getattr(tile, "copy_registers", 0), "most": (504 - getattr(tile, "copy_registers", 0)) // 2}

found = []
for one, two, G, zero, fold, dtype in [
    (Ring(64, 128, 64, 5, 4), Ring(64, 256, 64, 4, 8, 32, 128), 128, False, 2, torch.bfloat16),
    (Ring(16, 128, 128, 4, 4), Few(16, 64, 2, 2), 64, True, 0, torch.float16),
    (Direct(32, 128, 256, 2, 8, 16, 80), Stream(32, 64, 4, 4), 32, False, 1, torch.bfloat16),
    (Duo(64, 256, 128, 4, 32), Duo(64, 256, 64, 4), 32, True, 0, torch.bfloat16),
]:
    with pretending(architecture("sm_90")) as launches:
        make = partial(torch.empty, device="cuda", dtype=torch.int32)
        E, H, I = 4, 512, 256
        def weight(N, K, gated):
            pairs = make(E, N // 16, K // G, 8)
            words = make(E, N // 16, K // 64, 32, 4)
            return PreparedWeight(words, pairs, pairs if zero else None, N, K, G, gated, dtype, fold)
        x = torch.empty(8, H, device="cuda", dtype=dtype)
        ids = torch.arange(16, device="cuda", dtype=torch.int32).reshape(8, 2) % E
        aligned = lambda *_: (make(512), make(32), make(1))
        weights = torch.ones(8, 2, device="cuda")
        up, down, layer = weight(2 * I, H, True), weight(H, I, False), Layer(one, two)
        moe_w4a16_hopper(x, up, down, weights, ids, config=layer, align=aligned)
    found += map(facts, launches, (one, two))
with pretending(architecture("sm_90")) as launches:
    tiles = Duo(128, 256, 64, 8, 64), Duo(64, 256, 128, 6, 32), Duo(128, 256, 64, 8, 32)
    for tile in tiles:  # the first alone, the largest rings with router weights
        words, pairs = torch.empty(1, 16, 8, 32, 4, dtype=torch.int32), torch.empty(1, 16, 4, 8, dtype=torch.int32)
        w = PreparedWeight(words, pairs, None, 256, 512, 128, False, torch.bfloat16, 2)
        x, y = torch.empty(8, 512, dtype=torch.bfloat16, device="cuda"), torch.empty(8, 256, dtype=torch.bfloat16)
        blocks = [torch.zeros(n, dtype=torch.int32, device="cuda") for n in (512, 4, 1)]
        scale = torch.ones(8, device="cuda")
        run_gemm(x, w, blocks, y, tile, top_k=1, block_size=tile.block_m, num_blocks=4,
                 topk_weights=None if tile is tiles[0] else scale)
found += map(facts, launches, tiles)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled(compiling):
    return compiling(SCRIPT)[-1]


def test_router_weights_fit_beside_the_largest_rings(compiled):
    weighted = [f["local"] for f in compiled if f["weighted"]]
    assert len(weighted) == 2
    assert max(weighted) <= 227 * 1024


def test_both_gemms_of_each_layer_are_compiled(compiled):
    assert [f["kernel"] for f in compiled] == [
        "hopper_gemm_kernel",
        "hopper_gemm_kernel",
        "hopper_gemm_kernel",
        "hopper_few_kernel",
        "hopper_gemm_kernel",
        "hopper_stream_kernel",
        *["hopper_duo_kernel"] * 5,
    ]


def test_every_weight_is_a_register_operand(compiled):
    for f in compiled:
        assert f["wgmma"] >= 4, f
        assert f["from_registers"] == f["wgmma"], f


def test_nothing_spills_and_two_programs_fit_or_one_of_duo(compiled):
    for f in compiled:
        assert f["spills"] == 0 or f["weighted"], f
        assert f["local"] <= (227 if f["kernel"] == "hopper_duo_kernel" else 113) * 1024, f


def test_warps_of_duo_give_registers_to_those_that_multiply(compiled):
    for f in compiled:
        assert f["kernel"] != "hopper_duo_kernel" or set(f["registers_of"]) >= {f["most"], f["least"]}, f
        assert f["kernel"] == "hopper_duo_kernel" or not f["registers_of"], f


def test_each_launch_waits_for_the_one_ahead(compiled):
    for f in compiled[:8]:  # those of layers
        assert f["waits"] >= 1, f
