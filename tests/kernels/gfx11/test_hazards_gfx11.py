"""Order as a law, and what a GPU leaves undefined: between waves, workgroups and lanes, named with its source line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moeracle.gfx11 import Gfx11Kernel, MachineFault, in_order, load

pytestmark = pytest.mark.usefixtures("toolchain")
SOURCE = Path(__file__).parent / "hazards.hip"
ORDERS = [("forward", 0), ("backward", 0), ("shuffled", 1), ("shuffled", 2)]


def kernel(name: str, right: bool = False) -> Gfx11Kernel:
    return load(SOURCE, name, defines={"RIGHT": 1} if right else ())


def line_of(mark: str) -> str:
    lines = SOURCE.read_text().splitlines()
    return f"hazards.hip:{next(i for i, line in enumerate(lines, 1) if line.endswith(f'// LINE {mark}'))}"


def halves() -> list[Any]:
    return [torch.zeros(64, dtype=torch.int32)]


def tiles() -> list[Any]:
    return [torch.ones(256), torch.zeros(64), 4]


RACES = [
    ("half_of_the_waves_wait", 128, lambda: [torch.zeros(128)], "partial"),
    ("halves_read_as_words", 64, halves, "aliased"),
    ("two_buffers_one_barrier", 64, tiles, "overwritten"),
    ("counted_in_lds", 64, lambda: [torch.zeros(1, dtype=torch.int32), 1], "plain"),
]


@pytest.mark.parametrize(("name", "threads", "args", "mark"), RACES)
@pytest.mark.parametrize(("way", "seed"), ORDERS[:3])
def test_races_between_waves_are_found_in_every_order(
    name: str, threads: int, args: Any, mark: str, way: str, seed: int
) -> None:
    with in_order(way, seed), pytest.raises(MachineFault, match=r"^\S+ \w+: lane \d+ of wave \d+: ") as error:
        kernel(name).launch(1, threads, *args())
    said = str(error.value)
    assert "race in LDS" in said or ("uninitialized LDS" in said and mark == "partial")
    assert line_of(mark) in said, said
    assert "\n" not in said


@pytest.mark.parametrize("name", ["halves_read_as_words", "two_buffers_one_barrier"])
def test_a_barrier_in_its_place_is_enough(name: str) -> None:
    args = halves() if name.startswith("halves") else tiles()
    for way, seed in ORDERS:
        with in_order(way, seed):
            kernel(name, right=True).launch(1, 64, *args)
    want = [lane | lane + 32 << 16 for lane in range(32)] * 2 if name.startswith("halves") else [4.0] * 64
    assert args[0 if name.startswith("halves") else 1].tolist() == want


def test_atomics_need_no_barrier_among_themselves_or_within_a_wave() -> None:
    count, own = torch.zeros(1, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    kernel("counted_in_lds").launch(1, 256, count, 0)
    assert count.tolist() == [256]
    kernel("one_wave_counts").launch(1, 32, own)
    assert own.tolist() == [8] * 32


def results(name: str, more: int = 0) -> list[list[int]]:
    """Return the bits that each order leaves."""
    x, found = torch.randn(16 * 32, generator=torch.Generator().manual_seed(1)), []
    for way, seed in ORDERS:
        with in_order(way, seed):
            if name == "last_group_adds":
                out, ticket = torch.zeros(1), torch.zeros(1, dtype=torch.int32)
                kernel(name).launch(16, 64, x, torch.zeros(16), ticket, out, more)
                found.append(out.view(torch.int32).tolist())
            elif name == "several_lanes_one_place":
                place = torch.zeros(1, dtype=torch.int32)
                kernel(name).launch(2, 64, place)
                found.append(place.tolist())
            else:
                word = torch.zeros(1, dtype=torch.int32)
                kernel(name).launch(16, 32, x, word)
                found.append(word.tolist())
    return found


def test_what_no_order_changes() -> None:
    largest = results("largest_by_swaps")
    assert largest == [largest[0]] * len(ORDERS)
    fixed = results("last_group_adds", 0)
    assert fixed == [fixed[0]] * len(ORDERS)


@pytest.mark.parametrize("name", ["sum_by_swaps", "last_group_adds", "several_lanes_one_place"])
def test_what_the_order_changes(name: str) -> None:
    found = results(name, 1)
    assert len({tuple(bits) for bits in found}) > 1


@pytest.mark.parametrize(
    ("name", "args", "kind", "said", "mark"),
    [
        ("behind_lds", [torch.zeros(32), 1], IndexError, "4 bytes at LDS offset 128 lie outside", "behind"),
        ("before_the_start", [torch.zeros(32), 2], IndexError, "8 before the start of argument 0, 128 bytes", "before"),
        ("asserts", [torch.zeros(32).int(), torch.zeros(32).int()], MachineFault, "stopped itself", "asserted"),
    ],
)
def test_other_faults_are_one_line_with_a_place(name: str, args: list[Any], kind: Any, said: str, mark: str) -> None:
    with pytest.raises(kind, match=said) as error:
        kernel(name).launch(1, 32, *args)
    assert f"of {name}, at {line_of(mark)}" in str(error.value)


def test_a_register_that_nobody_wrote_is_named() -> None:
    run = kernel("reads_a_register").launch(1, 32, torch.zeros(32))
    assert run.unwritten == [f"v99 at {line_of('register')} (v_mov_b32)"]
