"""What was recorded on a real GPU says what the docs claim of it."""

import json
from pathlib import Path

import pytest

RECORDED = Path(__file__).parents[1] / "fixtures" / "h200"
SEED_SHAPES = 4  # (m, n, k, e, topk, group) of the pull request that grouped-equals-padded comes from
OPS = 11  # every op with a kernel here


def recorded(name: str) -> dict:
    return json.loads((RECORDED / name).read_text())


@pytest.mark.parametrize("name", ["check.json", "seed_shapes.json"])
def test_everything_recorded_was_legal_on_a_real_gpu(name: str) -> None:
    run = recorded(name)
    assert run["environment"]["gpus"] == ["NVIDIA H200"]
    assert run["environment"]["triton_interpreter"] is False
    assert run["exit_code"] == 0
    for kernel in run["kernels"]:
        assert kernel["device"] == "cuda"
        assert kernel["status"] == "legal"
        assert kernel["illegal"] == 0
        assert kernel["judged"] > 0


def test_every_op_with_a_kernel_was_judged() -> None:
    assert len({kernel["op"] for kernel in recorded("check.json")["kernels"]}) == OPS


def test_grouped_is_bit_identical_to_padded_on_the_seed_shapes() -> None:
    kernels = recorded("seed_shapes.json")["kernels"]
    by_kernel = {k["kernel"]: {c["case"]: c["bits"] for c in k["cases"]} for k in kernels}
    grouped, padded = by_kernel["moe_w4a16.grouped"], by_kernel["moe_w4a16.padded"]
    assert len(grouped) == SEED_SHAPES
    assert grouped == padded
    assert all(set(bits) == {"h", "a", "y", "out"} for bits in grouped.values())
