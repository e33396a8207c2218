"""Trees: revealed from sums, shaped into levels, and read back as the schedule that made them."""

import pytest
import torch

from moeracle.properties.infer.guesses import schedules_for
from moeracle.properties.infer.levels import shape_of
from moeracle.properties.infer.reveal import MAGNITUDES, Counter, NotRevealedError, reveal
from moeracle.properties.infer.tree import Node, clades, depth, schedule_clades
from moeracle.ref.bitmodels.accumulate import accumulate
from moeracle.ref.bitmodels.schedule import Schedule

SCHEDULES = (
    "fma",
    "mul_add/reversed",
    "mul_add/pairwise",
    "fma/halves",
    "fma.rz",
    "mul_add/t32/combine=sequential",
    "mul_add/t16/descending/combine=sequential",
    "mul_add/t16/pairwise/combine=sequential/s2",
    "fma/s4/join=halves",
    "fma/lanes32x2",
    "fma/t64/tree2-sequential.8-halves.4-halves/combine=sequential/bits32.1.2.4.8.16",
    "fma/t32/tree4-sequential.8-halves/held4",
    "fma/t32/tree32-pairwise/held1",
    "fma/t16/tree2-sequential.8-halves/held2/bits4.1.2.8",
    "fma/t32/d2",
    "wgmma.k16.sm90/t16/d4/join=pairwise",
    "wgmma.k16.sm90/t32/p8/bits1.2.16.4.8/d2",
    "wgmma.k16.sm90",
    "wgmma.k16.sm90/reversed",
    "wgmma.k16.sm90/t32/combine=sequential",
    "wgmma.k16.sm90/t64/descending",
    "mma.m16n8k16.sm90/t32/bits1.4.8.16.2",
    "mma.m16n8k16.sm80/t32/bits1.4.8.16.2",
    "mma.m16n8k8.sm80/s2",
    "mma.m8n8k4.sm70",
    "mfma.k16.cdna3",
)


def answering(schedule, K, dtype=torch.bfloat16):
    """A kernel of ones: its stored sums, as probes see them."""
    w = torch.ones(2, K, dtype=dtype)
    return Counter(lambda x: accumulate(x, w, schedule).to(dtype), K, dtype)


@pytest.mark.parametrize("text", SCHEDULES)
def test_a_schedule_is_revealed_and_named_again(text):
    schedule, K = Schedule.parse(text), 128
    truth = schedule_clades(schedule, K)
    count = answering(schedule, K)
    root = reveal(count, range(K), count.size.most)
    assert clades(root) == truth
    found = schedules_for(root, K)
    assert found, "no schedule of that tree"
    assert all(schedule_clades(s, K) == truth for s in found)
    # One of them adds another K as the truth does: which one, a second K tells.
    assert any(schedule_clades(s, 2 * K) == schedule_clades(schedule, 2 * K) for s in found)


def test_fp16_reveals_the_same_tree():
    schedule, K = Schedule.parse("wgmma.k16.sm90"), 64
    count = answering(schedule, K, torch.float16)
    assert clades(reveal(count, range(K), count.size.most)) == schedule_clades(schedule, K)


def test_some_inputs_alone_show_the_tree_cut_down_to_them():
    schedule, leaves = Schedule.parse("mul_add/t16/pairwise/combine=sequential"), range(0, 128, 5)
    count = answering(schedule, 128)
    root = reveal(count, leaves, count.size.most)
    kept = sum(1 << leaf for leaf in leaves)
    cut = {mask & kept for mask in schedule_clades(schedule, 128)}  # the tree cut down to some leaves
    assert clades(root) == {mask for mask in cut if mask.bit_count() > 1}


def test_an_irregular_tree_has_no_levels_and_no_schedule():
    count = answering(Schedule.parse("mul_add"), 8)
    odd = Node(kids=[Node(kids=[Node(0), Node(3)]), Node(kids=[Node(1), Node(kids=[Node(2), Node(4)])])])
    assert shape_of(odd) is None
    assert schedules_for(odd, 5) == []
    assert depth(odd) == 3
    assert shape_of(reveal(count, range(8), 8)).words() == "8 one after another"


def test_sums_wider_than_fp32_are_not_taken_for_a_tree():
    # Units of 1 beside M = 2^60 are lost in fp64, too; exact integers lose nothing.
    def exact(x):
        totals = [sum(int(v) for v in row) for row in x.double().tolist()]
        return torch.tensor([[float(t)] * 2 for t in totals]).bfloat16()

    count = Counter(exact, 16, torch.bfloat16)
    with pytest.raises(NotRevealedError, match="wider"):
        reveal(count, range(16), 16)


def test_an_order_that_changes_with_the_row_is_refused():
    schedules = [Schedule.parse("mul_add"), Schedule.parse("mul_add/halves")]
    w = torch.ones(2, 64, dtype=torch.bfloat16)

    def by_row(x):
        out = torch.stack([accumulate(x, w, s).bfloat16() for s in schedules])
        return torch.where((torch.arange(len(x)) % 7 == 3)[:, None], out[1], out[0])

    count = Counter(by_row, 64, torch.bfloat16)
    with pytest.raises(NotRevealedError):
        reveal(count, range(64), 64)


def test_answers_that_are_no_counts_are_refused():
    count = Counter(lambda x: torch.full((len(x), 2), 0.5, dtype=torch.bfloat16), 8, torch.bfloat16)
    with pytest.raises(NotRevealedError, match="no whole number"):
        reveal(count, range(8), 8)
    count = Counter(lambda x: torch.full((len(x), 2), float("nan"), dtype=torch.bfloat16), 8, torch.bfloat16)
    with pytest.raises(NotRevealedError):
        reveal(count, range(8), 8)


def test_units_fit_the_dtypes_that_carry_them():
    for dtype, size in MAGNITUDES.items():
        exact = torch.tensor([size.large, size.unit, size.unit * size.most], dtype=dtype).double()
        assert exact.tolist() == [size.large, size.unit, size.unit * size.most]
        # Even all units together leave M alone: below its last bit of 25, and below half an fp32 ulp.
        assert size.unit * size.most < size.large * 2.0**-24
