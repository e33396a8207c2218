"""What was recorded on a real GPU says what the docs claim of it."""

import json
from pathlib import Path

import pytest

from moeracle.kernels.registry import REGISTRY

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "fixtures" / "hardware" / "h200"
SEED_SHAPES = 4  # (m, n, k, e, topk, group) of the pull request that grouped-equals-padded comes from
LAYERS = ("grouped", "padded", "hopper")  # each in a file of its own


OPS = tuple(dict.fromkeys(entry.op for entry in REGISTRY))
CHECKS = [f"check/{op}" for op in OPS]


def recorded(name: str) -> dict:
    return json.loads((RECORDED / f"{name}.json").read_text())


@pytest.mark.parametrize("name", [*CHECKS, *(f"seed_shapes_{layer}" for layer in LAYERS)])
def test_everything_recorded_was_legal_on_a_real_gpu(name: str) -> None:
    run = recorded(name)
    assert run["environment"]["gpus"] == ["NVIDIA H200"]
    assert run["environment"]["triton_interpreter"] is False
    assert run["exit_code"] == 0
    assert run["kernels"]
    for kernel in run["kernels"]:
        assert kernel["device"] == "cuda"
        assert kernel["status"] == "legal"
        assert kernel["illegal"] == 0
        assert kernel["judged"] > 0


def test_every_kernel_was_judged() -> None:
    judged = {kernel["kernel"]: kernel for name in CHECKS for kernel in recorded(name)["kernels"]}
    assert set(judged) == {entry.name for entry in REGISTRY}
    assert min(kernel["cases_judged"] for kernel in judged.values()) >= 30
    page = (ROOT / "docs" / "hardware.md").read_text()
    assert f"{len(judged)} kernels, {len(CHECKS)} ops, 0 illegal" in page


def test_layers_store_the_same_bits_on_the_seed_shapes() -> None:
    grouped, padded, hopper = ({} for _ in LAYERS)
    for found, layer in zip((grouped, padded, hopper), LAYERS, strict=True):
        (kernel,) = recorded(f"seed_shapes_{layer}")["kernels"]
        assert kernel["kernel"] == f"moe_w4a16.{layer}"
        found |= {case["case"]: case["bits"] for case in kernel["cases"]}
    assert len(grouped) == SEED_SHAPES
    assert all(set(bits) == {"h", "a", "y", "out"} for bits in grouped.values())
    assert grouped == padded
    assert all(set(bits) == {"a", "y", "out"} for bits in hopper.values())  # its h is never stored
    same = [case for case, bits in hopper.items() if bits == {stage: grouped[case][stage] for stage in bits}]
    assert [case.split("/")[1].split("-")[0] for case in same] == ["T128", "T2048", "T2048"]  # T16: K in four parts


def test_kernels_that_misbehave_on_a_gpu_were_named_and_the_others_judged() -> None:
    kernels = {kernel["kernel"]: kernel for kernel in recorded("hostile")["kernels"]}
    tiers = {name: [failure["tier"] for failure in kernel["failures"]] for name, kernel in kernels.items()}
    side = tiers.pop("on_a_side_stream")
    assert side in (["determinism"], ["bits"])  # whether its first result has arrived when it is read is a race
    assert tiers == {
        "honest_first": [],
        "illegal_address": ["device"],
        "invalid_launch": ["device"],
        "endless": ["timeout"],
        "without_synchronizing": ["bits"],
        "exhausts_memory": ["memory"],
        "traps_in_the_driver": ["crash"],
        "honest_last": [],
    }
    assert [kernels[name]["status"] for name in ("honest_first", "honest_last")] == ["legal", "legal"]
    assert kernels["honest_last"]["judged"] > 0
