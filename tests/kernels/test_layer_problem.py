"""The calls that the tuner and `kernels bench --parts` time: each takes its own routing, and fits what it calls."""

from __future__ import annotations

import inspect

import torch

from moeracle.bench.problems import Point, Problems, rotation
from moeracle.bench.suite import layer_of
from moeracle.kernels.bench.cases import Shape, shape_named
from moeracle.kernels.bench.layer_problem import LayerProblem

SHAPE: Shape = shape_named("E8-H256-I128-k2-G32")


def problem(T: int, least: int = 3) -> LayerProblem:
    point = Point("moe_w4a16", "layer", "small", SHAPE, "uniform", T)
    return layer_of(rotation(Problems("cpu"), point, 0, least))


def test_each_call_takes_its_own_routing_and_the_function_that_it_calls_takes_it():
    layer = problem(T=5)
    tiles = layer.layer()
    assert tiles == layer.fit(tiles)
    assert (layer.T, layer.rows, layer.E) == (5, 10, 8)
    parts = layer.parts()
    assert list(parts) == ["gemm1", "gemm2", "sum", "aligned", "plain", "step"]
    for calls in parts.values():
        assert len(calls) == 3
        for call in calls:
            inspect.signature(call.func).bind(*call.args, **call.keywords)
    xs = [x for x, _, _ in layer.routed]
    assert all(call.args[0] is x for call, x in zip(parts["gemm1"], xs, strict=True))
    assert all(call.args[0] is layer.a and call.args[3] is layer.y for call in parts["gemm2"])
    assert all(call.args[3] is layer.a for call in parts["gemm1"])
    assert [call.keywords["top_k"] for call in (parts["gemm1"][0], parts["gemm2"][0])] == [2, 1]
    assert (layer.a.shape, layer.y.shape) == ((10, 128), (10, 256))
    assert [call.keywords["programmatic"] for call in (parts["aligned"][0], parts["plain"][0])] == [True, False]


def test_alignments_are_those_of_the_routings_and_made_once():
    layer = problem(T=5)
    blocks = layer.blocks(16)
    assert layer.blocks(16) is blocks
    for (ids, experts, end), (_, _, routed) in zip(blocks, layer.routed, strict=True):
        slots = ids[: int(end)].reshape(-1, 16)
        for row, expert in zip(slots.tolist(), experts.tolist(), strict=False):
            assert all(routed.flatten()[slot] == expert for slot in row if slot < layer.rows)
    for call, own in zip(layer.parts()["aligned"], layer.blocks(layer.layer().block_m), strict=True):
        given = call.keywords["align"](torch.zeros(1), 16, 8)
        assert all(a is b for a, b in zip(given, own, strict=True))


def test_a_rotation_has_as_many_routings_as_are_asked_for():
    assert len(problem(T=1, least=1).routed) == 1
    routed = problem(T=5, least=12).routed
    assert len(routed) == 12
    assert len({tuple(ids.flatten().tolist()) for _, _, ids in routed}) > 6
