"""Int4Weight: shapes in every layout, views, devices, and what it refuses."""

import dataclasses
import itertools

import pytest
import torch

from moeracle.ref.weights.dense import DenseWeight
from moeracle.ref.weights.dequantize import dequantize_int4
from moeracle.ref.weights.layouts import LAYOUTS, ZERO_LAYOUTS, pack_int4, pack_zeros
from moeracle.ref.weights.weight import Int4Weight

torch.set_num_threads(1)


def parts(*lead, N=16, K=64, G=32, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (*lead, N, K), dtype=torch.uint8, generator=generator)
    scale = torch.rand((*lead, N, K // G), generator=generator).to(dtype)
    zero = torch.randint(0, 16, (*lead, N, K // G), dtype=torch.uint8, generator=generator)
    return codes, scale, zero


def test_literal_weight_by_hand():
    packed = torch.tensor([[0x75316420]], dtype=torch.int32)  # exllama: codes 0..7
    w = Int4Weight(packed, torch.tensor([[2.0]]), None, "exllama", -1)
    assert (w.shape, w.N, w.K, w.G, w.E) == ((1, 8), 1, 8, 8, None)
    assert w.dequantize().tolist() == [[-16.0, -14.0, -12.0, -10.0, -8.0, -6.0, -4.0, -2.0]]


@pytest.mark.parametrize("zero_layout", [None, *ZERO_LAYOUTS])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
def test_dequantize_equals_the_plain_op(layout, zero_layout, lead, monkeypatch):
    codes, scale, zero = parts(*lead)
    zero = zero if zero_layout else None
    w = Int4Weight.from_codes(codes, scale, zero, layout=layout, zero_layout=zero_layout or "unpacked")
    assert w.shape == tuple(codes.shape)
    experts = w.E
    assert experts == (lead[0] if lead else None)
    assert w.G == 32
    assert torch.equal(w.codes(), codes)
    assert (w.zeros() is None) if zero is None else torch.equal(w.zeros(), zero)
    for dtype, at_once in ((torch.float32, 1), (torch.float64, 2), (torch.float64, 9)):
        monkeypatch.setattr(Int4Weight, "at_once", lambda self, n=at_once: n)
        assert torch.equal(w.dequantize(dtype), dequantize_int4(codes, scale, zero, dtype=dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_group_size_minus_one_is_one_group(layout):
    codes, scale, _ = parts(G=64)
    w = Int4Weight(pack_int4(codes, layout), scale, None, layout, -1)
    assert w.G == 64
    assert torch.equal(w.dequantize(), dequantize_int4(codes, scale))


@pytest.mark.parametrize(("layout", "transposed"), [("exllama", False), ("gptq", True), ("awq", True)])
def test_scale_storage(layout, transposed):
    codes, scale, _ = parts(3)
    w = Int4Weight.from_codes(codes, scale, layout=layout)
    assert torch.equal(w.scale, scale)
    assert (w.scale.mT if transposed else w.scale).is_contiguous()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_expert_is_a_view(layout):
    codes, scale, zero = parts(4)
    w = Int4Weight.from_codes(codes, scale, zero, layout=layout, zero_layout="nibble_pairs")
    one = w.expert(2)
    assert one.packed.data_ptr() == w.packed[2].data_ptr()
    assert one.E is None
    assert torch.equal(one.dequantize(), dequantize_int4(codes[2], scale[2], zero[2]))


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_matrices_of_chosen_experts_are_theirs(at_once, monkeypatch):
    monkeypatch.setattr("moeracle.ref.weights.sizes.WeightSizes.at_once", lambda self: at_once)
    w = Int4Weight.from_codes(*parts(6), layout="gptq", zero_layout="gptq_v1")
    for weight, chosen in itertools.product((w, DenseWeight(w.dequantize())), ([0, 2, 3, 5], [4, 1], [])):
        matrix = weight.matrices(chosen, torch.float64)
        for e in chosen:
            assert torch.equal(matrix(e), w.expert(e).dequantize(torch.float64))
    with pytest.raises(ValueError, match=r"e: got 6, must be 0\.\.5"):
        w.matrices([6], torch.float32)(6)


def padded(packed, pad=32):
    wide = torch.zeros((*packed.shape[:-1], packed.shape[-1] + pad), dtype=packed.dtype)
    return wide[..., : packed.shape[-1]].copy_(packed)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padded_rows(layout):
    codes, scale, _ = parts(3)
    w = Int4Weight(padded(pack_int4(codes, layout)), scale, None, layout, 32)
    assert torch.equal(w.dequantize(), dequantize_int4(codes, scale))
    assert torch.equal(w.expert(1).codes(), codes[1])


def test_to_keeps_strides_and_itself():
    codes, scale, zero = parts(3)
    w = Int4Weight(padded(pack_int4(codes, "gptq")), scale.mT.contiguous().mT, zero[:1].expand(3, -1, -1), "gptq", 32)
    assert w.to("cpu") is w
    meta = w.to("meta")
    assert meta.packed.stride() == w.packed.stride()
    assert meta.scale.stride() == w.scale.stride()
    assert meta.shape == w.shape
    assert meta.zero.device.type == "meta"


def test_frozen_and_compared_by_identity():
    codes, scale, _ = parts()
    w = Int4Weight.from_codes(codes, scale, layout="exllama")
    with pytest.raises(dataclasses.FrozenInstanceError):
        w.group_size = 64
    assert w == w
    assert w != Int4Weight.from_codes(codes, scale, layout="exllama")


def build(**changes):
    codes, scale, zero = parts(2)
    fields = {
        "packed": pack_int4(codes, "exllama"),
        "scale": scale,
        "zero": None,
        "layout": "exllama",
        "group_size": 32,
    }
    return Int4Weight(**{**fields, **changes}), zero


ZERO = parts(2)[2]
RAGGED = {"packed": torch.zeros(12, 1, dtype=torch.int32), "scale": torch.ones(12, 1), "group_size": 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "exlama"}, r"layout: got 'exlama'.*did you mean 'exllama'"),
        ({"zero_layout": "gptq_v3"}, r"zero_layout: got 'gptq_v3'.*did you mean 'gptq_v"),
        ({"packed": torch.zeros(2, 16, 8)}, r"packed: got torch\.float32, must be torch\.int32"),
        ({"packed": torch.zeros(8, dtype=torch.int32)}, r"packed: got shape \(8,\)"),
        ({"packed": torch.zeros(2, 16, 0, dtype=torch.int32)}, r"packed: got shape \(2, 16, 0\)"),
        ({"group_size": 96}, r"group_size: got 96, must be -1 or 1 to K = 64"),
        ({"group_size": 24}, r"scale: got shape \(2, 16, 2\), must be \(2, 16, 3\)"),
        ({"group_of": torch.zeros(2, 64)}, r"group_of: got torch\.float32, must be torch\.int32"),
        ({"group_of": torch.zeros(64, dtype=torch.int32)}, r"group_of: got shape \(64,\), must be \(2, 64\)"),
        ({"group_size": 0}, r"group_size: got 0"),
        ({"group_size": -2}, r"group_size: got -2"),
        ({"group_size": 64}, r"scale: got shape \(2, 16, 2\), must be \(2, 16, 1\)"),
        ({"scale": torch.ones(2, 2, 16)}, r"scale: got shape \(2, 2, 16\), must be \(2, 16, 2\)"),
        ({"scale": torch.ones(2, 16, 2).double()}, r"scale: got torch\.float64"),
        ({"scale": torch.ones(2, 16, 2, device="meta")}, r"scale: got device meta, must be packed's cpu"),
        ({"zero": ZERO.int()}, r"zero: got torch\.int32, must be torch\.uint8"),
        ({"zero": ZERO[:1]}, r"zero: got shape \(1, 16, 2\), must be \(2, 16, 2\)"),
        ({"zero": ZERO, "zero_layout": "rdna"}, r"zero: got torch\.uint8, must be torch\.int32"),
        (
            {**RAGGED, "zero": torch.zeros(1, 1, dtype=torch.int32), "zero_layout": "rdna"},
            r"zero_layout: 'rdna' needs N",
        ),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)


def test_a_zero_form_of_another_shape_is_refused():
    codes, scale, zero = parts(N=32)  # rdna [4, 2], awq [2, 4]
    with pytest.raises(ValueError, match=r"zero: got shape \(4, 2\), must be \(2, 4\)"):
        Int4Weight(pack_int4(codes, "exllama"), scale, pack_zeros(zero, "rdna"), "exllama", 32, "awq")


def test_expert_refuses_what_is_not_an_expert():
    w, _ = build()
    for e in (-1, 2):
        with pytest.raises(ValueError, match=rf"e: got {e}, must be 0\.\.1"):
            w.expert(e)
    with pytest.raises(ValueError, match=r"expert: this weight has shape \(16, 64\)"):
        w.expert(0).expert(0)


@pytest.mark.parametrize("e", [-1, 3])
def test_an_expert_that_is_not_there_is_refused_in_every_form(e: int) -> None:
    codes, scale = torch.zeros(3, 8, 32, dtype=torch.uint8), torch.ones(3, 8, 1)
    for weight in (Int4Weight.from_codes(codes, scale, layout="exllama"), DenseWeight(torch.ones(3, 8, 32))):
        assert weight.E == 3
        with pytest.raises(ValueError, match=rf"e: got {e}, must be 0\.\.2"):
            weight.expert(e)
    with pytest.raises(ValueError, match="must have an expert dimension"):
        DenseWeight(torch.ones(8, 32)).expert(0)
