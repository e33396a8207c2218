"""The command that measures the bit models: every kind of schedule runs, and its bits are compared."""

from __future__ import annotations

import pytest
import torch

from moeracle.ref.bitmodels import speed as accumulate_speed


def test_each_kind_of_schedule_is_timed():
    found = list(accumulate_speed.speeds(sizes=(2, 3, 512), times=1))
    assert len(found) == len(accumulate_speed.SPEEDS) > 10
    assert all(rate > 0 and same == 1 for _, rate, same in found)


def test_bits_that_differ_are_counted(monkeypatch):
    answers = iter([torch.ones(2, 3), torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 2.0]])])
    monkeypatch.setattr(accumulate_speed, "accumulate", lambda *_, **__: next(answers))
    monkeypatch.setattr(accumulate_speed, "SPEEDS", accumulate_speed.SPEEDS[:1])
    (_, _, same), *_ = accumulate_speed.speeds(device="cpu:0", sizes=(2, 3, 512), times=1)
    assert same == pytest.approx(5 / 6)


def test_a_device_that_is_not_there_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        accumulate_speed.main(["--device", "cuda"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("but torch finds no CUDA device here")
