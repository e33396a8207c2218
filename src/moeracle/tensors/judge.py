"""assert_legal and judge_tensors: the judge beside torch.testing.assert_close."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from moeracle.properties.cases.case import Problem
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import OpRecord, record_of
from moeracle.properties.compare.shapes import without_codes, wrong_tensor
from moeracle.properties.judge import judge
from moeracle.ref.contracts.contract import PRESETS, Contract
from moeracle.ref.contracts.contract import contract as named_contract
from moeracle.ref.errors import unknown

from .errors import NotJudged
from .problem import as_problem, as_wide, check_strided, plain
from .verdict import TensorVerdict

__all__ = ["assert_legal", "judge_tensors"]

FOLDER = Path(".moeracle")


def judge_tensors(
    op: str,
    out: Any,
    *args: Any,
    contract: str | Contract | None = None,
    client: str | None = None,
    layout: str | None = None,
    zero_layout: str | None = None,
    bits: int | None = None,
    gated: bool = True,
    expert_map: torch.Tensor | None = None,
    stages: Mapping[str, torch.Tensor] | None = None,
    name: str = "",
    explain: bool = True,
    **named: Any,
) -> TensorVerdict:
    """Say of tensors that a test has whether a kernel that keeps the contract could have stored `out`.

    Args:
        op: one of `moeracle op`, for example "moe_w4a16".
        out: what the kernel returned: a tensor, a tuple of tensors, or for a layer also a dict of its stages.
        args: what the kernel was called with, in the op's order; all tensors on one device. A weight is an Int4Weight
            or Int8Weight, (packed, scale) or (packed, scale, zero) beside a layout, or the dequantized weight
            [E, N, K] in the activations' dtype or in fp32.
        contract: a preset's name with overrides, or a Contract; None takes the client's.
        client: whose kernel it was, one of moeracle.clients.CLIENTS, for its contract and its layout.
        layout, zero_layout, bits: of weights that are given as (packed, scale, zero), bits being 4 or 8 (None: the
            client's, else 4); see moeracle.ref.weights.layouts.
        gated: whether a layer's first weight has up rows: [E, 2I, H], else [E, I, H].
        expert_map: int [E of all ranks], this rank's number of each expert, -1 for elsewhere.
        stages: h [T*k, 2I], a [T*k, I], y [T*k, H] that the kernel stored, for a layer; [T, k, …] is the same.
        name: what the text calls the kernel.
        explain: on a failure, also say what it looks like and under which contract or tolerance it would have passed.
        named: arguments by name, and sizes that no tensor shows, for example B=16 of padded_gemm.
    Returns:
        TensorVerdict: ok, status, illegal (the mask), lo and hi (the legal stored values), text().
    Raises:
        NotJudged: the tensors cannot be judged; in one line what was given and what fits.
    """
    if op not in OPS:
        raise NotJudged(str(unknown("op", op, OPS)))
    record = record_of(op)
    rules, layout, zero_layout, bits = chosen(record, contract, client, layout, zero_layout, bits)
    outputs = _outputs(record, out, stages)
    dtype = next((value.dtype for value in outputs.values() if value.is_floating_point()), None)
    problem = as_problem(
        op, args, named, layout=layout, zero_layout=zero_layout, bits=bits, gated=gated, expert_map=expert_map,
        out_dtype=dtype,
    )  # fmt: skip
    return judge_problem(problem, outputs, rules, name=name, explain=explain)


def assert_legal(
    op: str,
    out: Any,
    *args: Any,
    contract: str | Contract | None = None,
    client: str | None = None,
    save: str | Path | bool = True,
    **more: Any,
) -> None:
    """Pass if a kernel that keeps the contract could have stored `out`; it stands where `assert_close` stood.

    A failure says which elements are illegal and why, and saves inputs and outputs in one file that
    `moeracle judge FILE` judges again.

    Args:
        op, out, args, contract, client, more: as `judge_tensors` takes them.
        save: a folder for the file of a failure, by default .moeracle; False saves none.
    Raises:
        AssertionError: the output is illegal; at most 20 lines, as `moeracle check` prints them.
        NotJudged: the tensors cannot be judged, hold nothing to judge, or a wrong output would pass too.
    """
    verdict = judge_tensors(op, out, *args, contract=contract, client=client, **more)
    require_judged(verdict)
    if verdict.ok:
        return
    if save is not False:
        verdict.save_in(FOLDER if save is True else Path(save))
    raise AssertionError(verdict.text())


def require_judged(verdict: TensorVerdict) -> None:
    """Raise NotJudged where a verdict says nothing about the kernel."""
    if verdict.status not in ("legal", "illegal"):
        raise NotJudged(f"{verdict.verdict.case}: {verdict.status}: {verdict.verdict.reason}")
    if verdict.ok and not verdict.verdict.judged:
        raise NotJudged(f"{verdict.verdict.case}: nothing to judge: the result has no elements")


def judge_problem(
    problem: Problem, outputs: Mapping[str, torch.Tensor], rules: Contract, *, name: str = "", explain: bool = True
) -> TensorVerdict:
    """Judge checked tensors; raises NotJudged for results that do not fit them."""
    record = record_of(problem.case.op)
    shapes = record.shapes(problem)
    outputs = {
        stage: _as_rows(as_wide(stage, value, record.result_dtype(stage, problem.case)), shapes[stage])
        for stage, value in outputs.items()
    }
    _check_codes(record, problem, rules)
    _check_results(record, problem, outputs, rules)
    try:
        verdict = judge(problem, record.as_output(dict(outputs)), rules, explain=explain)
    except ValueError as error:
        raise NotJudged(f"{record.name}: {error}") from error
    verdict.kernel = name
    if (
        verdict.ok
        and verdict.judged
        and record.sums_products
        and not any(bool(value.any()) for value in outputs.values())
    ):
        verdict.status = "vacuous"
        verdict.reason = "every result is zero and legal: these inputs tell no kernel from one that writes nothing"
    if verdict.tier == "nonfinite":
        _blame_inputs(record, problem)
    return TensorVerdict(verdict, problem, outputs, rules)


def chosen(
    record: OpRecord,
    contract: str | Contract | None,
    client: str | None,
    layout: str | None,
    zero_layout: str | None,
    bits: int | None,
) -> tuple[Contract, str | None, str | None, int]:
    """Return the contract, and the layouts and bits of packed weights: those given, or else the client's."""
    if client is not None:
        from moeracle.clients import CLIENTS, client_named

        if client not in CLIENTS:
            of_op = [name for name in CLIENTS if CLIENTS[name].op == record.name]
            raise NotJudged(str(unknown("client", client, of_op or CLIENTS)))
        known = client_named(client)
        if known.op != record.name:
            raise NotJudged(f"client: got {client!r}, whose op is {known.op}, must be one of {record.name}'s")
        contract, layout, zero_layout = contract or known.contract, layout or known.layout, zero_layout or known.zeros
        bits = known.bits if bits is None else bits
    if contract is None:
        if not record.no_rounding_to_choose:
            presets = ", ".join(PRESETS)
            where = "(moeracle docs contracts), or client=… for its kernel's"
            raise NotJudged(
                f"contract: got None, and tensors do not say whose kernel stored them; must be one of {presets} {where}"
            )
        contract = record.default_contract
    try:
        return named_contract(contract), layout, zero_layout, 4 if bits is None else bits
    except ValueError as error:
        raise NotJudged(str(error)) from None


def _outputs(record: OpRecord, out: Any, stages: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Return what the kernel returned by stage or result; every value is a tensor that can be read."""
    names = [result.name for result in record.results]
    given = dict(out) if isinstance(out, Mapping) else record.by_name(out)
    if stages is not None and not isinstance(stages, Mapping):
        raise NotJudged(f"stages: got {type(stages).__name__}, must be a dict of h, a or y")
    if stages:
        if not record.layer:
            raise NotJudged(f"stages: got {', '.join(stages)} for {record.name}, which has none; must be None")
        given = {**stages, **(given or {})}
    must = f"must be ({', '.join(names)})" if len(names) > 1 and not record.layer else "must be a tensor"
    must += " or a dict of the stages h, a, y and out" if record.layer else ""
    if given is None or not given:
        got = f"{type(out).__name__} of {len(out)}" if isinstance(out, (tuple, list)) else type(out).__name__
        raise NotJudged(f"out: got {got}, {must}")
    for stage, value in given.items():
        if stage not in names:
            raise NotJudged(str(unknown("stage", stage, names)))
        if not isinstance(value, torch.Tensor):
            raise NotJudged(f"{stage}: got {type(value).__name__}, must be a tensor")
        check_strided(stage, value)
    missing = [name for name in names if name not in given] if not record.layer else ["out"] * ("out" not in given)
    if missing:
        raise NotJudged(f"out: got {', '.join(given)} without {', '.join(missing)}, {must}")
    return {name: plain(given[name]) for name in names if name in given}


def _check_codes(record: OpRecord, problem: Problem, rules: Contract) -> None:
    """Refuse a dequantized weight where only codes say what is legal."""
    argument = without_codes(problem, rules)
    if argument:
        how = f"contract {rules.name!r} (weight={rules.weight})" if record.sums_products else record.name
        got = f"{argument}: got a dequantized weight of {problem.args[argument].values.dtype}"
        raise NotJudged(f"{got}; {how} needs codes, must be an Int4Weight or (packed, scale, zero)")


def _as_rows(value: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a result as the op has it where a kernel keeps tokens and slots apart: [T, k, N] for [T*k, N]."""
    apart = value.ndim == 3 and len(shape) == 2 and value.shape[0] * value.shape[1] == shape[0]
    return value.reshape(shape) if apart and value.shape[2] == shape[1] else value


def _check_results(record: OpRecord, problem: Problem, outputs: Mapping[str, torch.Tensor], rules: Contract) -> None:
    shapes = record.shapes(problem)
    for stage, value in outputs.items():
        dtype = record.result_dtype(stage, problem.case)
        complaint = wrong_tensor(stage, value, shapes[stage], dtype, problem.device)
        if complaint:
            turned = value.ndim == 2 and tuple(value.shape[::-1]) == shapes[stage] != tuple(value.shape)
            raise NotJudged(complaint + ("; it fits transposed" if turned else ""))
        if record.layer and stage not in rules.stores:
            raise NotJudged(
                f"{stage}: got a stored stage, but contract {rules.name!r} stores {', '.join(rules.stores)} only"
            )


def _blame_inputs(record: OpRecord, problem: Problem) -> None:
    """Raise NotJudged where products are summed and an input holds NaN or infinity: nothing is right or wrong then."""
    from .problem import tensors_of

    if not record.sums_products:
        return
    for argument, value in tensors_of(problem.args):
        if value.is_floating_point() and not bool(value.isfinite().all()):
            count = int((~value.isfinite()).sum())
            raise NotJudged(f"{argument}: holds {count:,} elements that are NaN or infinite, must be finite")
