"""assert_legal in place of assert_close: every form of a weight, maps of experts, clients, failures and their files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import moeracle
from moeracle import NotJudged, assert_legal, judge_tensors
from moeracle.clients import CLIENTS
from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS, words_of_bits, zero_forms
from moeracle.properties.compare.shapes import without_codes
from moeracle.properties.simulate import simulation_of
from moeracle.ref.contracts.contract import PRESETS, contract
from moeracle.tensors.saved import load, packed_bytes, save

from .made import LAYER, arguments, layer, linear


def wrong() -> torch.Tensor:
    """The last expert's rows computed by its neighbour, as a kernel with a wrong index does."""
    problem, _ = layer()
    ids = problem.args["topk_ids"]
    moved = dataclasses.replace(problem, args={**problem.args, "topk_ids": torch.where(ids == 3, 2, ids)})
    from moeracle.properties.simulate import simulation_of

    out: torch.Tensor = simulation_of("moe_w4a16", contract("grouped")).moe_w4a16(*moved.args.values())["out"]
    return out


@pytest.mark.parametrize("form", ["Int4Weight", "tuple", "dense", "fp32", "mixed"])
def test_a_weight_in_every_form_gives_the_same_verdict(form: str) -> None:
    args = arguments()
    dense = {name: args[name].dequantize() for name in ("w13", "w2")}
    given = {
        "Int4Weight": args,
        "tuple": {**args, **{n: (args[n].packed, args[n].scale) for n in dense}, "layout": "exllama"},
        "dense": {**args, **{n: w.bfloat16() for n, w in dense.items()}},
        "fp32": {**args, **dense},
        "mixed": {**args, "w2": dense["w2"]},
    }[form]
    assert_legal("moe_w4a16", layer()[1]["out"], contract="grouped", **given)
    assert_legal("moe_w4a16", layer()[1], contract="grouped", **given)
    verdict = judge_tensors("moe_w4a16", wrong(), contract="grouped", explain=False, **given)
    codes = judge_tensors("moe_w4a16", wrong(), contract="grouped", explain=False, **args)
    assert not verdict.ok
    assert torch.equal(verdict.illegal, codes.illegal)
    assert torch.equal(verdict.lo, codes.lo)


def test_marlins_words_are_read_as_the_weight_that_they_hold() -> None:
    from moeracle.properties.simulate import Simulation
    from moeracle.ref.weights.marlin import marlin_scales, marlin_zeros, pack_marlin

    for text in ("gptq-sym", "awq-asym"):
        x, w, _ = Case.parse(f"int4_linear/T5-N64-K128-G32/bf16/{text}/-/normal/s1").build().args.values()
        out = Simulation("grouped", "matmul").int4_linear(x, w, None)
        words, scale, zero = pack_marlin(w.codes()), marlin_scales(w.scale), w.zeros()
        given = (words, scale) if zero is None else (words, scale, marlin_zeros(zero))
        assert judge_tensors("int4_linear", out, x, given, None, layout="marlin", contract="grouped").ok
        moved = (words.roll(1, -1), *given[1:])
        assert not judge_tensors("int4_linear", out, x, moved, None, layout="marlin", contract="grouped").ok
        with pytest.raises(NotJudged, match=r"w: words: got 64 a row, must be a multiple of 128"):
            judge_tensors("int4_linear", out, x, (words[:, :64], scale), None, layout="marlin", contract="grouped")


def test_stages_with_tokens_and_slots_apart_are_the_same() -> None:
    problem, stages = layer()
    apart = {name: stages[name].reshape(17, 2, -1) for name in ("h", "a", "y")}
    given = {"contract": "grouped", **problem.args}
    together = {name: stages[name] for name in apart}
    one, other = (judge_tensors("moe_w4a16", stages["out"], stages=some, **given) for some in (apart, together))
    assert one.ok
    assert one.verdict == other.verdict
    apart["h"] = apart["h"].roll(1, 2)
    assert judge_tensors("moe_w4a16", stages["out"], stages=apart, explain=False, **given).stage == "h"


def test_stages_say_where_it_went_wrong_and_shapes_of_ids_do_not_matter() -> None:
    _, stages = layer()
    args = arguments(
        topk_ids=layer()[0].args["topk_ids"].long(), topk_weights=layer()[0].args["topk_weights"].double().float()
    )
    h = stages["h"].clone()
    h[5, 7] += 1
    verdict = judge_tensors("moe_w4a16", stages["out"], stages={"h": h}, contract="grouped", **args)
    assert (verdict.status, verdict.stage) == ("illegal", "h")
    assert verdict.illegal.nonzero().tolist() == [[5, 7]]
    assert "h[token 2, slot 1, n 7]" in verdict.text()
    lo, hi = verdict.bounds_of("h")
    assert bool((lo <= hi).all())
    assert bool(((lo <= stages["h"]) & (stages["h"] <= hi)).all())


