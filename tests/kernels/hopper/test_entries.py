"""What the single Hopper GEMMs launch, compiled for sm_90 with no GPU at hand: two launches, or three, and no spill."""

from __future__ import annotations

import pytest

SCRIPT = """
import json, warnings
from functools import partial
warnings.filterwarnings("ignore")
import torch
from moeracle.kernels.toolchain.architectures import architecture
from moeracle.kernels.compile.dry_run import pretending
from moeracle.kernels.hopper.tiles.gemm import WIDEST
from moeracle.kernels.hopper.moe_w4a16 import hopper_grouped_gemm, hopper_padded_gemm
from moeracle.kernels.toolchain.machine_code import read_nvidia
from moeracle.kernels.hopper.prepared_weight import PreparedWeight

def seen(call, N=512):
    with pretending(architecture("sm_90")) as launches:
        make = partial(torch.empty, device="cuda", dtype=torch.int32)
        E, K, G, R, B = 4, 512, 128, 40000, 128
        w = PreparedWeight(make(E, N // 16, K // 64, 32, 4), make(E, N // 16, K // G, 8), None, N, K, G, False,
                           torch.bfloat16, 2)
        x = lambda rows: torch.empty(rows, K, device="cuda", dtype=torch.bfloat16)
        offsets = torch.zeros(E + 1, device="cuda", dtype=torch.int64)
        length = lambda R: R + E * (B - 1)
        blocks = lambda R: (make(length(R)), make(-(-length(R) // B)), make(1))
        call(w, x, offsets, blocks)
    return [{"kernel": l.kernel, "grid": list(l.grid), "waits": l.compiled.asm["ptx"].count("griddepcontrol.wait"),
             "starts": l.compiled.asm["ptx"].count("griddepcontrol.launch_dependents"),
             "spills": read_nvidia(l.compiled.asm["ptx"], l.compiled.asm["cubin"]).spills} for l in launches]

print(json.dumps({
    "grouped": seen(lambda w, x, offsets, blocks: hopper_grouped_gemm(x(40), w, offsets)),
    "small": seen(lambda w, x, offsets, blocks: hopper_padded_gemm(x(2), w, *blocks(2), None, 1, config=WIDEST)),
    "large": seen(lambda w, x, offsets, blocks: hopper_padded_gemm(x(40000), w, *blocks(40000), None, 1)),
}))
"""


@pytest.fixture(scope="module")
def launched(compiling):
    return compiling(SCRIPT)[-1]


def test_the_block_table_is_one_launch_and_the_gemm_starts_early(launched):
    table, gemm = launched["grouped"]
    assert (table["kernel"], table["starts"] > 0, table["waits"]) == ("block_table_kernel", True, 0)
    assert gemm["kernel"].startswith("hopper_")
    assert gemm["waits"]


def test_a_small_output_is_cleared_and_blocks_that_nothing_can_fill_are_not_launched(launched):
    (gemm,) = launched["small"]
    assert gemm["kernel"] == "hopper_gemm_kernel"
    assert gemm["grid"] == [2 * 512 // 128]  # two rows fill two blocks of the four
    assert gemm["waits"]


def test_of_a_large_output_only_unnamed_rows_are_zeroed(launched):
    named, unnamed, gemm = launched["large"]
    assert (named["kernel"], unnamed["kernel"]) == ("named_rows_kernel", "unnamed_rows_kernel")
    assert (named["waits"], unnamed["waits"]) == (0, 1)
    assert named["starts"]
    assert unnamed["starts"]
    assert gemm["waits"]


def test_nothing_spills(launched):
    assert [one for of_call in launched.values() for one in of_call if one["spills"]] == []
