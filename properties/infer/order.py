"""The order and the accumulator of a kernel's sums: from the tree to a schedule that predicts every bit, or to less."""

from __future__ import annotations

from dataclasses import replace

from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.contracts import accumulators
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.rounding import FORMATS

from .drive import Dots
from .facts import Facts, accumulator_facts
from .fit import Noise, ask_noise, bias_is_fused, candidates, fit
from .found import UNDECIDED, Inference
from .guesses import schedules_for
from .levels import Shape, shape_of
from .picture import picture
from .report import note, tell_facts
from .reveal import Counter, NotRevealedError, reveal
from .site import Site
from .tree import Node, depth


def find_order(
    dots: Dots,
    rules: Contract,
    facts: Facts,
    noises: list[Noise],
    result: Inference,
) -> Contract:
    """Return the rules with accumulator, ftz and, where one predicts every bit, schedule.

    Args:
        dots: what is probed.
        rules: with the weight path, the store's rounding and determinism.
        facts: from three-term sums; what the tree adds is put in.
        noises: questions already asked.
        result: findings, order, picture and schedules are put in.
    """
    rules = replace(rules, ftz=facts.ftz == "yes")
    in_d = 0 < facts.kept <= FORMATS[dots.dtype][0] + 1
    root = None
    if not rules.deterministic:
        result.notes.append("order: not asked, since runs differ")
    else:
        dots.enter("order of sums")
        try:
            counter = Counter(dots, dots.K, dots.dtype, dots.gaps)
            root = reveal(counter, range(dots.K), counter.size.most)
        except NotRevealedError as error:
            result.notes.append(f"order not revealed: {error}")
    shape = shape_of(root) if root is not None else None
    step = _step_of(root)
    if step:
        shown = accumulator_facts(dots, step)
        facts.step_bits, facts.exponents = shown.step_bits, shown.exponents
        facts.evidence.update(shown.evidence)
    if root is not None:
        result.order = shape.words() if shape else f"irregular, longest chain {depth(root)} additions"
        result.picture = picture(root, shape)
    tell_facts(result, facts, rules)
    if root is not None and (not in_d or dots.calls.asks_parts):
        dots.enter("instruction")
        fitted = _fitted(dots, rules, noises, root, shape, result)
        if fitted is not None:
            _tell_instruction(result, fitted, facts, len(step))
            if rules.ftz and fitted.schedule is not None:
                said = f"{fitted.schedule} predicts every bit where nothing is flushed; with ftz a contract has none"
                note(result, "schedule", None, said, UNDECIDED)
            return replace(rules, accumulator=fitted.accumulator, schedule=None if rules.ftz else fitted.schedule)
    accumulator, why = bounded(dots, rules, facts, len(step), in_d)
    note(result, "accumulator", accumulator, why)
    note(result, "schedule", None, "no schedule predicts the bits" if root else "the order is not known", UNDECIDED)
    return replace(rules, accumulator=accumulator)


def _step_of(root: Node | None) -> list[int]:
    """Return the inputs of one fused step, [] if sums have two terms."""
    if root is None:
        return []
    steps = [[kid.leaf for kid in node.kids if not kid.kids] for node in root.inner() if len(node.kids) > 2]
    longest = max(steps, key=len, default=[])
    return longest if len(longest) > 2 else []


