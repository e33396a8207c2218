"""Choosing by rounds in turn, on a clock that gives way: timed one after another, the wrong one would be chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from types import SimpleNamespace

import pytest

from moeracle.kernels.bench.timing import Prepared
from moeracle.kernels.hopper.tiles.layers import Direct, Duo, Layer, Stream
from moeracle.kernels.tune import hopper as tune_hopper
from moeracle.kernels.tune.rounds import close, in_turn, near_ones_again


@dataclass
class Drifting:
    """A clock on which everything takes longer the more was measured, by `drift` a run, to at most `most` times."""

    drift: float
    most: float = 2.0
    runs: int = 0
    order: list[str] = field(default_factory=list)
    captured: bool = True

    def prepare(self, calls):
        return Prepared(calls[0], len(calls), self.captured, "no CUDA graph: because")

    def one_by_one(self, side, times):
        found = []
        for _ in range(times):
            name, us = side.run()
            self.order.append(name)
            found.append(us * min(self.most, 1 + self.drift * self.runs))
            self.runs += 1
        return found


SIDES = {name: [lambda name=name, us=us: (name, us)] for name, us in {"a": 105.0, "b": 103.0, "best": 100.0}.items()}


def one_after_another(clock, sides, rounds=15):
    """What the tuner did: each side's runs together."""
    times = {name: clock.one_by_one(clock.prepare(calls), rounds) for name, calls in sides.items()}
    return min(times, key=lambda name: median(times[name]))


@pytest.mark.parametrize("drift", [0.002, 0.004, 0.02])
def test_a_clock_that_gives_way_favours_the_first_only_one_after_another(drift):
    assert one_after_another(Drifting(0.0), SIDES) == "best"
    assert one_after_another(Drifting(drift), SIDES) != "best"
    assert [name for _, name in in_turn(Drifting(drift), SIDES)] == ["best", "b", "a"]


@pytest.mark.parametrize("drift", [0.004, -0.004])
def test_of_equals_neither_place_wins(drift):
    sides = {name: [lambda name=name: (name, 100.0)] for name in "xyz"}
    found = {name: us for us, name in in_turn(Drifting(drift), sides, rounds=14)}
    assert max(found.values()) <= 1.001 * min(found.values())


def test_every_other_round_goes_back_and_the_first_are_not_counted():
    clock = Drifting(1.0, most=1e9)
    found = in_turn(clock, SIDES, rounds=1, warm_up=2)
    assert clock.order == ["a", "b", "best", "best", "b", "a", "a", "b", "best"]
    assert sorted(found) == [(105.0 * 7, "a"), (103.0 * 8, "b"), (100.0 * 9, "best")]


def test_what_cannot_be_measured_is_said():
    with pytest.raises(RuntimeError, match="no CUDA graph: because"):
        in_turn(Drifting(0.0, captured=False), SIDES)
    with pytest.raises(ValueError, match="rounds: got 0, must be at least 1"):
        in_turn(Drifting(0.0), SIDES, rounds=0)


def test_those_near_the_best_are_measured_again():
    measured = [(130.0, "far"), (105.0, "a"), (100.0, "best"), (111.0, "b"), (112.5, "out")]
    assert close(measured, 1.12, 6) == ["best", "a", "b"]
    assert close(measured, 1.12, 2) == ["best", "a"]


def test_the_others_follow_by_what_they_took():
    """The second best may be none of those near the best: it is the fastest of the others, not the first."""
    us = {"far": 140.0, "second": 120.0, "best": 100.0}
    measured = [(took, name) for name, took in us.items()]
    found = near_ones_again(Drifting(0.0), measured, lambda name: [lambda: (name, us[name])])
    assert found == [(100.0, "best"), (120.0, "second"), (140.0, "far")]


GEMMS = [
    {Duo(64, 256, 128, 4, 32): 63.0, Stream(64, 128, 4): 62.0, Direct(64): 60.0},
    {Stream(64, 128, 4): 41.0, Duo(): 40.0},
]


@pytest.fixture
def tune(monkeypatch):
    """tune_hopper.tune where a GEMM takes what GEMMS says, a layer the sum, on a clock that gives way."""
    clock = Drifting(0.001, most=1.1)
    timed = lambda us: [lambda: ("", us)]
    fake = {
        "GraphTimer": lambda device: clock,
        "microseconds": lambda calls, replays=15: median(clock.one_by_one(clock.prepare(calls), replays)),
        "fitted": lambda w, each: list(GEMMS[w.which]),
        "model_layer": lambda rows, E, w: Layer(Duo(64, 256, 128, 4, 32), Stream(64, 128, 4)),
    }
    for name, value in fake.items():
        monkeypatch.setattr(tune_hopper, name, value)
    up, down = SimpleNamespace(which=0, N=1024), SimpleNamespace(which=1)
    problem = SimpleNamespace(
        up=up,
        down=down,
        E=256,
        rows=8192,
        T=1024,
        fit=lambda layer: layer,
        gemm_calls=lambda which, tile: timed(GEMMS[which][tile]),
        layer_calls=lambda layer: timed(GEMMS[0][layer.gemm1] + GEMMS[1][layer.gemm2]),
    )
    return lambda judge, **options: tune_hopper.tune(problem, judge, lambda line: None, **options)


def not_stream(layer):
    """Refuse every layer whose first GEMM is a Stream."""
    return "bits" if layer.gemm1 == Stream(64, 128, 4) else None


def test_the_tuner_chooses_the_fastest_legal_layer_though_the_clock_gives_way(tune):
    found = tune(not_stream)
    assert found["layer"] == Layer(Direct(64), Duo())
    assert [us for us, _ in found["tried"]] == sorted(us for us, _ in found["tried"])
    assert [row["why"] for row in found["illegal"]] == ["bits", "bits"]


def test_the_tuner_leaves_out_what_the_judge_or_the_compiler_refuses(tune):
    found = tune(lambda layer: "no" if layer.gemm2 == Duo() else None)
    assert found["layer"] == Layer(Direct(64), Stream(64, 128, 4))
    assert tune(not_stream, spilling={(0, Direct(64))})["layer"].gemm1 == Duo(64, 256, 128, 4, 32)
    with pytest.raises(ValueError, match="no legal layer at T=1024"):
        tune(lambda layer: "no")
