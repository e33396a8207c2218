"""Rotary embedding: literals, and the laws of a rotation."""

from __future__ import annotations

import math

import pytest
import torch

from moeracle.ref.ops.rope import apply_rotary, cos_sin_cache, mrope_cos_sin, pick_cos_sin, rope, section_of_channel


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cache_by_hand():
    cache = cos_sin_cache(3, 4)  # angles p and p / 100
    assert cache.shape == (3, 4)
    assert cache[0].tolist() == [1.0, 1.0, 0.0, 0.0]
    expected = [0.54030230586814, 0.99995000041667, 0.84147098480790, 0.00999983333417]
    assert torch.equal(cache[1], torch.tensor(expected))
    assert torch.equal(cache[2, [0, 2]], torch.tensor([-0.41614683654714, 0.90929742682568]))
    # rounded once: fp32 angles would miss this by 1e-3
    assert cos_sin_cache(40000, 64, 1e6)[39999, 37].item() == torch.tensor(math.sin(39999 * 1e6 ** (-10 / 64))).item()


def test_styles_by_hand():
    # one head of four channels at position 1: pairs turn by 1 and by 0.01
    cos, sin = pick_cos_sin(cos_sin_cache(2, 4, dtype=torch.float64), torch.tensor([1]))
    c1, s1, c2, s2 = math.cos(1), math.sin(1), math.cos(0.01), math.sin(0.01)
    x = torch.tensor([[1.0, 2.0, 3.0, 5.0]])
    neox = apply_rotary(x, cos, sin, 4, style="neox", dtype=torch.float64)  # pairs (1, 3), (2, 5)
    expected = [c1 - 3 * s1, 2 * c2 - 5 * s2, 3 * c1 + s1, 5 * c2 + 2 * s2]
    torch.testing.assert_close(neox, torch.tensor([expected], dtype=torch.float64), rtol=1e-15, atol=0)
    gptj = apply_rotary(x, cos, sin, 4, style="gptj", dtype=torch.float64)  # pairs (1, 2), (3, 5)
    expected = [c1 - 2 * s1, 2 * c1 + s1, 3 * c2 - 5 * s2, 5 * c2 + 3 * s2]
    torch.testing.assert_close(gptj, torch.tensor([expected], dtype=torch.float64), rtol=1e-15, atol=0)


def test_sections_by_hand():
    assert section_of_channel(8, [4, 2, 2]).tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert section_of_channel(8, [4, 2, 2], interleaved=True).tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    assert section_of_channel(8, [3, 3, 2], interleaved=True).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert section_of_channel(64, [24, 20, 20], interleaved=True).bincount().tolist() == [24, 20, 20]
    assert section_of_channel(64, [24, 20, 20], interleaved=True)[57:].tolist() == [0, 1, 2, 0, 0, 0, 0]


@pytest.mark.parametrize("interleaved", [False, True])
def test_mrope_channel_by_channel(interleaved):
    section, half = [4, 2, 2], 8
    positions = torch.tensor([[3, 9, 0], [5, 1, 0], [7, 4, 2]])
    cache = cos_sin_cache(10, 16)
    cos, sin = mrope_cos_sin(cache, positions, section, interleaved=interleaved)
    owner = section_of_channel(half, section, interleaved=interleaved).tolist()
    for t in range(3):
        for i in range(half):
            p = int(positions[owner[i], t])
            assert cos[t, i] == cache[p, i], (t, i)
            assert sin[t, i] == cache[p, half + i], (t, i)


