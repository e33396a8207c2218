"""judge_argmax: legal choices pass, padding and wrong winners do not, and open tokens are told from sure ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import moeracle
from moeracle.properties.cases.case import Case
from moeracle.tensors.argmax import ArgmaxVerdict

TOKENS = 40
BF16 = torch.bfloat16


def head(data: str = "normal", columns: int = 48) -> tuple[dict[str, Any], torch.Tensor]:
    """A head of 48 columns of which 8 are padding (zero codes), whose real logits are all negative for even tokens."""
    args = dict(Case.parse(f"int8_lm_head/T12-V{columns}-K64-G32/bf16/-/-/{data}/s5").build().args)
    args["x"] = args["x"].abs()
    args["codes"] = args["codes"].clone()
    args["codes"][:] = -args["codes"].abs().clamp(1, 127)
    args["x"][1::2] *= -1
    args["codes"][TOKENS:] = 0
    sums = moeracle.ref.int8_lm_head(*args.values())
    return args, sums


def judged(ids: torch.Tensor, args: dict[str, Any], **how: Any) -> ArgmaxVerdict:
    return moeracle.judge_argmax("int8_lm_head", ids, *args.values(), vocabulary=TOKENS, contract="int8_lm_head", **how)


@pytest.mark.parametrize("stored", ["D", "fp32"])
def test_the_arg_max_of_legal_logits_is_legal(stored: str) -> None:
    args, sums = head()
    kept = sums[:, :TOKENS].to(BF16) if stored == "D" else sums[:, :TOKENS]
    found = judged(kept.argmax(1), args, stored=stored)
    assert found.ok
    assert found.legal.all()
    assert bool((found.open == (kept == kept.amax(1, keepdim=True)).sum(1).gt(1)).float().mean() > 0.8)
    assert not found.open.all()
    assert found.text().startswith("legal: 0 of 12 arg-maxes illegal; ")


def test_what_is_wrong_is_seen_and_named() -> None:
    args, sums = head()
    real = sums[:, :TOKENS].to(BF16)
    right = real.argmax(1)
    padded = judged(sums.to(BF16).argmax(1), args)
    assert not padded.ok
    assert padded.legal.tolist() == [t % 2 == 1 for t in range(12)]  # zeros win where all others are negative
    assert "token 0: got 40, which is padding: the vocabulary has 40 ids; id " in padded.text()
    shifted = judged(right.roll(1), args)
    assert not shifted.legal.all()
    assert " is the arg-max of token " in shifted.text()
    chunked = judged(real[:, 16:32].argmax(1), args)  # the offset of the chunk left out
    smallest = judged(real.argmin(1), args)
    assert not chunked.ok
    assert not smallest.legal.any()
    assert "token 0: got -1, which is no column" in judged(right - right - 1, args).text()


def test_equal_logits_and_which_of_them_wins() -> None:
    args, sums = head()
    args["codes"][7] = args["codes"][int(sums[1, :TOKENS].argmax())]
    args["scale"][7] = args["scale"][int(sums[1, :TOKENS].argmax())]
    logits = moeracle.ref.int8_lm_head(*args.values()).to(BF16)
    at = (logits[1, :TOKENS] == logits[1, :TOKENS].max()).nonzero().flatten().tolist()
    assert len(at) > 1
    ids = logits[:, :TOKENS].argmax(1)
    ids[1] = at[-1]
    assert judged(ids, args, logits=logits).ok
    found = judged(ids, args, logits=logits, ties="lowest")
    assert found.legal.tolist() == [t != 1 for t in range(12)]
    assert f"of equal logits the lowest id wins, which is {at[0]}" in found.text()
    ids[1] = at[0]
    assert judged(ids, args, logits=logits, ties="lowest").ok


def test_a_legal_logit_changes_an_arg_max_by_hand() -> None:
    """Two columns of 100·0.01 are equal, so either may win; at 104 the first one surely does."""
    x = torch.full((1, 64), 1.0, dtype=BF16)
    w = torch.zeros(3, 64, dtype=torch.int8)
    w[:, 0] = torch.tensor([100, 100, 50])
    scale = torch.tensor([0.01, 0.01, 0.01])
    for chosen, legal in ((0, True), (1, True), (2, False)):
        found = moeracle.judge_argmax("int8_lm_head", torch.tensor([chosen]), x, w, scale, contract="int8_lm_head")
        assert (found.ok, bool(found.open[0])) == (legal, True)
    w[0, 0] = 104
    found = moeracle.judge_argmax("int8_lm_head", torch.tensor([1]), x, w, scale, contract="int8_lm_head")
    assert (found.ok, bool(found.open[0]), int(found.best[0])) == (False, False, 0)
    assert "got 1, whose logit is at most 1; id 0's is at least 1.0390625" in found.text()


def test_zeros_tell_nothing() -> None:
    args, _ = head()
    args["x"] = torch.zeros_like(args["x"])
    assert judged(torch.zeros(12, dtype=torch.int64), args).status == "vacuous"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"op": "moe_w4a16"}, "op: got 'moe_w4a16', must be one of int4_linear, int8_lm_head"),
        ({"vocabulary": 49}, "vocabulary: got 49, must be 1..48, the columns that there are"),
        ({"ties": "first"}, "ties: got 'first', must be one of any, lowest"),
        ({"stored": "bf16"}, "stored: got 'bf16', must be one of D, fp32"),
        ({"ids": torch.zeros(11, dtype=torch.int64)}, "ids: got torch.int64 [11], must be int32 or int64 [12]"),
        ({"logits": torch.zeros(12, 40)}, "logits: got shape [12, 40], must be [12, 48]"),
        ({"contract": None}, "contract: got None, and tensors do not say whose kernel stored them"),
    ],
)
def test_a_mistake_is_one_line(change: dict[str, Any], message: str) -> None:
    args, _ = head()
    given: dict[str, Any] = {"op": "int8_lm_head", "ids": torch.zeros(12, dtype=torch.int64), **change}
    rest = {"contract": "int8_lm_head", **{k: v for k, v in given.items() if k not in ("op", "ids")}}
    with pytest.raises(moeracle.NotJudged, match=r"^") as refused:
        moeracle.judge_argmax(given["op"], given["ids"], *args.values(), **rest)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
