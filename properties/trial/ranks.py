"""A layer over ranks: what each rank is given, what its results are put together to, and how those are judged."""

from __future__ import annotations

from typing import Any

import torch

from moeracle.ref.contracts.contract import JUDGED, Contract
from moeracle.ref.contracts.ranks import Ranks

from ..cases.case import Problem
from ..common.endings import Ended
from ..common.guard import different_bits, same_bits
from ..common.verdict import Verdict, failed
from ..compare.locate import spans
from ..compare.ranks import rank_of_rows
from ..judge import judge

__all__ = ["args_of_rank", "joined_outputs", "judge_output", "ranks_of_difference"]

COPY = "out of rank "  # of a rank whose result has other bits than rank 0's, although all must hold the same


def args_of_rank(args: dict[str, Any], ranks: Ranks, rank: int) -> dict[str, Any]:
    """Return what a rank is called with: its tokens, its experts' weights, and the map of all experts to those.

    Args:
        args: of the whole layer: x, w13, w2, topk_weights, topk_ids.
        ranks: where experts and tokens lie.
        rank: which.
    Returns:
        The same arguments of one rank and expert_map int32 [E], -1 for an expert whose slots others count.
    """
    E, T = int(args["w13"].shape[0]), len(args["x"])
    tokens, experts = ranks.tokens_of(rank, T), ranks.experts_of(rank, E)
    mapping = torch.full((E,), -1, dtype=torch.int32)
    mapping[experts] = torch.arange(len(experts), dtype=torch.int32)
    if ranks.shared and not ranks.own and rank:
        mapping[E - ranks.shared :] = -1  # rank 0 counts them
    given = {name: args[name][tokens] for name in ("x", "topk_weights", "topk_ids")}
    weights = {name: args[name].experts(experts) for name in ("w13", "w2")}
    named = {name: {**given, **weights}[name] for name in ("x", "w13", "w2", "topk_weights", "topk_ids")}
    return {**named, "expert_map": mapping.to(args["x"].device)}


def joined_outputs(outputs: list[Any], args: dict[str, Any], ranks: Ranks) -> Any:
    """Return one output of what every rank returned.

    Args:
        outputs: by rank: a tensor or a dict of stages.
        args: of the whole layer.
        ranks: where experts and tokens lie.
    Returns:
        A dict of stages, as moe_w4a16 returns them; partial is [ranks * T, H]. Where tokens are everyone's and a rank's
        out has other bits than rank 0's, it stands there too, under "out of rank N".
    Raises:
        Ended: the ranks disagree about what they return, or a rank's shape is none that fits. One line names the rank.
    """
    stages = [output if isinstance(output, dict) else {"out": output} for output in outputs]
    _require_alike(stages)
    if not all(isinstance(value, torch.Tensor) for value in stages[0].values()) or set(stages[0]) - set(JUDGED):
        return outputs[0]  # which the judge refuses in its own words
    shapes = [_shapes(args, ranks, rank) for rank in range(ranks.count)]
    for rank, of_rank in enumerate(stages):
        for name, value in of_rank.items():
            if name not in shapes[rank]:
                why = "; the contract makes none" if name == "partial" else ", where each token is of one rank"
                raise Ended("shape", f"rank {rank} returned stage {name}{why}")
            if tuple(value.shape) != shapes[rank][name]:
                got, must = list(value.shape), list(shapes[rank][name])
                right = [r for r, of in enumerate(stages) if tuple(of[name].shape) == shapes[r][name]]
                others = f"; right of rank{'s' if len(right) > 1 else ''} {spans(right)}" if right else ""
                raise Ended("shape", f"rank {rank}: {name}: got shape {got}, must be {must}{others}")
    device = args["x"].device
    here = [{name: value.to(device) for name, value in of_rank.items()} for of_rank in stages]
    return {name: value for stage in here[0] for name, value in _joined(stage, here, args, ranks).items()}


def _joined(stage: str, stages: list[dict[str, torch.Tensor]], args: dict[str, Any], ranks: Ranks) -> Any:
    values = [of_rank[stage] for of_rank in stages]
    if stage == "partial":
        whole = torch.cat(values, 1) if ranks.own else torch.stack(values)
        return {stage: whole.flatten(0, 1)}
    if ranks.own:
        return {stage: torch.cat(values)}
    if stage == "out":
        others = {f"{COPY}{r}": value for r, value in enumerate(values) if not same_bits(value, values[0])}
        return {stage: values[0], **others}
    owner = ranks.rank_of(args["topk_ids"], int(args["w13"].shape[0])).flatten()
    whole = values[0].clone()
    for rank, value in enumerate(values):
        whole[owner == rank] = value[owner == rank]
    return {stage: whole}