def _fitted(
    dots: Dots,
    rules: Contract,
    noises: list[Noise],
    root: Node,
    shape: Shape | None,
    result: Inference,
) -> Contract | None:
    """Return the rules with the first schedule that predicts every bit asked for, here and at other sizes."""
    late = rules.weight in ("post", "hoisted")
    structures = schedules_for(root, dots.K, dots.G if late else None)
    plain = replace(rules, ftz=False)
    every = candidates(structures, plain, shape.step if shape else 1, dots.G == dots.K)
    noises = [*noises, ask_noise(dots, 2, spread=12)]
    result.checks["schedule"] = lambda schedule: _holds(noises, plain, schedule)
    right = [c for share, c in fit(noises, every) if share == 1.0]
    result.here = [str(c.schedule) for c in right]
    if not right:
        return None
    elsewhere = {}
    for name, other in dots.others():
        there = ask_noise(other, 3, spread=6)
        elsewhere[name] = {id(c) for share, c in fit([there], right) if share == 1.0}
        if other.one_scale and not dots.one_scale and rules.one_group == "as_weight":  # where a scale may come late
            for way in ("after_store", "after_sum"):
                late_there = [replace(c, one_group=way) for c in right]
                held = {id(c) for share, c in fit([there], late_there) if share == 1.0}
                elsewhere[name] |= {id(c) for c, of in zip(right, late_there, strict=True) if id(of) in held}
    general = [c for c in right if all(id(c) in held for held in elsewhere.values())]
    if not general:
        lost = [name for name, held in elsewhere.items() if not held] or list(elsewhere)
        result.schedule = ""
        result.schedules = [str(c.schedule) for c in right[:8]]
        result.notes.append(
            f"schedule: {right[0].schedule} predicts every bit at {_sizes(dots.site)}, but none does at "
            f"{', '.join(lost)}; so the contract has none"
        )
        accumulator = right[0].accumulator
        return replace(plain, accumulator=accumulator, schedule=None)
    last = [c.schedule for c in general if c.schedule is not None and c.schedule.scale_last]
    if dots.record.bias_may_be_fused and last and bias_is_fused(dots):
        general = [replace(c, schedule=replace(s, bias_fused=s.scale_last)) for c in general if (s := c.schedule)]
    best = min(general, key=lambda c: (_foreign(c, dots), general.index(c)))
    result.schedule = str(best.schedule)
    result.fitting = [best, *(c for c in general if c is not best)]
    result.schedules = [str(c.schedule) for c in result.fitting[1:13]]
    return best


def _holds(noises: list[Noise], plain: Contract, schedule: Schedule) -> bool:
    try:
        rules = replace(plain, schedule=schedule, accumulator=accumulators.of_instruction(schedule.instruction))
    except ValueError:
        return False
    return fit(noises, [rules])[0][0] == 1.0


def _foreign(rules: Contract, dots: Dots) -> bool:
    """Say whether an instruction belongs to another GPU than the one that was probed."""
    assert rules.schedule is not None
    capability = dots.calls.capability
    if not capability or rules.schedule.how.core is None:
        return False
    return not rules.schedule.instruction.endswith(f"sm{capability}")


def _sizes(site: Site) -> str:
    return f"K = {site.K}, G = {site.G}"


def _tell_instruction(result: Inference, fitted: Contract, facts: Facts, step: int) -> None:
    if fitted.schedule is None:
        note(result, "accumulator", fitted.accumulator, "the instruction that predicts every bit at the first sizes")
        note(result, "schedule", None, result.notes[-1], UNDECIDED)
        return
    name = fitted.schedule.instruction
    others = sorted({s.partition("/")[0] for s in result.schedules} - {name})
    window = f"; {step} products a step, {facts.step_bits} bits kept" if step else ""
    said = f"{name} predicts every bit of sums that are only rounding error{window}"
    by_others: dict[str, list[str]] = {}
    for other in others:
        by_others.setdefault(accumulators.of_instruction(other), []).append(other)
    same = [f"{what} (by {', '.join(names)})" for what, names in by_others.items() if what != fitted.accumulator]
    note(result, "accumulator", fitted.accumulator, said, same=same)
    same = [s for s in result.schedules if len(s) < 90]
    note(
        result,
        "schedule",
        str(fitted.schedule),
        f"{result.order}; every bit predicted, at another K and G too",
        same=same,
    )


def bounded(dots: Dots, rules: Contract, facts: Facts, step: int, in_d: bool) -> tuple[str, str]:
    """Return the accumulator whose bound suits what was measured where no schedule is known, and why."""
    if in_d:
        return "dtype", f"{facts.evidence['kept']}, as many as D has"
    if not facts.kept:
        return "fp32", "no unit was lost beside 2^28: sums are wider than fp32, which its bound allows"
    kept = facts.kept + ({0: 3, 128: 7, 1024: 10}[rules.zero_offset] if rules.weight == "hoisted" else 0)
    seen = "; ".join(facts.evidence[name] for name in ("kept", "rounding", "step_bits") if name in facts.evidence)
    if kept > facts.kept:
        seen += f" (codes of {rules.zero_offset}+u take the others of 24)"
    if step:
        return accumulators.of_step(step, facts.step_bits), f"{step} products a step; {seen}"
    if kept >= 24:
        return ("truncating" if facts.rounding == "rtz" else "fp32"), seen
    return ("tensor_core" if kept == 23 else "rdna"), f"{seen}: fewer bits than fp32 has"