@pytest.mark.parametrize("style", ["neox", "gptj"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_equal_positions_are_plain_rope(style, interleaved):
    cache = cos_sin_cache(50, 12)
    positions = torch.tensor([0, 3, 49, 7])
    q, k = randn(0, 4, 3 * 16), randn(1, 4, 16)
    plain = rope(q, k, positions, cache, 16, style=style)
    three = rope(q, k, positions.expand(3, 4), cache, 16, style=style, mrope_section=[2, 2, 2],
                 mrope_interleaved=interleaved)  # fmt: skip
    assert torch.equal(plain[0], three[0])
    assert torch.equal(plain[1], three[1])


@pytest.mark.parametrize("style", ["neox", "gptj"])
def test_position_zero_is_the_identity_and_the_rest_passes_through(style):
    cache = cos_sin_cache(9, 8)
    q, k = randn(2, 5, 2 * 20), randn(3, 5, 20)
    same = rope(q, k, torch.zeros(5, dtype=torch.int32), cache, 20, style=style)
    assert torch.equal(same[0], q)
    assert torch.equal(same[1], k)
    turned = rope(q, k, torch.arange(4, 9), cache, 20, style=style)[0].reshape(5, 2, 20)
    assert torch.equal(turned[..., 8:], q.reshape(5, 2, 20)[..., 8:])
    assert (turned[..., :8] != q.reshape(5, 2, 20)[..., :8]).all()


@pytest.mark.parametrize("style", ["neox", "gptj"])
def test_rotation_keeps_norms_and_turns_only_pairs(style):
    cache = cos_sin_cache(1000, 16, dtype=torch.float64)
    positions = torch.tensor([1, 17, 999])
    q = randn(4, 3, 2 * 16).double()
    turned, _ = rope(q, q, positions, cache, 16, style=style, dtype=torch.float64)

    def pairs(x):
        return x.reshape(3, 2, 2, 8).transpose(-1, -2) if style == "neox" else x.reshape(3, 2, 8, 2)

    torch.testing.assert_close(pairs(turned).norm(dim=-1), pairs(q).norm(dim=-1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("style", ["neox", "gptj"])
def test_scores_depend_on_the_distance_only(style):
    cache = cos_sin_cache(200, 32, dtype=torch.float64)
    q, k = randn(5, 1, 32).double(), randn(6, 1, 32).double()

    def score(p_q, p_k):
        at_q = rope(q, k, torch.tensor([p_q]), cache, 32, style=style, dtype=torch.float64)[0]
        at_k = rope(q, k, torch.tensor([p_k]), cache, 32, style=style, dtype=torch.float64)[1]
        return float((at_q * at_k).sum())

    for distance in (0, 1, 40):
        base = score(distance, 0)
        for shift in (1, 50, 150):
            assert math.isclose(score(distance + shift, shift), base, rel_tol=1e-11, abs_tol=1e-12)
    assert not math.isclose(score(1, 0), score(0, 1), rel_tol=1e-3)  # the sign of the distance matters


def test_heads_are_independent_and_inputs_may_be_half():
    cache = cos_sin_cache(20, 8)
    positions = torch.tensor([11, 4])
    q = randn(7, 2, 3 * 8).to(torch.bfloat16)
    both = rope(q, q, positions, cache, 8)
    assert both[0].dtype == torch.float32
    for head in range(3):
        part = q[:, 8 * head : 8 * head + 8]
        assert torch.equal(both[0][:, 8 * head : 8 * head + 8], rope(part, part, positions, cache, 8)[0])
    empty = rope(q[:0], q[:0], positions[:0], cache, 8)
    assert empty[0].shape == (0, 24)


def test_refusals():
    cache = cos_sin_cache(10, 8)
    q = torch.zeros(2, 16)
    ok = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"positions: got 0\.\.10, must be 0\.\.9"):
        rope(q, q, torch.tensor([0, 10]), cache, 16)
    with pytest.raises(ValueError, match=r"positions: got -1\.\.0"):
        rope(q, q, torch.tensor([0, -1]), cache, 16)
    with pytest.raises(ValueError, match=r"positions: got torch\.float32"):
        rope(q, q, ok.float(), cache, 16)
    with pytest.raises(ValueError, match=r"style: got 'neo', .*did you mean 'neox'"):
        rope(q, q, ok, cache, 16, style="neo")
    with pytest.raises(ValueError, match="head_dim: got 5"):
        rope(q, q, ok, cache, 5)
    with pytest.raises(ValueError, match="d <= 4"):
        rope(q, q, ok, cache, 4)
    with pytest.raises(ValueError, match="mrope_section: got None"):
        rope(q, q, ok.expand(3, 2), cache, 16)
    with pytest.raises(ValueError, match=r"positions: got shape \(2, 2\), must be \[3, T\]"):
        rope(q, q, ok.expand(2, 2), cache, 16, mrope_section=[2, 1, 1])
    with pytest.raises(ValueError, match=r"mrope_section: got \[2, 1, 2\], must be three counts that sum to"):
        rope(q, q, ok.expand(3, 2), cache, 16, mrope_section=[2, 1, 2])
    with pytest.raises(ValueError, match="must be interleavable"):
        section_of_channel(4, [0, 4, 0], interleaved=True)
    with pytest.raises(ValueError, match="rotary_dim: got 7"):
        cos_sin_cache(4, 7)
    with pytest.raises(ValueError, match="max_position: got 0"):
        cos_sin_cache(0, 8)
    with pytest.raises(ValueError, match="base: got 0"):
        cos_sin_cache(4, 8, 0.0)