def _shapes(args: dict[str, Any], ranks: Ranks, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each stage that a rank may return."""
    tokens = ranks.tokens_of(rank, len(args["x"]))
    T, k, H = tokens.stop - tokens.start, args["topk_ids"].shape[1], args["w2"].N
    shapes: dict[str, tuple[int, ...]] = {"y": (T * k, H), "out": (T, H)}
    if ranks.partial:
        shapes["partial"] = (ranks.count, T, H) if ranks.own else (T, H)
    if not ranks.own:
        shapes |= {"h": (T * k, args["w13"].N), "a": (T * k, args["w2"].K)}
    return shapes


def _require_alike(stages: list[dict[str, Any]]) -> None:
    """Raise Ended where the ranks return different stages, or one of them in different dtypes."""
    for rank, of_rank in enumerate(stages):
        said, first = (_form(one) for one in (of_rank, stages[0]))
        if said != first:
            raise Ended("shape", f"ranks disagree: rank 0 returned {first}, rank {rank} {said}")


def _form(stages: dict[str, Any]) -> str:
    kinds = {name: str(getattr(value, "dtype", type(value).__name__)) for name, value in stages.items()}
    return ", ".join(f"{name} ({kinds[name].removeprefix('torch.')})" for name in sorted(kinds)) or "nothing"


def ranks_of_difference(
    problem: Problem, rules: Contract, stage: str, first: torch.Tensor, second: torch.Tensor
) -> list[str]:
    """Say in at most one line whose results differ between two runs over ranks.

    Args:
        problem, rules: what ran.
        stage: where the runs differ.
        first, second: of that stage.
    """
    if rules.ranks is None or stage not in JUDGED:
        return []
    of_row = rank_of_rows(problem, rules.ranks, stage)
    if of_row is None:
        return []
    ranks = sorted(set(of_row[different_bits(first, second).any(1).cpu()].tolist()) - {-1})
    return [f"only rank{'s' if len(ranks) > 1 else ''} {spans(ranks)} gave other bits"] if ranks else []


def judge_output(problem: Problem, output: Any, rules: Contract, *, explain: bool = True) -> Verdict:
    """Judge an output as `judge` does; where ranks hold different results, each of them, and name whose are illegal.

    Args:
        problem, output, rules, explain: as of `judge`; output may hold results under "out of rank N".
    """
    copies = {name: t for name, t in output.items() if name.startswith(COPY)} if isinstance(output, dict) else {}
    if not copies:
        return judge(problem, output, rules, explain=explain)
    assert rules.ranks is not None
    common = {name: t for name, t in output.items() if name not in copies}
    by_rank = {rank: copies.get(f"{COPY}{rank}", common["out"]) for rank in range(rules.ranks.count)}
    verdicts = {r: judge(problem, {**common, "out": out}, rules, explain=False) for r, out in by_rank.items()}
    wrong = [rank for rank, verdict in verdicts.items() if verdict.status == "illegal"]
    if wrong and verdicts[wrong[0]].stage == "out":
        verdict = judge(problem, {**common, "out": by_rank[wrong[0]]}, rules, explain=explain)
        right = [rank for rank in verdicts if rank not in wrong]
        legal = f"; rank{'s' if len(right) > 1 else ''} {spans(right)} returned legal ones" if right else ""
        verdict.summary.insert(1, f"rank{'s' if len(wrong) > 1 else ''} {spans(wrong)} returned illegal bits{legal}")
        return verdict
    if wrong:  # a stage before is wrong, whoever made it
        return judge(problem, common, rules, explain=explain)
    rank = int(next(iter(copies)).removeprefix(COPY))
    different = different_bits(by_rank[0], by_rank[rank])
    at = tuple(different.nonzero()[0].tolist())
    return failed(
        verdicts[0], "determinism", "out",
        f"rank {rank} returned other bits than rank 0 in {int(different.sum()):,} of {different.numel():,} elements, "
        f"first at {list(at)}: {by_rank[0][at].item():.8g}, then {by_rank[rank][at].item():.8g} (each legal by itself; "
        "every rank must hold the same sum)",
    )  # fmt: skip
