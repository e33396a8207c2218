"""Maps of a failure: every illegal element shows, whatever the size, and nothing else does."""

from __future__ import annotations

import math

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.compare.error_map import (
    MOST_COLUMNS,
    MOST_ROWS,
    RATIO_EDGES,
    count_ratios,
    error_map,
    failure_maps,
)
from moeracle.properties.judge import judge
from moeracle.properties.simulate import simulated_kernel

LAYER = "moe_w4a16/T6-E4-k2-H32-I32-G16/bf16/exllama-sym/uniform/normal/s1"


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (48, 96), (49, 97), (130, 1000), (5, 193)])
def test_one_bad_element_shows_in_its_cell_and_nowhere_else(shape: tuple[int, int]) -> None:
    for i, j in ((0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 3)):
        errors = torch.zeros(shape)
        errors[i, j] = 3.0
        found = error_map("h", "token", torch.arange(shape[0]), errors)
        cells = torch.tensor(found["cells"], dtype=torch.float64)
        assert cells.shape[0] <= MOST_ROWS
        assert cells.shape[1] <= MOST_COLUMNS
        assert cells.nonzero().tolist() == [[i // found["row_step"], j // found["column_step"]]]
        assert float(cells.max()) == 3.0
        assert (found["rows"], found["columns"]) == shape


def test_rows_of_one_expert_share_a_line_and_rows_of_none_are_left_out() -> None:
    errors = torch.tensor([[1.0, 0.0], [0.0, math.inf], [7.0, 7.0], [0.0, 2.0]])
    found = error_map("h", "expert", torch.tensor([2, 0, -1, 2]), errors)
    assert found["cells"] == [[0, math.inf], [0, 0], [1, 2]]
    by_token, by_expert = failure_maps("h", errors, "token", torch.tensor([2, 0, -1, 2]), slots=2)
    assert (by_token["axis"], by_token["cells"]) == ("token", [[1, math.inf], [7, 7]])
    assert by_expert["axis"] == "expert"
    assert error_map("h", "token", torch.arange(0), torch.zeros(0, 4))["cells"] == []


def test_ratios_are_counted_where_they_belong() -> None:
    counts = count_ratios(torch.tensor([0.0, 0.0, 0.05, 0.1, 0.95, 1.0, 1.0001, 5.0, 1e9, math.inf, math.nan]))
    assert len(counts) == len(RATIO_EDGES)
    assert dict(enumerate(counts)) == {**dict.fromkeys(range(15), 0), 0: 2, 1: 2, 10: 2, 11: 1, 12: 1, 14: 3}


def test_a_verdict_carries_the_maps_of_its_failing_stage() -> None:
    problem = Case.parse(LAYER).build()
    kernel = simulated_kernel("moe_w4a16", "grouped,accumulator=fp32", "sequential")
    stages = kernel.fn(*problem.args.values())
    good = judge(problem, stages, kernel.contract)
    assert good.maps == []
    assert [stage.stage for stage in good.stages] == ["h", "a", "y", "out"]
    for stage in good.stages:
        assert sum(stage.ratios) == stage.judged
        assert sum(stage.ratios[11:]) == 0  # nothing beyond the bound

    ids = problem.args["topk_ids"]
    wrong = {name: t.clone() for name, t in stages.items()}
    mine = (ids.flatten() == 1).nonzero().flatten()
    wrong["y"][mine, 8:16] *= 2
    bad = judge(problem, wrong, kernel.contract, explain=False)
    by_token, by_expert = bad.maps
    assert (bad.stage, by_token["axis"], by_expert["axis"]) == ("y", "token", "expert")
    lines = [bool(any(row)) for row in by_token["cells"]]
    assert lines == [(1 in row) for row in ids.tolist()]
    assert [bool(any(row)) for row in by_expert["cells"]] == [False, True, False, False]
    columns = {c for row in by_token["cells"] for c, v in enumerate(row) if v}
    assert columns == set(range(8, 16))
    assert sum(next(s for s in bad.stages if s.stage == "y").ratios[11:]) > 0


def test_integer_results_have_maps_too() -> None:
    problem = Case.parse("topk_softmax/T5-E8-k2/fp32/-/-/normal/s1").build()
    weights, ids = simulated_kernel("topk_softmax").fn(*problem.args.values())
    ids[3, 1] = -7
    (found,) = judge(problem, (weights, ids), explain=False).maps
    assert (found["unit"], found["stage"]) == ("wrong", "ids")
    assert torch.tensor(found["cells"]).nonzero().tolist() == [[3, 1]]
