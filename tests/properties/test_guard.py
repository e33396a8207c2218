"""Traps: a write into an input or around it shows, fresh memory is poisoned, and bits are compared as bits."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from moeracle.properties import faults, simulate
from moeracle.properties.cases.case import Case
from moeracle.properties.common.guard import (
    MARGIN_BYTES,
    POISONS,
    Guarded,
    different_bits,
    fresh,
    poisoned,
    same_bits,
)
from moeracle.properties.faults import FAULTS
from moeracle.properties.trial.call import call_here
from moeracle.ref.weights.weight import Int4Weight

CASE = Case.parse("int4_linear/T5-N16-K32-G16/bf16/exllama-v1+pad32/-/normal+strided+bias/s1")


def parts(args):
    for name, value in args.items():
        if isinstance(value, Int4Weight):
            yield from ((f"{name}.{p}", getattr(value, p)) for p in ("packed", "scale", "zero"))
        elif isinstance(value, torch.Tensor):
            yield name, value


def test_copies_have_the_values_strides_and_alignment_of_the_originals():
    problem = CASE.build()
    guarded = Guarded(problem.args)
    originals, copies = dict(parts(problem.args)), dict(parts(guarded.args))
    assert list(originals) == ["x", "w.packed", "w.scale", "w.zero", "bias"]
    for name, copy in copies.items():
        assert same_bits(copy, originals[name])
        assert copy.stride() == originals[name].stride()
        assert copy.data_ptr() != originals[name].data_ptr()
        assert copy.data_ptr() % 64 == 0
    assert guarded.args["w"].layout == "exllama"
    assert guarded.written() == ""


@pytest.mark.parametrize("name", ["x", "w.packed", "w.scale", "w.zero", "bias"])
def test_every_write_is_noticed_and_named(name):
    for where in ("inside", "before", "after", "far after", "gap"):
        guarded = Guarded(CASE.build().args)
        t = dict(parts(guarded.args))[name]
        start, end = (
            t.storage_offset(),
            t.storage_offset() + 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)),
        )
        margin = MARGIN_BYTES // t.element_size()
        if where == "gap" and t.is_contiguous():
            continue
        at = {"inside": start, "before": start - 1, "after": end, "far after": end + margin - 1,
              "gap": start + t.shape[-1]}[where]  # fmt: skip
        whole = t.as_strided((end + margin,), (1,), 0)
        whole[at] = 1 if whole[at] != 1 else 2
        assert guarded.written() == (name if where == "inside" else f"{name} (outside of it)"), where


def test_a_change_that_equals_in_value_is_still_a_write():
    guarded = Guarded({"x": torch.zeros(4)})
    guarded.args["x"][1] = -0.0
    assert guarded.written() == "x"


def test_reading_past_the_end_reads_nan_or_a_pattern():
    args = Guarded({"x": torch.ones(3, 4), "ids": torch.zeros(5, dtype=torch.int32), "none": None, "top_k": 2}).args
    assert args["x"].as_strided((4,), (1,), args["x"].storage_offset() + 12).isnan().all()
    assert args["x"].as_strided((4,), (1,), args["x"].storage_offset() - 4).isnan().all()
    assert args["ids"].as_strided((1,), (1,), args["ids"].storage_offset() + 5).item() == 0x5A5A5A5A
    assert (args["none"], args["top_k"]) == (None, 2)


def test_empty_tensors_are_guarded_too():
    guarded = Guarded({"x": torch.empty(0, 8), "ids": torch.empty(0, 2, dtype=torch.int32)})
    assert guarded.args["x"].shape == (0, 8)
    assert guarded.written() == ""
    guarded.args["ids"].as_strided((1,), (1,), guarded.args["ids"].storage_offset())[0] = 7
    assert guarded.written() == "ids (outside of it)"


@pytest.mark.parametrize("run", [0, 1])
def test_fresh_memory_is_poisoned(run):
    floating, integer = POISONS[run]
    like = torch.ones(2, 3)
    with poisoned(run):
        floats = [
            torch.empty(4),
            torch.empty(4, dtype=torch.bfloat16),
            torch.empty_like(like),
            torch.empty_strided((2, 2), (1, 2)),
            torch.empty_permuted((2, 2), (1, 0)),
            like.new_empty(3),
            like.new_empty_strided((2, 2), (2, 1)),
            torch.Tensor(3),
        ]
        whole = [torch.empty(3, dtype=d) for d in (torch.int32, torch.int64, torch.int8)]
        unsigned = torch.empty(3, dtype=torch.uint8)
        zeros, drawn = torch.zeros(3), torch.full((2,), 7.0)
    for t in floats:
        wanted = torch.full_like(t, floating)
        assert torch.equal(t.isnan(), wanted.isnan())
        assert torch.equal(t.nan_to_num(), wanted.nan_to_num())
    assert all(bool((t == integer).all()) for t in whole)
    assert unsigned.tolist() == [integer & 0xFF] * 3
    assert zeros.tolist() == [0, 0, 0]
    assert drawn.tolist() == [7, 7]
    assert not torch.empty(1).requires_grad
    assert torch.is_grad_enabled()


def test_bits_are_compared_as_bits():
    a = torch.tensor([0.0, float("nan"), 1.0])
    assert same_bits(a, a.clone())
    assert not same_bits(a, torch.tensor([-0.0, float("nan"), 1.0]))
    assert not same_bits(a, a.double())
    assert not same_bits(a, a[:2])
    b = torch.tensor([[0.0, 1.0], [2.0, float("nan")]])
    c = torch.tensor([[-0.0, 1.0], [2.5, float("nan")]])
    assert different_bits(b, c).tolist() == [[True, False], [True, False]]
    assert different_bits(b.T, c.T).tolist() == [[True, True], [False, False]]
    assert different_bits(torch.empty(0, 3), torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("run", range(len(POISONS)))
def test_fresh_memory_alone_is_poisoned_for_a_simulation(run):
    floating, integer = POISONS[run]
    with poisoned(run, every=False):
        held, counts = fresh(torch.ones(8)), fresh(torch.ones(8, dtype=torch.int32))
        assert not torch._C._len_torch_dispatch_stack()
    assert same_bits(held, torch.full((8,), floating))
    assert torch.equal(counts, torch.full((8,), integer, dtype=torch.int32))
    call = partial(call_here, FAULTS["F25"].kernel("silu_and_mul"), {"h": torch.ones(2, 8, dtype=torch.bfloat16)})
    assert same_bits(call(run), torch.full((2, 4), floating, dtype=torch.bfloat16))


def test_simulations_have_no_other_unwritten_memory():
    folders = [Path(simulate.__file__).parent, Path(faults.__file__).parent]
    texts = {path: path.read_text() for folder in folders for path in sorted(folder.glob("*.py"))}
    assert len(texts) > 20
    assert [str(path) for path, text in texts.items() if re.search(r"empty(_like|_strided|_permuted)?\(", text)] == []