def test_another_ranks_experts_are_nobodys_here() -> None:
    problem, _ = layer()
    args = arguments()
    mapping = torch.tensor([-1, 3, 0, -1, 1, 2, -1])  # seven experts, four of them here
    own = torch.tensor([2, 4, 5, 1])  # what this rank calls 0, 1, 2, 3
    ids = own[args["topk_ids"].long()]
    ids[0, 0], ids[3, 1] = 0, 6
    local = torch.where(mapping[ids] < 0, -1, mapping[ids])
    from moeracle.properties.simulate import simulation_of

    out = simulation_of("moe_w4a16", contract("grouped")).moe_w4a16(
        *{**problem.args, "topk_ids": local.int()}.values()
    )["out"]
    assert_legal("moe_w4a16", out, contract="grouped", expert_map=mapping, **{**args, "topk_ids": ids})
    identity = torch.tensor([0, 1, 2, 3, -1, -1, -1])  # what a kernel that does not read the map would compute
    assert not judge_tensors(
        "moe_w4a16", out, contract="grouped", explain=False, expert_map=identity, **{**args, "topk_ids": ids}
    ).ok


def test_a_failure_reads_as_checks_and_its_file_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError) as failure:
        assert_legal("moe_w4a16", {**layer()[1], "out": wrong()}, contract="grouped", name="mine", **arguments())
    lines = str(failure.value).splitlines()
    assert len(lines) <= 20
    assert lines[0].startswith(
        "[moe_w4a16] mine  moe_w4a16/T17-E4-k2-H128-I64-G32/bf16/exllama-sym/own/own/s0  FAIL  tier="
    )
    assert [line.split(":")[0].strip() for line in lines[-3:]] == ["would pass at", "looks like", "replay"]
    saved = Path(lines[-1].rpartition(" ")[2])
    assert saved.parent == Path(".moeracle")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / saved]
    held = load_file(saved)
    assert {"args.x", "args.w13.packed", "args.w13.scale", "args.topk_ids", "out.h", "out.out"} <= held.keys()
    again = {**arguments(), "explain": False}
    with pytest.raises(AssertionError):  # the same tensors need no second file
        assert_legal("moe_w4a16", {**layer()[1], "out": wrong()}, contract="grouped", name="mine", **again)
    assert len(list(Path(".moeracle").iterdir())) == 1


def test_a_file_that_cannot_be_written_costs_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(
        AssertionError, match=r"the tensors could not be saved: .*\n  replay: the tensors were not saved"
    ):
        assert_legal("moe_w4a16", wrong(), contract="grouped", save=tmp_path / "folder", explain=False, **arguments())


ODD = ("grouped,accumulator=fp32,sum_schedule=fma", "grouped,activation=silu/alpha1.702/limit7/up1")


@pytest.mark.parametrize("text", [*ODD, *PRESETS])
def test_every_contract_is_saved_with_the_tensors(text: str, tmp_path: Path) -> None:
    own = dataclasses.replace(contract(text), name="house rules")
    problem, stages = layer()
    path = save(tmp_path / "one.safetensors", packed_bytes(problem, {"out": stages["out"]}, own))
    assert load(path)[2] == own


@pytest.mark.parametrize("damage", ["cut", "text", "other", "kind", "op", "missing", "shape", "folder"])
def test_a_damaged_file_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    judge_tensors("moe_w4a16", wrong(), contract="grouped", explain=False, **arguments()).save(path)
    held = load_file(path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()["moeracle"]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("no tensors")
    elif damage == "other":
        save_file(held, path)
    elif damage == "kind":
        save_file(held, path, {"moeracle": about.replace("moeracle tensors", "other")})
    elif damage == "op":
        save_file(held, path, {"moeracle": about.replace("moe_w4a16", "moe_w4a17")})
    elif damage == "missing":
        save_file({name: t for name, t in held.items() if name != "args.w13.scale"}, path, {"moeracle": about})
    elif damage == "shape":
        save_file({**held, "args.x": held["args.x"][:, :64].contiguous()}, path, {"moeracle": about})
    elif damage == "folder":
        path = tmp_path
    with pytest.raises(NotJudged) as said:
        load(path)
    assert len(str(said.value).splitlines()) == 1


def test_a_client_brings_contract_and_layout() -> None:
    text = LAYER.replace("exllama-sym", "nibble_pairs-asym")
    problem, stages = layer(text, CLIENTS["vllm.fused_moe_wna16"].contract)
    packed = {n: (w.packed, w.scale, w.zero) for n, w in problem.args.items() if n in ("w13", "w2")}
    verdict = judge_tensors("moe_w4a16", stages, client="vllm.fused_moe_wna16", **{**problem.args, **packed})
    assert verdict.ok, verdict.text()
    assert verdict.rules.name == "gptq_awq"
    assert verdict.problem.args["w13"].zero_layout == "nibble_pairs"
    other = judge_tensors("moe_w4a16", stages, contract="grouped", explain=False, **problem.args)
    assert not other.ok


def test_every_client_is_of_an_op_whose_layout_and_contract_exist() -> None:
    for client in CLIENTS.values():
        assert client.op in OPS
        assert contract(client.contract).name == client.contract
        if client.layout is not None:
            assert OPS[client.op].weight
            assert client.zeros in zero_forms(words_of_bits(client.bits))[client.layout].values()
        assert client.source
    assert CLIENTS


def test_integers_are_judged_at_equality() -> None:
    """Where every order of a sum is exact, one value is legal, although nobody said that the data are such."""
    problem, stages = layer(LAYER.replace("normal", "integers"))
    verdict = judge_tensors("moe_w4a16", stages, contract="grouped", **problem.args)
    assert verdict.ok
    assert verdict.verdict.exact == verdict.verdict.judged
    assert torch.equal(verdict.lo, verdict.hi)
    problem, stages = layer()
    assert judge_tensors("moe_w4a16", stages, contract="grouped", **problem.args).stages[0].exact == 0


def test_a_verdict_in_a_notebook_shows_its_heat_maps_and_touches_no_other_style() -> None:
    page = judge_tensors(
        "moe_w4a16", wrong(), contract="grouped", name="<b>", explain=False, **arguments()
    )._repr_html_()
    assert page.count("<svg") == 1
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    rules = [line for line in page.splitlines() if "{" in line]
    assert rules
    assert all(line.startswith(".moeracle") for line in rules)
    assert "var(--l1)" in page
    assert "--l1: #" in page


def test_gradients_and_parameters_are_values() -> None:
    problem, out = linear()
    x = torch.nn.Parameter(problem.args["x"])
    assert_legal("int4_linear", out.clone().requires_grad_(), x, problem.args["w"], contract="grouped")


def test_the_public_names_are_there() -> None:
    assert {"assert_legal", "judge_tensors", "tolerance_report", "NotJudged"} <= set(dir(moeracle))
    assert Case is moeracle.Case
    assert without_codes(layer()[0], contract("wvsplitk")) == ""


@pytest.mark.parametrize("word", ["w8", "ungated"])
def test_layers_of_8_bit_codes_and_without_up_rows(word: str) -> None:
    """Given as tensors: a tuple needs bits=8, a w13 without up rows gated=False, and what is wrong is refused."""
    form = "bytes-unpacked+w8" if word == "w8" else "exllama-sym+ungated"
    problem = Case.parse(f"moe_w4a16/T5-E4-k2-H64-I32-G32/bf16/{form}/uniform/normal/s1").build()
    stages = simulation_of("moe_w4a16", contract("grouped")).moe_w4a16(*problem.args.values())
    args, more = dict(problem.args), {"gated": False} if word == "ungated" else {"bits": 8, "layout": "bytes"}
    if word == "w8":
        args |= {name: (args[name].packed, args[name].scale, args[name].zero) for name in ("w13", "w2")}
    assert judge_tensors("moe_w4a16", stages, contract="grouped", explain=False, **args, **more).ok
    assert not judge_tensors("moe_w4a16", stages, contract="gptq_awq", explain=False, **args, **more).ok
    message = (
        "it fits with gated=False" if word == "ungated" else "layout: got 'bytes' for w13, must be one of .*bits=8"
    )
    with pytest.raises(NotJudged, match=message):
        judge_tensors("moe_w4a16", stages, contract="grouped", **args, **({"layout": "bytes"} if word == "w8" else {}))
    with pytest.raises(NotJudged, match="gated: got False for int4_linear, must be True"):
        judge_tensors("int4_linear", stages["out"], None, None, None, contract="grouped", gated=False)
